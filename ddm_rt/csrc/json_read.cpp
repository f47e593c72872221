// The reader. pydantic's reader (jiter) and Python's own accept the same files, but for lone surrogates, a byte order
// mark and depth; they word and place errors differently, so each failure here carries both.
#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <numeric>

#include "error.h"
#include "json.h"
#include "text.h"
#include "unicode.h"

namespace ddm::json {
namespace {

constexpr int DEEPEST = 201;         // jiter's limit, which keeps the stack small
constexpr size_t MOST_DIGITS = 4300;  // of a whole number, in both

class Reader {
public:
    Reader(std::string_view text, Dialect dialect) : text_(text), python_(dialect == Dialect::python) {
        if (!python_) return;
        if (text_.starts_with("\xEF\xBB\xBF")) text_.remove_prefix(3);
        for (size_t at = 0; at < text_.size();) {
            const size_t broken = invalid_utf8(text_.substr(at));
            if (broken == text_.npos) break;
            at += broken;
            if (!is_half_of_pair(at)) refuse_encoding(at);
            at += 3;
        }
    }

    Value document() {
        Value value = read_value(0);
        skip_space();
        if (at_ < text_.size()) fail("trailing characters", "Extra data", at_);
        return value;
    }

private:
    [[noreturn]] void fail(const char* pydantic, const char* python, size_t at) const { fail(pydantic, at, python, at); }

    [[noreturn]] void fail(const char* pydantic, size_t at, const char* python, size_t python_at) const {
        const size_t found = python_ ? python_at : at;
        const std::string_view before = text_.substr(0, std::min(found + (python_ ? 0 : 1), text_.size()));
        const auto line = static_cast<size_t>(std::count(before.begin(), before.end(), '\n')) + 1;
        const size_t start = before.rfind('\n') == before.npos ? 0 : before.rfind('\n') + 1;
        if (!python_) {
            const size_t column = (found < text_.size() ? found + 1 : text_.size()) - start;
            throw Error(concat(pydantic, " at line ", line, " column ", column));
        }
        const size_t column = code_points(before.substr(start)) + 1;
        throw Error(concat(python, ": line ", line, " column ", column, " (char ", code_points(before), ")"));
    }

    // Python's reader lets those through.
    bool is_half_of_pair(size_t at) const {
        const auto within = [&](size_t i, unsigned char low) {
            return at + i < text_.size() && static_cast<unsigned char>(text_[at + i]) >= low &&
                   static_cast<unsigned char>(text_[at + i]) <= 0xBF;
        };
        return text_[at] == '\xED' && within(1, 0xA0) && within(2, 0x80);
    }

    // What bytes.decode() says of the byte at `at`.
    [[noreturn]] void refuse_encoding(size_t at) const {
        const auto byte = [&](size_t i) { return static_cast<unsigned char>(text_[i]); };
        const unsigned char first = byte(at);
        const size_t length = first < 0xC2 || first > 0xF4 ? 1 : first >= 0xF0 ? 4 : first >= 0xE0 ? 3 : 2;
        size_t valid = 1;
        while (valid < length && at + valid < text_.size()) {
            const unsigned char next = byte(at + valid);
            const unsigned char low = valid > 1 ? 0x80 : first == 0xE0 ? 0xA0 : first == 0xF0 ? 0x90 : 0x80;
            const unsigned char high = valid > 1 ? 0xBF : first == 0xED ? 0x9F : first == 0xF4 ? 0x8F : 0xBF;
            if (next < low || next > high) break;
            ++valid;
        }
        const char* reason = length == 1                       ? "invalid start byte"
                             : at + valid < text_.size() ? "invalid continuation byte"
                                                               : "unexpected end of data";
        char number[8];
        std::snprintf(number, sizeof number, "0x%02x", first);
        const std::string bytes = valid == 1 ? concat("byte ", number, " in position ", at)
                                             : concat("bytes in position ", at, "-", at + valid - 1);
        throw Error(concat("'utf-8' codec can't decode ", bytes, ": ", reason));
    }

    bool ends() const { return at_ >= text_.size(); }
    char here() const { return text_[at_]; }

    void skip_space() {
        while (!ends() && std::strchr(" \t\n\r", here()) && here()) ++at_;
    }

    Value read_value(int depth) {
        skip_space();
        if (ends()) fail("EOF while parsing a value", "Expecting value", at_);
        switch (here()) {
        case '{': return read_object(depth + 1);
        case '[': return read_list(depth + 1);
        case '"': return Value(read_string());
        case 't': return read_word("true", Value(true), at_);
        case 'f': return read_word("false", Value(false), at_);
        case 'n': return read_word("null", Value(nullptr), at_);
        case 'N': return read_word("NaN", Value(std::numeric_limits<double>::quiet_NaN()), at_);
        case 'I': return read_word("Infinity", Value(std::numeric_limits<double>::infinity()), at_);
        default: break;
        }
        if (here() == '-' || is_digit(at_)) return read_number();
        fail("expected value", "Expecting value", at_);
    }

