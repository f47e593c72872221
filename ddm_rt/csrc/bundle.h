// The bundle: a directory whose index (bundle.json) holds the sha256 of every file in it. Of format 2 it describes
// itself in runtime.json; of format 1 in config.json, schedule.json and codes.json.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "files.h"
#include "runtime.h"

namespace ddm {

struct FileEntry {
    std::string sha256;  // 64 lower-case hexadecimal digits
    uint64_t bytes;
    std::optional<FileState> checked{};  // before it was hashed
};

using Files = std::map<std::string, FileEntry, std::less<>>;  // by their names in the bundle

struct Bundle {
    std::string path;
    std::string bundle_id;
    std::vector<std::string> former_ids;  // of the bundles of earlier formats that it was made from, oldest first
    int64_t format;                       // 1 or 2
    Files files;                          // what the index lists
    RuntimeConfig config;
    Codes codes;
    Schedule schedule;

    // Open the bundle in the directory `source` and check every file that decides an image's content.
    // Throws Error (Status::bundle for most) naming the first file that is missing, altered, truncated or malformed.
    // `checked` is told the bytes of files that are checked, and of all; it may throw.
    static Bundle load(const std::string& source, const std::function<void(uint64_t, uint64_t)>& checked = {});

    bool is_of(std::string_view id) const;  // whether the id is or was this bundle's
    std::string runtime_path() const;       // of runtime.json, or config.json: what the graphs take and give

    const FileEntry* find(std::string_view name) const;  // null where the index doesn't list it
    std::string file(std::string_view name) const;       // its path

    // Throws unless every file is the one whose hash was checked: once what opens them by their names has done so.
    void check_unchanged() const;

    // Check every file that the index lists below `relative`, for example "calibrations/NAME".
    void check_directory(const std::string& relative) const;
};

// sha256 over the names and hashes of the files that decide an image's content.
std::string bundle_id(const Files& files);

// All of a file that a bundle must have. Throws Error naming it.
std::string content_of(const std::string& path);

}  // namespace ddm
