#include "text.h"

#include <charconv>
#include <cmath>

#include "unicode.h"

namespace ddm {
namespace {

bool is_digit(char byte) { return byte >= '0' && byte <= '9'; }

std::string written(double value, std::chars_format format, int digits) {
    std::array<char, 512> text;
    const auto end = std::to_chars(text.data(), text.data() + text.size(), value, format, digits).ptr;
    return std::isnan(value) ? "nan" : std::string(text.data(), end);
}

}  // namespace

std::string repr(double value) {
    if (!std::isfinite(value)) return std::isnan(value) ? "nan" : value < 0 ? "-inf" : "inf";
    char scientific[40];
    const auto end = std::to_chars(scientific, scientific + sizeof scientific, value, std::chars_format::scientific);
    const std::string_view shortest(scientific, static_cast<size_t>(end.ptr - scientific));
    const size_t e = shortest.find('e');
    int exponent = 0;
    std::from_chars(shortest.data() + e + 2, end.ptr, exponent);
    if (shortest[e + 1] == '-') exponent = -exponent;
    if (exponent < -4 || exponent >= 16) return std::string(shortest);
    std::string digits;
    for (const char byte : shortest.substr(0, e)) {
        if (is_digit(byte)) digits += byte;
    }
    const std::string sign = shortest[0] == '-' ? "-" : "";
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
    std::string out = "'";
    for (const char each : value) {
        const auto byte = static_cast<unsigned char>(each);
        static constexpr const char* HEX = "0123456789abcdef";
        if (byte < 0x20 || byte == 0x7F) out += {'\\', 'x', HEX[byte >> 4], HEX[byte & 15]};
        else out += each;
    }
    return out + "'";
}

std::string general(double value, int digits) { return written(value, std::chars_format::general, digits); }

std::string fixed(double value, int decimals) { return written(value, std::chars_format::fixed, decimals); }

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

std::optional<double> parse_float(std::string_view text) {
    text = strip(text);
    if (text.starts_with('+') && !text.starts_with("+-")) text.remove_prefix(1);
    double value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (end != text.data() + text.size() || error == std::errc::invalid_argument) return std::nullopt;
    // Too large, or too small to tell from 0: the exponent's sign says which.
    if (error == std::errc::result_out_of_range)
        value = text.find("e-") != text.npos || text.find("E-") != text.npos ? 0 : INFINITY;
    return value;
}

std::string clean_path(std::string_view path) {
    std::string out = path.starts_with('/') ? "/" : "";
    for (const std::string& part : split(path, '/')) {
        if (part.empty() || part == ".") continue;
        if (!out.empty() && out != "/") out += '/';
        out += part;
    }
    return out.empty() ? "." : out;
}

std::string join_path(std::string_view folder, std::string_view name) { return clean_path(concat(folder, "/", name)); }

}  // namespace ddm
