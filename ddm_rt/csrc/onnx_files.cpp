// Walks protobuf's wire format, of which no more is read than what leads to external data. The numbers are
// onnx.proto's.
#include "onnx_files.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cerrno>
#include <cstdint>
#include <set>
#include <system_error>

#include "error.h"
#include "text.h"

namespace ddm {
namespace {

enum class Message { other, model, graph, node, attribute, sparse, function, tensor, entry };

Message child_of(Message parent, uint64_t field) {
    switch (parent) {
        case Message::model: return field == 7 ? Message::graph : field == 25 ? Message::function : Message::other;
        case Message::graph:
            return field == 1    ? Message::node
                   : field == 5  ? Message::tensor
                   : field == 15 ? Message::sparse
                                 : Message::other;
        case Message::node: return field == 5 ? Message::attribute : Message::other;
        case Message::attribute:
            return field == 5 || field == 10    ? Message::tensor
                   : field == 6 || field == 11  ? Message::graph
                   : field == 22 || field == 23 ? Message::sparse
                                                : Message::other;
        case Message::sparse: return field == 1 || field == 2 ? Message::tensor : Message::other;
        case Message::function: return field == 7 ? Message::node : field == 11 ? Message::attribute : Message::other;
        case Message::tensor: return field == 13 ? Message::entry : Message::other;
        default: return Message::other;
    }
}

struct Malformed {};

class Walk {
public:
    std::set<std::string, std::less<>> found;

    void message(Message kind, std::string_view bytes, int depth) {
        if (depth > 100) throw Malformed();  // protobuf's own limit
        bool external = false;
        std::string key, value;
        while (!bytes.empty()) {
            const uint64_t tag = varint(bytes), field = tag >> 3;
            switch (tag & 7) {
                case 0: {
                    const uint64_t number = varint(bytes);
                    if (kind == Message::tensor && field == 14) external = number == 1;  // data_location
                    break;
                }
                case 1: take(bytes, 8); break;
                case 5: take(bytes, 4); break;
                case 2: {
                    const std::string_view content = take(bytes, varint(bytes));
                    if (kind == Message::entry && field == 1) key = content;
                    if (kind == Message::entry && field == 2) value = content;
                    const Message child = child_of(kind, field);
                    if (child != Message::other) message(child, content, depth + 1);
                    break;
                }
                default: throw Malformed();
            }
        }
        if (key == "location") of_tensor_.insert(value);
        if (kind != Message::tensor) return;
        if (external) found.merge(of_tensor_);
        of_tensor_.clear();
    }

private:
    static std::string_view take(std::string_view& bytes, uint64_t size) {
        if (size > bytes.size()) throw Malformed();
        const std::string_view taken = bytes.substr(0, size);
        bytes.remove_prefix(size);
        return taken;
    }

    static uint64_t varint(std::string_view& bytes) {
        uint64_t number = 0;
        for (int shift = 0; shift < 64; shift += 7) {
            const auto byte = static_cast<unsigned char>(take(bytes, 1)[0]);
            number |= uint64_t{byte & 127U} << shift;
            if (byte < 128) return number;
        }
        throw Malformed();
    }

    std::set<std::string, std::less<>> of_tensor_;  // tensors have none within
};

// A file's bytes where the system keeps them: of a graph of gigabytes little is looked at.
class Mapped {
public:
    explicit Mapped(const std::string& path) {
        const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
        struct stat now{};
        const bool good = file >= 0 && ::fstat(file, &now) == 0;
        size_ = static_cast<size_t>(now.st_size);
        if (good && size_) bytes_ = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file, 0);
        const int error = errno;
        if (file >= 0) ::close(file);
        if (good && bytes_ != MAP_FAILED) return;
        throw about(Status::bundle, path, concat(": cannot be read (", std::generic_category().message(error), ")"));
    }
    Mapped(const Mapped&) = delete;
    Mapped& operator=(const Mapped&) = delete;
    ~Mapped() {
        if (size_) ::munmap(bytes_, size_);
    }

    std::string_view bytes() const { return {static_cast<const char*>(bytes_), size_}; }

private:
    void* bytes_ = nullptr;
    size_t size_ = 0;
};

}  // namespace

std::vector<std::string> external_files(std::string_view graph, const std::string& path) {
    Walk walk;
    try {
        walk.message(Message::model, graph, 0);
    } catch (const Malformed&) {
        throw about(Status::bundle, path, concat(": not an ONNX graph"));
    }
    return {walk.found.begin(), walk.found.end()};
}

void check_external_files(const Bundle& bundle, const std::string& name) {
    const std::string path = bundle.file(name);
    for (const std::string& place : external_files(Mapped(path).bytes(), path)) {
        const std::string file = clean_path(place);
        if (file.find('/') == file.npos && bundle.find(file)) continue;  // beside the graph every file is hashed
        throw about(Status::bundle, path, concat(": reads ", repr(place), ", which bundle.json doesn't list"));
    }
}

}  // namespace ddm
