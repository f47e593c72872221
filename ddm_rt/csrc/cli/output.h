// What `sample` writes: images, a contact sheet and the manifest, all of them or nothing.
#ifndef DDM_CLI_OUTPUT_H
#define DDM_CLI_OUTPUT_H

#include <cstdint>
#include <filesystem>
#include <stdexcept>
#include <string>

#include "ddm_rt.h"

namespace cli {

// A user's mistake: one line on stderr and exit code 2.
struct Refused : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// Frees the error. Throws Refused with its message where there is one.
void check(ddm_rt_error* error);

// Throws Refused where `out` can't become a new directory: it is occupied, or lies below a file.
void check_free(const std::filesystem::path& out);

// Throws Refused where `out` can't be written; nothing is left there then.
void save(const ddm_rt_images* images, const std::filesystem::path& out);

// A PNG's bytes of RGB ones, with an XMP packet unless that is null. Throws std::runtime_error.
std::string png(const uint8_t* rgb, int64_t height, int64_t width, const char* xmp = nullptr);

}  // namespace cli

#endif
