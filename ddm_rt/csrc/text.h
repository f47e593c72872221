// Text, and numbers as text: targets, manifests and ledgers have numbers as Python writes them, to the letter.
#pragma once

#include <array>
#include <concepts>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace ddm {

std::string repr(double value);  // the shortest digits that read back equal: "0.1", "1e-05", "inf"
std::string repr(const std::pair<double, double>& value);  // "(0.1, 1e-05)"
std::string repr(const std::array<double, 3>& value);
std::string repr(std::string_view value);       // in quotes, for a message
std::string general(double value, int digits);  // as "%.{digits}g"
std::string fixed(double value, int decimals);  // as "%.{decimals}f"

inline std::string plain(std::string_view value) { return std::string(value); }
inline std::string plain(char value) { return std::string(1, value); }
template <std::integral T>
std::string plain(T value) {
    return std::to_string(value);
}

// Its parts in a row. No floating-point part: `repr` or `general` must say how it is written.
template <typename... Parts>
std::string concat(const Parts&... parts) {
    return (std::string() + ... + plain(parts));
}

std::string join(std::string_view between, const std::vector<std::string>& parts);
std::vector<std::string> split(std::string_view text, char at);

// A decimal number in ASCII, or "inf" or "nan", with white space around; none where it is no such thing.
std::optional<double> parse_float(std::string_view text);

// A path without doubled or trailing slashes and single dots, as Python's pathlib has it.
std::string clean_path(std::string_view path);
std::string join_path(std::string_view folder, std::string_view name);

}  // namespace ddm
