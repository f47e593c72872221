// Records that lie in a bundle as FOLDER/NAME/FILE, each made for some settings: calibrations and caches.
#pragma once

#include <initializer_list>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bundle.h"
#include "fields.h"
#include "json.h"
#include "recent.h"

namespace ddm {

// What decides the images beside code and seed, field by field, in the order in which differences are told.
using Settings = std::vector<std::pair<std::string, json::Value>>;

// Those of these names, checked; there are no others.
Settings settings_of(const Field& tree, std::initializer_list<const char*> names);

// What a request asks for that isn't as the record was `made` for this bundle and these settings: "calibrated at",
// "found for". `tree` is the request's manifest.
std::vector<std::string> differences(const Bundle& bundle, const std::string& bundle_id, const Settings& settings,
                                     const json::Value& tree, const char* made);

// The content of one, whose folder is as the bundle's index says.
json::Value checked_record(const Bundle& bundle, const std::string& name);

// In the order of their paths.
struct ByPath {
    bool operator()(const std::string& a, const std::string& b) const { return a + "/" < b + "/"; }
};

template <typename T>
using ByName = std::map<std::string, T, ByPath>;

// The files below a folder: their hashes in the index, and what shows that one was written anew.
std::string identity_of(const Bundle& bundle, const std::string& folder);

// `read` is given the name of a file in the bundle, whose folder it has to check. Each is read once, as long as its
// folder's files stay as they are. Throws what `read` throws.
template <typename Record>
ByName<std::shared_ptr<const Record>> load_records(const Bundle& bundle, const std::string& above,
                                                   const std::string& file,
                                                   Record (*read)(const Bundle&, const std::string&)) {
    static Recent<std::string, Record> known(64);
    ByName<std::shared_ptr<const Record>> found;
    for (const auto& [path, entry] : bundle.files) {
        const size_t end = path.find('/', above.size());
        if (!path.starts_with(above) || end == path.npos || path.substr(end) != file) continue;
        const std::string folder = path.substr(0, end);
        found.emplace(folder.substr(above.size()),
                      known.get(identity_of(bundle, folder), [&, &path = path] { return read(bundle, path); }));
    }
    return found;
}

}  // namespace ddm
