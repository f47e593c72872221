#include "numerals.h"

#include <algorithm>
#include <charconv>
#include <string>

#include "text.h"
#include "unicode.h"

namespace ddm {
namespace {

// Without the white space at both ends that Rust sees: the separators of ASCII, white for Python, are none.
std::string_view trimmed(std::string_view text) { return strip(text, unicode::is_space); }

bool all_digits(std::string_view text) {
    return !text.empty() && text.find_first_not_of("0123456789") == text.npos;
}

}  // namespace

std::optional<json::Integer> whole_number(std::string_view text) {
    text = trimmed(text);
    json::Integer out{.negative = text.starts_with('-')};
    if (out.negative || text.starts_with('+')) text.remove_prefix(1);
    if (const size_t point = text.find('.'); point != text.npos) {
        const std::string_view fraction = text.substr(point + 1);
        if (fraction.empty() || fraction.find_first_not_of('0') != fraction.npos) return std::nullopt;
        text = text.substr(0, point);
    }
    std::string digits;
    for (const std::string& part : split(text, '_')) {
        if (!all_digits(part)) return std::nullopt;
        digits += part;
    }
    digits.erase(0, std::min(digits.find_first_not_of('0'), digits.size() - 1));
    out.wide = std::from_chars(digits.data(), digits.data() + digits.size(), out.magnitude).ec != std::errc();
    if (out.wide) out.digits = std::make_shared<const std::string>(std::move(digits));
    return out;
}

std::optional<double> decimal_number(std::string_view text) {
    text = trimmed(text);
    // An underscore may stand anywhere but at the ends and beside another.
    if (text.starts_with('_') || text.ends_with('_') || text.find("__") != text.npos) return std::nullopt;
    std::string kept(text);
    std::erase(kept, '_');
    if (!is_ascii(kept) || strip(kept) != kept) return std::nullopt;
    return parse_float(kept);
}

}  // namespace ddm
