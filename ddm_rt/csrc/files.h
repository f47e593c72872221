// Reading files and their hashes.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace ddm {

// Throws std::system_error with what `errno` says.
[[noreturn]] void fail_with_errno(const std::string& path);

// All of a file. Throws std::system_error; its code().message() is what Python calls strerror.
std::string read_file(const std::string& path);

// Which file it is, and when it was last written: two that are equal have the same content, unless somebody set the
// clock.
struct FileState {
    uint64_t device, inode;
    int64_t bytes, seconds, nanoseconds;
    bool operator==(const FileState&) const = default;
};

// Throws std::system_error, as for a directory.
FileState state_of_file(const std::string& path);

// 64 lower-case hexadecimal digits. The first throws std::system_error.
std::string sha256_of_file(const std::string& path);
std::string sha256_of(std::string_view data);

}  // namespace ddm