    Value read_word(std::string_view word, Value meaning, size_t start) {
        for (const char letter : word) {
            if (ends()) fail("EOF while parsing a value", at_, "Expecting value", start);
            if (here() != letter) fail("expected ident", at_, "Expecting value", start);
            ++at_;
        }
        return meaning;
    }

    bool is_digit(size_t at) const { return at < text_.size() && text_[at] >= '0' && text_[at] <= '9'; }

    // Where a fraction or an exponent that begins at `at` ends; `at` where Python sees none. jiter insists on digits.
    size_t after_digits(size_t at, size_t digits) const {
        if (!is_digit(digits)) {
            if (python_) return at;
            if (digits >= text_.size()) fail("EOF while parsing a value", "", digits);
            fail("invalid number", "", digits);
        }
        while (is_digit(digits)) ++digits;
        return digits;
    }

    Value read_number() {
        const size_t start = at_;
        const bool negative = here() == '-';
        size_t end = start + negative;
        if (end >= text_.size()) fail("EOF while parsing a value", end, "Expecting value", start);
        if (negative && text_[end] == 'I') {
            at_ = end;
            return read_word("Infinity", Value(-std::numeric_limits<double>::infinity()), start);
        }
        if (!is_digit(end)) fail("invalid number", end, "Expecting value", start);
        const size_t first = end;
        if (text_[end] == '0') {
            ++end;
            if (!python_ && is_digit(end)) fail("invalid number", "", end);
        } else {
            while (is_digit(end)) ++end;
        }
        const size_t digits = end - first;
        if (digits > MOST_DIGITS && !python_) fail("number out of range", "", first + MOST_DIGITS + 1);
        const size_t whole = end;
        if (end < text_.size() && text_[end] == '.') end = after_digits(end, end + 1);
        if (end < text_.size() && (text_[end] == 'e' || text_[end] == 'E')) {
            const bool sign = end + 1 < text_.size() && (text_[end + 1] == '+' || text_[end + 1] == '-');
            end = after_digits(end, end + 1 + sign);
        }
        if (digits > MOST_DIGITS && end == whole) {
            throw Error(concat("Exceeds the limit (4300 digits) for integer string conversion: value has ", digits,
                               " digits; use sys.set_int_max_str_digits() to increase the limit"));
        }
        at_ = end;
        return number(text_.substr(start, end - start), negative, end == whole);
    }

    static Value number(std::string_view written, bool negative, bool whole) {
        if (!whole) return Value(parse_float(written).value_or(0));
        Integer integer{.negative = negative};
        const std::string_view digits = written.substr(negative);
        integer.wide = std::from_chars(digits.data(), digits.data() + digits.size(), integer.magnitude).ec != std::errc();
        if (integer.wide) integer.digits = std::make_shared<const std::string>(digits);
        return Value(integer);
    }

    Value read_list(int depth) {
        check_depth(depth);
        ++at_;
        List list;
        skip_space();
        if (ends()) fail("EOF while parsing a list", "Expecting value", at_);
        if (here() == ']') {
            ++at_;
            return Value(std::move(list));
        }
        while (true) {
            list.push_back(read_value(depth));
            skip_space();
            if (ends()) fail("EOF while parsing a list", "Expecting ',' delimiter", at_);
            if (here() == ']') break;
            if (here() != ',') fail("expected `,` or `]`", "Expecting ',' delimiter", at_);
            ++at_;
            skip_space();
            if (!ends() && here() == ']') fail("trailing comma", "Expecting value", at_);
        }
        ++at_;
        return Value(std::move(list));
    }

    Value read_object(int depth) {
        static constexpr const char* NAME = "Expecting property name enclosed in double quotes";
        check_depth(depth);
        ++at_;
        Object object;
        skip_space();
        if (ends()) fail("EOF while parsing an object", NAME, at_);
        if (here() == '}') {
            ++at_;
            return Value(std::move(object));
        }
        while (true) {
            if (here() != '"') fail("key must be a string", NAME, at_);
            std::string key = read_string();
            skip_space();
            if (ends()) fail("EOF while parsing an object", "Expecting ':' delimiter", at_);
            if (here() != ':') fail("expected `:`", "Expecting ':' delimiter", at_);
            ++at_;
            object.emplace_back(std::move(key), read_value(depth));
            skip_space();
            if (ends()) fail("EOF while parsing an object", "Expecting ',' delimiter", at_);
            if (here() == '}') break;
            if (here() != ',') fail("expected `,` or `}`", "Expecting ',' delimiter", at_);
            ++at_;
            skip_space();
            if (ends()) fail("EOF while parsing a value", NAME, at_);
            if (here() == '}') fail("trailing comma", NAME, at_);
        }
        ++at_;
        keep_last_of_each_key(object);
        return Value(std::move(object));
    }

