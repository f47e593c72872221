#include "unicode.h"

#include <utf8proc.h>
#include <algorithm>
#include <cstdlib>
#include <memory>

namespace ddm {
namespace {

// The character at `at` and its bytes; no bytes where there is none.
std::pair<char32_t, size_t> character(std::string_view text, size_t at) {
    utf8proc_int32_t code = 0;
    const auto* bytes = reinterpret_cast<const utf8proc_uint8_t*>(text.data()) + at;
    const auto size = utf8proc_iterate(bytes, static_cast<utf8proc_ssize_t>(text.size() - at), &code);
    return {static_cast<char32_t>(code), size > 0 ? static_cast<size_t>(size) : 0};
}

utf8proc_category_t category(char32_t character) { return utf8proc_category(static_cast<utf8proc_int32_t>(character)); }

std::string mapped(std::string_view text, int options) {
    utf8proc_uint8_t* out = nullptr;
    const auto* bytes = reinterpret_cast<const utf8proc_uint8_t*>(text.data());
    const auto size = utf8proc_map(bytes, static_cast<utf8proc_ssize_t>(text.size()), &out,
                                   static_cast<utf8proc_option_t>(options | UTF8PROC_STABLE));
    const std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> owned(out, std::free);
    if (size < 0) throw std::bad_alloc();  // the text was checked before
    return {reinterpret_cast<const char*>(out), static_cast<size_t>(size)};
}

}  // namespace

size_t invalid_utf8(std::string_view text) {
    for (size_t at = 0; at < text.size();) {
        const size_t bytes = character(text, at).second;
        if (bytes == 0) return at;
        at += bytes;
    }
    return text.npos;
}

size_t code_points(std::string_view utf8) { return decoded(utf8).size(); }

bool is_printable(std::string_view utf8) {
    for (const char32_t each : decoded(utf8)) {
        const auto kind = category(each);
        const bool hidden =
            kind == UTF8PROC_CATEGORY_CN || (kind >= UTF8PROC_CATEGORY_ZS && kind <= UTF8PROC_CATEGORY_CO);
        if (hidden && each != U' ') return false;
    }
    return invalid_utf8(utf8) == utf8.npos;
}

std::u32string decoded(std::string_view utf8) {
    std::u32string out;
    for (size_t at = 0; at < utf8.size();) {
        const auto [code, bytes] = character(utf8, at);
        if (bytes == 0) break;
        out += code;
        at += bytes;
    }
    return out;
}

void append_utf8(std::string& out, char32_t character) {
    utf8proc_uint8_t bytes[4];
    const auto size = utf8proc_encode_char(static_cast<utf8proc_int32_t>(character), bytes);
    out.append(reinterpret_cast<const char*>(bytes), static_cast<size_t>(size));
}

bool is_letter(char32_t character) {
    return category(character) >= UTF8PROC_CATEGORY_LU && category(character) <= UTF8PROC_CATEGORY_LO;
}

bool is_number(char32_t character) {
    return category(character) >= UTF8PROC_CATEGORY_ND && category(character) <= UTF8PROC_CATEGORY_NO;
}

bool is_white(char32_t c) {
    return (c >= 0x9 && c <= 0xD) || c == 0x85 ||
           (category(c) >= UTF8PROC_CATEGORY_ZS && category(c) <= UTF8PROC_CATEGORY_ZP);
}

bool is_blank(char32_t c) { return is_white(c) || (c >= 0x1C && c <= 0x1F); }

std::string_view strip(std::string_view text) {
    size_t from = text.size(), to = 0;
    for (size_t at = 0; at < text.size();) {
        const auto [code, bytes] = character(text, at);
        const size_t next = at + std::max<size_t>(bytes, 1);
        if (bytes == 0 || !is_blank(code)) from = std::min(from, at), to = next;
        at = next;
    }
    return text.substr(from, to - std::min(from, to));
}

std::string composed(std::string_view utf8) { return mapped(utf8, UTF8PROC_COMPOSE); }

std::string folded(std::string_view utf8) {
    return mapped(mapped(mapped(utf8, UTF8PROC_COMPOSE | UTF8PROC_COMPAT), UTF8PROC_CASEFOLD | UTF8PROC_COMPOSE),
                  UTF8PROC_COMPOSE | UTF8PROC_COMPAT);
}

char32_t lowered(char32_t character) {
    return static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(character)));
}

}  // namespace ddm
