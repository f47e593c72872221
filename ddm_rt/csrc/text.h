// Text as Python writes and reads it: messages, manifests and targets must agree with that side to the letter.
#ifndef DDM_RT_TEXT_H
#define DDM_RT_TEXT_H

#include <array>
#include <concepts>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace ddm {

std::string repr(double value);            // the shortest digits that read back equal: "0.1", "1e-05", "inf"
std::string repr(const std::pair<double, double>& value);  // "(0.1, 1e-05)"
std::string repr(const std::array<double, 3>& value);
std::string repr(std::string_view value);  // in quotes, with escapes
std::string general(double value, int digits);  // as "%.{digits}g"
std::string fixed(double value, int decimals);  // as "%.{decimals}f"

inline std::string plain(std::string_view value) { return std::string(value); }
inline std::string plain(char value) { return std::string(1, value); }
template <std::integral T>
std::string plain(T value) { return std::to_string(value); }

// Its parts in a row. No floating-point part: `repr` or `general` must say how it is written.
template <typename... Parts>
std::string concat(const Parts&... parts) { return (std::string() + ... + plain(parts)); }

std::string join(std::string_view between, const std::vector<std::string>& parts);
std::vector<std::string> split(std::string_view text, char at);

struct Character {
    char32_t code;
    size_t bytes;  // 0 where UTF-8 ends or is broken; then `code` is the byte
};

// That which begins at the byte `at`. No overlong forms and no halves of pairs, as Python's strict decoder has it.
Character character(std::string_view utf8, size_t at);

// Where in UTF-8 the first byte stands that isn't, or npos.
size_t invalid_utf8(std::string_view text);
size_t code_points(std::string_view utf8);
bool is_ascii(std::string_view text);
bool is_white(char32_t character);            // what str.isspace() says
bool is_printable(std::string_view utf8);     // what str.isprintable() says
std::optional<int> decimal_value(char32_t character);  // of a digit of any script, as in the pattern \d

// Without the characters at both ends that are `blank`.
std::string_view strip(std::string_view text, bool (*blank)(char32_t) = is_white);

// What float() makes of text; none where it raises.
std::optional<double> parse_float(std::string_view text);

// A path as Python's pathlib writes it: without doubled or trailing slashes and single dots.
std::string clean_path(std::string_view path);
std::string join_path(std::string_view folder, std::string_view name);

}  // namespace ddm

#endif