    static void keep_last_of_each_key(Object& object) {
        std::vector<size_t> order(object.size());
        std::iota(order.begin(), order.end(), size_t{0});
        std::stable_sort(order.begin(), order.end(),
                         [&](size_t a, size_t b) { return object[a].first < object[b].first; });
        std::vector<bool> again(object.size());
        bool any = false;
        for (size_t i = 0, first = 0; i < order.size(); ++i) {
            if (i == 0 || object[order[i]].first != object[order[i - 1]].first) {
                first = order[i];
                continue;
            }
            object[first].second = std::move(object[order[i]].second);
            again[order[i]] = any = true;
        }
        if (!any) return;
        Object kept;
        for (size_t i = 0; i < object.size(); ++i) {
            if (!again[i]) kept.push_back(std::move(object[i]));
        }
        object = std::move(kept);
    }

    void check_depth(int depth) const {
        if (depth > DEEPEST) fail("recursion limit exceeded", "nested too deeply", at_);
    }

    std::string read_string() {
        static constexpr const char* END = "EOF while parsing a string";
        static constexpr const char* UNTERMINATED = "Unterminated string starting at";
        const size_t quote = at_++;
        std::string out;
        while (true) {
            if (ends()) fail(END, at_, UNTERMINATED, quote);
            const char byte = here();
            if (byte == '"') break;
            if (static_cast<unsigned char>(byte) < 0x20) {
                fail("control character (\\u0000-\\u001F) found while parsing a string", "Invalid control character at", at_);
            }
            ++at_;
            if (byte != '\\') {
                out += byte;
                continue;
            }
            if (ends()) fail(END, at_, UNTERMINATED, quote);
            const char letter = here();
            static constexpr std::string_view LETTERS = "\"\\/bfnrt", MEANINGS = "\"\\/\b\f\n\r\t";
            if (letter == 'u') {
                read_code_unit(out);
            } else if (const size_t known = LETTERS.find(letter); known != LETTERS.npos) {
                out += MEANINGS[known];
                ++at_;
            } else {
                fail("invalid escape", at_, "Invalid \\escape", at_ - 1);
            }
        }
        ++at_;
        if (python_) return out;  // checked as a whole
        if (const size_t broken = invalid_utf8(out); broken != out.npos) {
            fail("invalid unicode code point", "", quote + 1 + broken);
        }
        return out;
    }

    // Four hexadecimal digits after the u at `at_`; then `at_` is behind them.
    char32_t read_four() {
        static constexpr const char* ESCAPE = "Invalid \\uXXXX escape";
        const size_t u = at_;
        if (u + 5 > text_.size()) fail("EOF while parsing a string", text_.size(), ESCAPE, u);
        if (python_ && u + 5 >= text_.size()) fail("", ESCAPE, u);
        char32_t code = 0;
        for (size_t at = u + 1; at < u + 5; ++at) {
            const char byte = text_[at];
            const char* digits = "0123456789abcdefABCDEF";
            const char* found = byte ? std::strchr(digits, byte) : nullptr;
            if (!found) fail("invalid escape", at, ESCAPE, u);
            const auto digit = static_cast<char32_t>(found - digits);
            code = code << 4 | (digit > 15 ? digit - 6 : digit);
        }
        at_ = u + 5;
        return code;
    }

    void read_code_unit(std::string& out) {
        char32_t code = read_four();
        const auto is_low = [](char32_t unit) { return unit >= 0xDC00 && unit < 0xE000; };
        if (code >= 0xD800 && code < 0xDC00) {
            const bool pair = at_ + 1 < text_.size() && text_[at_] == '\\' && text_[at_ + 1] == 'u';
            if (!python_) check_pair(pair);
            if (pair && (!python_ || at_ + 6 < text_.size())) {
                const size_t before = at_;
                ++at_;
                if (const char32_t low = read_four(); is_low(low)) {
                    code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
                } else if (python_) {
                    at_ = before;
                } else {
                    fail("lone leading surrogate in hex escape", "", at_ - 1);
                }
            }
        } else if (is_low(code) && !python_) {
            fail("lone leading surrogate in hex escape", "", at_ - 1);
        }
        unicode::append_utf8(out, code);
    }

    void check_pair(bool pair) const {
        if (pair) return;
        if (ends()) fail("EOF while parsing a string", "", at_ - 1);
        if (here() != '\\') fail("unexpected end of hex escape", "", at_);
        if (at_ + 1 >= text_.size()) fail("EOF while parsing a string", "", at_);
        fail("unexpected end of hex escape", "", at_ + 1);
    }

    std::string_view text_;
    bool python_;
    size_t at_ = 0;
};

}  // namespace

Value read(std::string_view text, Dialect dialect) { return Reader(text, dialect).document(); }

}  // namespace ddm::json
