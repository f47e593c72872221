#include "json.h"

#include "error.h"
#include "text.h"

namespace ddm::json {
namespace {

constexpr int DEEPEST = 200;
constexpr size_t OF_VALUE = 32, OF_MEMBER = 96;  // bytes of a tree

// In ASCII, and U+FFFD for what is no UTF-8, as a path may not be.
std::string dumped(const Out& leaf) { return leaf.dump(-1, ' ', true, Out::error_handler_t::replace); }

void write_to(std::string& out, const Out& tree, int indent, size_t level) {
    if (!tree.is_structured()) {
        out += tree.is_number_float() ? repr(tree.get<double>()) : dumped(tree);
        return;
    }
    const std::string end = indent < 0 ? "" : "\n" + std::string(static_cast<size_t>(indent) * level, ' ');
    const std::string next = indent < 0 ? "" : end + std::string(static_cast<size_t>(indent), ' ');
    std::string before = next;
    out += tree.is_object() ? '{' : '[';
    for (const auto& [name, value] : tree.items()) {
        out += before;
        if (tree.is_object()) out += dumped(name) + ": ";
        write_to(out, value, indent, level + 1);
        before = (indent < 0 ? ", " : ",") + next;
    }
    if (!tree.empty()) out += end;
    out += tree.is_object() ? '}' : ']';
}

}  // namespace

Value read(std::string_view text, size_t most) {
    size_t taken = 0;
    const auto weigh = [&](int depth, Value::parse_event_t event, Value&) {
        taken += event == Value::parse_event_t::key ? OF_MEMBER : OF_VALUE;
        if (depth > DEEPEST) throw Error("JSON is nested too deeply");
        if (taken > most) throw Error("JSON holds more than can be read here");
        return true;
    };
    try {
        return Value::parse(text.begin(), text.end(), weigh);
    } catch (const Value::exception& error) {  // "[json.exception.parse_error.101] ..."
        const std::string_view words = error.what();
        throw Error(concat("not JSON: ", words.substr(words.find(' ') + 1)));
    }
}

std::string write(const Out& tree, int indent) {
    std::string out;
    write_to(out, tree, indent, 0);
    return out;
}

}  // namespace ddm::json
