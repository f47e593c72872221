#include "json.h"

#include "error.h"
#include "text.h"

namespace ddm::json {
namespace {

constexpr int DEEPEST = 200;
constexpr size_t OF_VALUE = 32, OF_TEXT = 80, OF_MEMBER = 96;  // bytes of a tree
constexpr size_t LONGEST_NAME = 4096;

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

// Told the parts of a text, it adds up what their tree would take.
class Weigher : public nlohmann::json_sax<Value> {
public:
    explicit Weigher(size_t most) : left_(most) {}

    bool null() override { return weigh(OF_VALUE); }
    bool boolean(bool) override { return weigh(OF_VALUE); }
    bool number_integer(int64_t) override { return weigh(OF_VALUE); }
    bool number_unsigned(uint64_t) override { return weigh(OF_VALUE); }
    bool number_float(double, const std::string&) override { return weigh(OF_VALUE); }
    bool string(std::string& text) override { return weigh(OF_TEXT + text.size()); }
    bool binary(Value::binary_t&) override { return weigh(OF_VALUE); }
    bool start_object(size_t) override { return deeper(); }
    bool start_array(size_t) override { return deeper(); }
    bool end_object() override { return depth_--, true; }
    bool end_array() override { return depth_--, true; }
    bool key(std::string& name) override {
        if (name.size() > LONGEST_NAME) throw Error("not JSON that can be read here: a name is too long");
        return weigh(OF_MEMBER + name.size());
    }
    bool parse_error(size_t, const std::string&, const nlohmann::detail::exception& error) override {
        const std::string_view words = error.what();  // "[json.exception.parse_error.101] ..."
        throw Error(concat("not JSON: ", words.substr(words.find(' ') + 1)));
    }

private:
    bool deeper() {
        if (++depth_ > DEEPEST) throw Error("not JSON that can be read here: it is nested too deeply");
        return weigh(OF_VALUE);
    }

    bool weigh(size_t bytes) {
        if (bytes > left_) throw Error("not JSON that can be read here: it holds too much");
        left_ -= bytes;
        return true;
    }

    size_t left_;
    int depth_ = 0;
};

}  // namespace

Value read(std::string_view text, size_t most) {
    Weigher weigher(most);  // first, as no tree of what is too much may be made
    Value::sax_parse(text.begin(), text.end(), &weigher);
    return Value::parse(text.begin(), text.end());
}

std::string write(const Out& tree, int indent) {
    std::string out;
    write_to(out, tree, indent, 0);
    return out;
}

}  // namespace ddm::json
