// The bundle: a directory whose index (bundle.json) holds the sha256 of every file in it.
#ifndef DDM_RT_BUNDLE_H
#define DDM_RT_BUNDLE_H

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "config.h"
#include "schedule.h"

namespace ddm {

struct FileEntry {
    std::string sha256;  // 64 lower-case hexadecimal digits
    uint64_t bytes;
};

struct Bundle {
    std::string path;
    std::string bundle_id;
    std::vector<std::pair<std::string, FileEntry>> files;  // in the index's order
    BundleConfig config;
    Codes codes;
    Schedule schedule;

    // Open the bundle in the directory `source` and check every file that decides an image's content.
    // Throws Error (Status::bundle for most) naming the first file that is missing, altered, truncated or malformed.
    static Bundle load(const std::string& source);

    const FileEntry* find(std::string_view name) const;  // null where the index doesn't list it
    std::string file(std::string_view name) const;       // its path

    // Check every file that the index lists below `relative`, for example "calibrations/NAME".
    void check_directory(const std::string& relative) const;
};

// sha256 over the names and hashes of the files that decide an image's content.
std::string bundle_id(const std::vector<std::pair<std::string, FileEntry>>& files);

}  // namespace ddm

#endif
