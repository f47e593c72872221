// Records that lie in a bundle as FOLDER/NAME/FILE, each made for some settings: calibrations and caches.
#pragma once

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
struct Settings : std::vector<std::pair<std::string, json::Value>> {
    // Checks a field, which may be missing, and adds its value.
    template <typename Check>
    void take(const char* name, const std::optional<Field>& field, Check check) {
        if (field) check(*field);
        emplace_back(name, field ? field->value() : json::Value());
    }
    void take_shared(const Field& tree);  // those that every record has: sampler, steps, guidance and size

    // What a request asks for that isn't as it was `made`: "calibrated at", "found for". `tree` is its manifest's.
    std::vector<std::string> differences(const json::Value& tree, const char* made) const;
};

// Of a record that was made for a bundle of this id; none, or a sentence.
std::vector<std::string> foreign(const Bundle& bundle, const std::string& bundle_id);

// In the order of their paths.
struct ByPath {
    bool operator()(const std::string& a, const std::string& b) const { return a + "/" < b + "/"; }
};

template <typename T>
using ByName = std::map<std::string, T, ByPath>;

// The files below a folder: their hashes in the index, and what shows that one was written anew.
std::string identity_of(const Bundle& bundle, const std::string& folder);

// `read` is given the name of a file in the bundle. Each is read and checked once, as long as its folder's files stay
// as they are. Throws Error for one that is damaged.
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
        found.emplace(folder.substr(above.size()), known.get(identity_of(bundle, folder), [&, &path = path] {
            bundle.check_directory(folder);
            return read(bundle, path);
        }));
    }
    return found;
}

}  // namespace ddm
