// Values of JSON, and the writer.
#include "json.h"

#include <cmath>
#include <cstdio>
#include <stdexcept>

#include "error.h"
#include "text.h"

namespace ddm::json {
namespace {

void write_string(std::string& out, const std::string& text) {
    out += '"';
    for (size_t at = 0; at < text.size();) {
        const auto byte = static_cast<unsigned char>(text[at++]);
        char escape[16];
        if (byte == '"' || byte == '\\') {
            out += '\\';
            out += static_cast<char>(byte);
        } else if (byte >= 0x20 && byte < 0x7F) {
            out += static_cast<char>(byte);
        } else if (byte < 0x80) {
            static constexpr std::string_view LETTERS = "btn?fr";  // of 8 to 13
            if (byte >= 8 && byte <= 13 && byte != 11) {
                out += '\\';
                out += LETTERS[byte - 8u];
            } else {
                std::snprintf(escape, sizeof escape, "\\u%04x", byte);
                out += escape;
            }
        } else {
            char32_t code = byte >= 0xF0 ? byte & 0x07 : byte >= 0xE0 ? byte & 0x0F : byte & 0x1F;
            while (at < text.size() && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) {
                code = code << 6 | (static_cast<unsigned char>(text[at++]) & 0x3F);
            }
            if (code < 0x10000) {
                std::snprintf(escape, sizeof escape, "\\u%04x", static_cast<unsigned>(code));
            } else {
                code -= 0x10000;
                std::snprintf(escape, sizeof escape, "\\u%04x\\u%04x", static_cast<unsigned>(0xD800 + (code >> 10)),
                              static_cast<unsigned>(0xDC00 + (code & 0x3FF)));
            }
            out += escape;
        }
    }
    out += '"';
}

void write_value(std::string& out, const Value& value, int indent, int level);

void break_line(std::string& out, int indent, int level) {
    if (indent < 0) return;
    out += '\n';
    out.append(static_cast<size_t>(indent * level), ' ');
}

template <typename Items, typename WriteItem>
void write_items(std::string& out, const Items& items, const char* brackets, int indent, int level, WriteItem item) {
    out += brackets[0];
    bool first = true;
    for (const auto& each : items) {
        if (!first) out += indent < 0 ? ", " : ",";
        first = false;
        break_line(out, indent, level + 1);
        item(each);
    }
    if (!first) break_line(out, indent, level);
    out += brackets[1];
}

void write_value(std::string& out, const Value& value, int indent, int level) {
    if (value.is_null()) {
        out += "null";
    } else if (const auto* boolean = value.as<bool>()) {
        out += *boolean ? "true" : "false";
    } else if (const auto* integer = value.as<Integer>()) {
        out += integer->negative && (integer->wide || integer->magnitude) ? "-" : "";
        out += integer->wide ? *integer->digits : std::to_string(integer->magnitude);
    } else if (const auto* number = value.as<double>()) {
        if (!std::isfinite(*number)) throw Error("Out of range float values are not JSON compliant");
        out += repr(*number);
    } else if (const auto* text = value.as<std::string>()) {
        write_string(out, *text);
    } else if (const auto* list = value.as<List>()) {
        write_items(out, *list, "[]", indent, level,
                    [&](const Value& item) { write_value(out, item, indent, level + 1); });
    } else {
        write_items(out, value.object(), "{}", indent, level, [&](const Member& member) {
            write_string(out, member.first);
            out += ": ";
            write_value(out, member.second, indent, level + 1);
        });
    }
}

}  // namespace

Value::Value(int64_t value)
    : variant(Integer{.negative = value < 0,
                      .magnitude = value < 0 ? -static_cast<uint64_t>(value) : static_cast<uint64_t>(value)}) {}

Value::Value(uint64_t value) : variant(Integer{.magnitude = value}) {}

double Integer::approximate() const {
    const double size = wide ? *parse_float(*digits) : static_cast<double>(magnitude);
    return negative && size != 0 ? -size : size;
}

const Value* Value::find(std::string_view key) const {
    for (const Member& member : object()) {
        if (member.first == key) return &member.second;
    }
    return nullptr;
}

const Value& Value::operator[](std::string_view key) const {
    const Value* found = find(key);
    if (!found) throw std::out_of_range(std::string(key));
    return *found;
}

double Value::number() const {
    const auto* integer = as<Integer>();
    return integer ? integer->approximate() : std::get<double>(*this);
}

int64_t Value::integer() const {
    const Integer& found = std::get<Integer>(*this);
    return static_cast<int64_t>(found.negative ? -found.magnitude : found.magnitude);
}

uint64_t Value::natural() const { return std::get<Integer>(*this).magnitude; }

std::string write(const Value& value, int indent) {
    std::string out;
    write_value(out, value, indent, 0);
    return out;
}

}  // namespace ddm::json
