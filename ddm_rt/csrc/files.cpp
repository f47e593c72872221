#define OPENSSL_SUPPRESS_DEPRECATED
#include "files.h"

#include <fcntl.h>
#include <openssl/sha.h>
#include <sys/stat.h>
#include <unistd.h>
#include <array>
#include <cerrno>
#include <system_error>
#include <vector>

namespace ddm {

void fail_with_errno(const std::string& path) { throw std::system_error(errno, std::generic_category(), path); }

namespace {

class Descriptor {
public:
    Descriptor(const std::string& path, int flags) : number(::open(path.c_str(), flags | O_CLOEXEC)), path_(path) {
        if (number < 0) fail_with_errno(path);
    }
    ~Descriptor() { ::close(number); }
    Descriptor(const Descriptor&) = delete;
    Descriptor& operator=(const Descriptor&) = delete;

    // 0 at the file's end.
    size_t read(char* out, size_t most) const {
        while (true) {
            const ssize_t count = ::read(number, out, most);
            if (count >= 0) return static_cast<size_t>(count);
            if (errno != EINTR) fail_with_errno(path_);
        }
    }

    const int number;

private:
    std::string path_;
};

// OpenSSL's, which takes the processor's instructions for it. EVP's functions would load the providers: 2.4 MiB of a
// process.
class Sha256 {
public:
    Sha256() { SHA256_Init(&context_); }
    void add(std::string_view data) { SHA256_Update(&context_, data.data(), data.size()); }
    std::string end() {
        std::array<unsigned char, SHA256_DIGEST_LENGTH> digest;
        SHA256_Final(digest.data(), &context_);
        std::string hex;
        for (const unsigned char byte : digest) hex += {"0123456789abcdef"[byte >> 4], "0123456789abcdef"[byte & 15]};
        return hex;
    }

private:
    SHA256_CTX context_;
};

}  // namespace

std::string read_file(const std::string& path) {
    const Descriptor file(path, O_RDONLY);
    std::string content;
    std::array<char, 1 << 16> part;
    while (const size_t count = file.read(part.data(), part.size())) content.append(part.data(), count);
    return content;
}

FileState state_of_file(const std::string& path) {
    struct stat found;
    if (::stat(path.c_str(), &found)) fail_with_errno(path);
    if (!S_ISREG(found.st_mode)) throw std::system_error(EISDIR, std::generic_category(), path);
    return {found.st_dev, found.st_ino, found.st_size, found.st_mtim.tv_sec, found.st_mtim.tv_nsec};
}

std::string sha256_of_file(const std::string& path) {
    const Descriptor file(path, O_RDONLY);
    Sha256 hash;
    std::vector<char> part(1 << 18);
    while (const size_t count = file.read(part.data(), part.size())) hash.add({part.data(), count});
    return hash.end();
}

std::string sha256_of(std::string_view data) {
    Sha256 hash;
    hash.add(data);
    return hash.end();
}

}  // namespace ddm
