#include "output.h"

#include <fcntl.h>
#include <png.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <system_error>
#include <vector>

namespace cli {
namespace {

namespace fs = std::filesystem;

constexpr size_t kHeader = 33;  // bytes of a PNG before the first chunk that may be text
constexpr int64_t kSheetImages = 256, kSheetPixels = 1 << 25, kSheetGap = 2;

[[noreturn]] void fail() { throw std::system_error(errno, std::generic_category()); }

void write(const fs::path& path, const std::string& content) {
    const int file = open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (file < 0) fail();
    size_t done = 0;
    while (done < content.size()) {
        const ssize_t count = ::write(file, content.data() + done, content.size() - done);
        if (count < 0 && errno == EINTR) continue;
        if (count < 0) break;
        done += static_cast<size_t>(count);
    }
    const bool good = done == content.size() && fsync(file) == 0;
    const int error = errno;
    close(file);
    errno = error;
    if (!good) fail();
}

// The first images in a square grid on white, as ddm_rt/sample/generation.py has it.
std::string contact_sheet(const ddm_rt_images* images) {
    const int64_t height = ddm_rt_images_height(images), width = ddm_rt_images_width(images);
    const int64_t down = height + kSheetGap, right = width + kSheetGap;
    const int64_t n =
        std::min({ddm_rt_images_count(images), kSheetImages, std::max<int64_t>(kSheetPixels / (down * right), 1)});
    const auto columns = static_cast<int64_t>(std::ceil(std::sqrt(static_cast<double>(n))));
    const int64_t sheet_height = (n + columns - 1) / columns * down + kSheetGap;
    const int64_t sheet_width = columns * right + kSheetGap;
    std::vector<uint8_t> sheet(static_cast<size_t>(sheet_height * sheet_width * 3), 255);
    for (int64_t i = 0; i < n; i++) {
        const int64_t top = i / columns * down + kSheetGap, left = i % columns * right + kSheetGap;
        for (int64_t row = 0; row < height; row++) {
            std::memcpy(&sheet[static_cast<size_t>(((top + row) * sheet_width + left) * 3)],
                        ddm_rt_images_rgb(images, i) + row * width * 3, static_cast<size_t>(width * 3));
        }
    }
    return png(sheet.data(), sheet_height, sheet_width, ddm_rt_images_xmp(images, DDM_RT_ALL));
}

void fill(const ddm_rt_images* images, const fs::path& folder) {
    const int64_t height = ddm_rt_images_height(images), width = ddm_rt_images_width(images);
    for (int64_t i = 0; i < ddm_rt_images_count(images); i++) {
        write(folder / ddm_rt_images_file(images, i),
              png(ddm_rt_images_rgb(images, i), height, width, ddm_rt_images_xmp(images, i)));
    }
    write(folder / "contact_sheet.png", contact_sheet(images));
    write(folder / "manifest.json", ddm_rt_images_manifest(images));
}

std::string big_endian(size_t value) {
    std::string bytes;
    for (int shift = 24; shift >= 0; shift -= 8) bytes += static_cast<char>(value >> shift & 255);
    return bytes;
}

// PNG's iTXt: keyword, not compressed, no language and no translated keyword. libpng writes text through setjmp alone.
std::string text_chunk(const std::string& keyword, const std::string& text) {
    const std::string content = "iTXt" + keyword + std::string(5, '\0') + text;
    const uLong sum = crc32(0, reinterpret_cast<const Bytef*>(content.data()), static_cast<uInt>(content.size()));
    return big_endian(content.size() - 4) + content + big_endian(sum);
}

}  // namespace

std::string png(const uint8_t* rgb, int64_t height, int64_t width, const char* xmp) {
    png_image image{};
    image.version = PNG_IMAGE_VERSION;
    image.format = PNG_FORMAT_RGB;
    image.width = static_cast<png_uint_32>(width);
    image.height = static_cast<png_uint_32>(height);
    png_alloc_size_t size = PNG_IMAGE_PNG_SIZE_MAX(image);
    std::string bytes(size, '\0');
    if (!png_image_write_to_memory(&image, bytes.data(), &size, 0, rgb, 0, nullptr)) {
        throw std::runtime_error(std::string("libpng: ") + image.message);
    }
    bytes.resize(size);
    if (xmp) bytes.insert(kHeader, text_chunk("XML:com.adobe.xmp", xmp));
    return bytes;
}

void check(ddm_rt_error* error) {
    if (!error) return;
    const std::string message = ddm_rt_error_message(error);
    ddm_rt_error_destroy(error);
    throw Refused(message);
}

void check_free(const fs::path& out) {
    std::error_code ignored;
    if (fs::exists(out, ignored) && (!fs::is_directory(out, ignored) || !fs::is_empty(out, ignored))) {
        throw Refused(out.string() + " exists and is not an empty directory; choose another --out");
    }
    fs::path parent = fs::absolute(out, ignored).parent_path();
    while (!fs::exists(parent, ignored) && parent.has_relative_path()) parent = parent.parent_path();
    if (!fs::is_directory(parent, ignored)) {
        throw Refused(out.string() + ": " + parent.string() + " is a file; expected a directory");
    }
}

void save(const ddm_rt_images* images, const fs::path& out) {
    check_free(out);
    fs::path made;
    try {
        if (out.has_parent_path()) fs::create_directories(out.parent_path());
        std::string name = (out.parent_path() / ("." + out.filename().string() + ".XXXXXX")).string();
        if (!mkdtemp(name.data())) fail();
        made = name;
        fill(images, made);
        if (chmod(made.c_str(), 0755) != 0) fail();
        if (fs::exists(out)) fs::remove(out);
        fs::rename(made, out);
    } catch (...) {
        std::error_code ignored;
        if (!made.empty()) fs::remove_all(made, ignored);
        try {
            throw;
        } catch (const std::system_error& error) {  // fs::filesystem_error is one
            throw Refused(out.string() + ": cannot be written (" + error.code().message() +
                          "); nothing was left there");
        }
    }
}

}  // namespace cli
