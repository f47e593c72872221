#include "files.h"

#include <array>
#include <cerrno>
#include <fcntl.h>
#include <sys/stat.h>
#include <system_error>
#include <unistd.h>
#include <vector>

#include "../../kernels/csrc/sha256.h"

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

}  // namespace

std::string read_file(const std::string& path) {
    const Descriptor file(path, O_RDONLY);
    std::string content;
    std::array<char, 1 << 16> part;
    while (const size_t count = file.read(part.data(), part.size())) content.append(part.data(), count);
    return content;
}

std::string sha256_of_file(const std::string& path) {
    const Descriptor file(path, O_RDONLY);
    sha256_state state;
    sha256_begin(&state);
    std::vector<char> part(1 << 18);
    while (const size_t count = file.read(part.data(), part.size())) sha256_add(&state, part.data(), count);
    char hex[65];
    sha256_end(&state, hex);
    return hex;
}

std::string sha256_of(std::string_view data) {
    char hex[65];
    sha256_hex(data.data(), data.size(), hex);
    return hex;
}

}  // namespace ddm
