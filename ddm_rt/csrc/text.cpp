#include "text.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <clocale>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <limits>
#include <locale.h>

#include "text_tables.h"

namespace ddm {
namespace {

bool printable(char32_t code) {
    const auto after = std::upper_bound(std::begin(NOT_PRINTABLE), std::end(NOT_PRINTABLE), code,
                                        [](char32_t wanted, const CharacterRange& range) { return wanted < range.first; });
    return after == std::begin(NOT_PRINTABLE) || code > (after - 1)->last;
}

std::string escaped(char32_t code) {
    char text[16];
    std::snprintf(text, sizeof text, code < 0x100 ? "\\x%02x" : code < 0x10000 ? "\\u%04x" : "\\U%08x",
                  static_cast<unsigned>(code));
    return text;
}

locale_t c_locale() {
    static const locale_t locale = newlocale(LC_ALL_MASK, "C", nullptr);
    return locale;
}

// By printf's `format`, whatever the program's locale.
std::string printed(const char* format, double value, int digits) {
    if (std::isnan(value)) return "nan";
    std::array<char, 512> text;
    const locale_t before = uselocale(c_locale());
    std::snprintf(text.data(), text.size(), format, digits, value);
    uselocale(before);
    return text.data();
}

bool is_digit(char byte) { return byte >= '0' && byte <= '9'; }

bool is_ascii_space(char32_t code) { return code == U' ' || (code >= U'\t' && code <= U'\r'); }

// With digits and white space of all scripts as those of ASCII; nothing where there is more than these.
std::optional<std::string> in_ascii(std::string_view text) {
    if (is_ascii(text)) return std::string(text);
    std::string out;
    for (size_t at = 0; at < text.size();) {
        const auto [code, bytes] = character(text, at);
        if (bytes == 0) return std::nullopt;
        // A digit that is newer than Python's Unicode is none for it.
        const auto digit = printable(code) ? decimal_value(code) : std::nullopt;
        if (code >= 0x80 && is_white(code)) out += ' ';
        else if (digit) out += static_cast<char>('0' + *digit);
        else if (code < 0x80) out += static_cast<char>(code);
        else return std::nullopt;
        at += bytes;
    }
    return out;
}

}  // namespace

std::string repr(double value) {
    if (std::isnan(value)) return "nan";
    if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
    char scientific[40];
    const auto end = std::to_chars(scientific, scientific + sizeof scientific, value, std::chars_format::scientific);
    const std::string_view shortest(scientific, static_cast<size_t>(end.ptr - scientific));
    const size_t e = shortest.find('e');
    int exponent = 0;
    std::from_chars(shortest.data() + e + 2, end.ptr, exponent);
    if (shortest[e + 1] == '-') exponent = -exponent;
    std::string digits;
    for (const char byte : shortest.substr(0, e)) {
        if (is_digit(byte)) digits += byte;
    }
    const std::string sign = shortest[0] == '-' ? "-" : "";
    if (exponent < -4 || exponent >= 16) {
        std::string mantissa = digits.substr(0, 1);
        if (digits.size() > 1) mantissa += "." + digits.substr(1);
        const std::string size = std::to_string(std::abs(exponent));
        return sign + mantissa + (exponent < 0 ? "e-" : "e+") + (size.size() < 2 ? "0" : "") + size;
    }
    if (exponent < 0) return sign + "0." + std::string(static_cast<size_t>(-exponent - 1), '0') + digits;
    const auto whole = static_cast<size_t>(exponent) + 1;
    if (digits.size() <= whole) return sign + digits + std::string(whole - digits.size(), '0') + ".0";
    return sign + digits.substr(0, whole) + "." + digits.substr(whole);
}

std::string repr(const std::pair<double, double>& value) {
    return concat("(", repr(value.first), ", ", repr(value.second), ")");
}

std::string repr(const std::array<double, 3>& value) {
    return concat("(", repr(value[0]), ", ", repr(value[1]), ", ", repr(value[2]), ")");
}

std::string repr(std::string_view value) {
    const bool single = value.find('\'') == value.npos || value.find('"') != value.npos;
    const char quote = single ? '\'' : '"';
    std::string out(1, quote);
    for (size_t at = 0; at < value.size();) {
        const auto [code, bytes] = character(value, at);
        if (bytes == 0) {
            out += escaped(0xDC00 + code);  // as a name of a file that isn't UTF-8 looks in Python
        } else if (code == U'\n') {
            out += "\\n";
        } else if (code == U'\r') {
            out += "\\r";
        } else if (code == U'\t') {
            out += "\\t";
        } else if (code == U'\\' || code == static_cast<char32_t>(quote)) {
            out += '\\';
            out += static_cast<char>(code);
        } else if (printable(code)) {
            out += value.substr(at, bytes);
        } else {
            out += escaped(code);
        }
        at += bytes ? bytes : 1;
    }
    return out + quote;
}

std::string general(double value, int digits) { return printed("%.*g", value, digits); }

std::string fixed(double value, int decimals) { return printed("%.*f", value, decimals); }

std::string join(std::string_view between, const std::vector<std::string>& parts) {
    std::string out;
    for (size_t i = 0; i < parts.size(); ++i) {
        if (i) out += between;
        out += parts[i];
    }
    return out;
}

std::vector<std::string> split(std::string_view text, char at) {
    std::vector<std::string> parts;
    while (true) {
        const size_t end = text.find(at);
        parts.emplace_back(text.substr(0, end));
        if (end == text.npos) return parts;
        text.remove_prefix(end + 1);
    }
}

std::string_view strip(std::string_view text, bool (*blank)(char32_t)) {
    while (!text.empty()) {
        const auto [code, bytes] = character(text, 0);
        if (bytes == 0 || !blank(code)) break;
        text.remove_prefix(bytes);
    }
    while (!text.empty()) {
        size_t first = text.size() - 1;
        while (first > 0 && (static_cast<unsigned char>(text[first]) & 0xC0) == 0x80) --first;
        const auto [code, bytes] = character(text, first);
        if (first + bytes != text.size() || !blank(code)) break;
        text.remove_suffix(bytes);
    }
    return text;
}

bool is_white(char32_t code) {
    return code == U' ' || (code >= U'\t' && code <= U'\r') || (code >= 0x1C && code <= 0x1F) || code == 0x85 ||
           code == 0xA0 || code == 0x1680 || (code >= 0x2000 && code <= 0x200A) || code == 0x2028 || code == 0x2029 ||
           code == 0x202F || code == 0x205F || code == 0x3000;
}

std::optional<double> parse_float(std::string_view given) {
    const std::optional<std::string> ascii = in_ascii(given);
    if (!ascii) return std::nullopt;
    const std::string_view text = strip(*ascii, is_ascii_space);
    std::string plain_digits;
    std::string lower;
    for (size_t i = 0; i < text.size(); ++i) {
        const char byte = text[i];
        if (byte == '_') {  // between digits alone
            if (i == 0 || i + 1 == text.size() || !is_digit(text[i - 1]) || !is_digit(text[i + 1])) return std::nullopt;
            continue;
        }
        plain_digits += byte;
        lower += byte >= 'A' && byte <= 'Z' ? static_cast<char>(byte + 32) : byte;
    }
    const std::string_view unsigned_part =
        std::string_view(lower).substr(!lower.empty() && (lower[0] == '-' || lower[0] == '+') ? 1 : 0);
    const double sign = lower[0] == '-' ? -1 : 1;
    if (unsigned_part == "nan") return std::numeric_limits<double>::quiet_NaN();
    if (unsigned_part == "inf" || unsigned_part == "infinity") return sign * std::numeric_limits<double>::infinity();
    if (unsigned_part.empty() || lower.find_first_not_of("0123456789.e+-") != lower.npos) return std::nullopt;
    char* end = nullptr;
    const double value = strtod_l(plain_digits.c_str(), &end, c_locale());
    if (end != plain_digits.c_str() + plain_digits.size()) return std::nullopt;
    return value;
}

Character character(std::string_view text, size_t at) {
    const auto byte = [&](size_t i) { return static_cast<unsigned char>(at + i < text.size() ? text[at + i] : 0); };
    const auto follows = [&](size_t i) { return at + i < text.size() && (byte(i) & 0xC0) == 0x80; };
    const unsigned char first = byte(0);
    if (at >= text.size()) return {0, 0};
    if (first < 0x80) return {first, 1};
    const size_t length = first >= 0xF0 ? 4 : first >= 0xE0 ? 3 : 2;
    if (first < 0xC2 || first > 0xF4) return {first, 0};
    char32_t code = first & (0xFF >> (length + 1));
    for (size_t i = 1; i < length; ++i) {
        if (!follows(i)) return {first, 0};
        code = code << 6 | (byte(i) & 0x3F);
    }
    const char32_t least = length == 2 ? 0x80 : length == 3 ? 0x800 : 0x10000;
    if (code < least || code > 0x10FFFF || (code >= 0xD800 && code < 0xE000)) return {first, 0};
    return {code, length};
}

size_t invalid_utf8(std::string_view text) {
    for (size_t at = 0; at < text.size();) {
        const size_t bytes = character(text, at).bytes;
        if (bytes == 0) return at;
        at += bytes;
    }
    return text.npos;
}

size_t code_points(std::string_view utf8) {
    size_t count = 0;
    for (const char byte : utf8) count += (static_cast<unsigned char>(byte) & 0xC0) != 0x80;
    return count;
}

bool is_ascii(std::string_view text) {
    return std::all_of(text.begin(), text.end(), [](char byte) { return static_cast<unsigned char>(byte) < 0x80; });
}

std::optional<int> decimal_value(char32_t code) {
    const auto after = std::upper_bound(std::begin(ZEROS), std::end(ZEROS), code);
    if (after == std::begin(ZEROS) || code > *(after - 1) + 9) return std::nullopt;
    return static_cast<int>(code - *(after - 1));
}

bool is_printable(std::string_view utf8) {
    for (size_t at = 0; at < utf8.size();) {
        const auto [code, bytes] = character(utf8, at);
        if (bytes == 0 || !printable(code)) return false;
        at += bytes;
    }
    return true;
}

std::string clean_path(std::string_view path) {
    std::string out;
    size_t slashes = 0;
    while (slashes < path.size() && path[slashes] == '/') ++slashes;
    out = slashes == 0 ? "" : slashes == 2 ? "//" : "/";
    bool first = true;
    for (const std::string& part : split(path, '/')) {
        if (part.empty() || part == ".") continue;
        if (!first) out += '/';
        out += part;
        first = false;
    }
    return out.empty() ? "." : out;
}

std::string join_path(std::string_view folder, std::string_view name) {
    return clean_path(concat(folder, folder.ends_with('/') ? "" : "/", name));
}

}  // namespace ddm
