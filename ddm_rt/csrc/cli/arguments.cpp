#include "arguments.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "../text.h"

namespace cli {
namespace {

[[noreturn]] void invalid(const std::string& name, const std::string& value, const char* expected) {
    throw Refused("Invalid value for '" + name + "': " + ddm::repr(value) + " is not a valid " + expected + ".");
}

void assign(const Option& option, const std::string& value) {
    if (auto* text = std::get_if<std::optional<std::string>*>(&option.target)) {
        **text = value;
    } else if (auto* list = std::get_if<std::vector<std::string>*>(&option.target)) {
        (*list)->push_back(value);
    } else if (auto* whole = std::get_if<std::optional<int64_t>*>(&option.target)) {
        int64_t number = 0;
        const char *start = value.c_str(), *end = start + value.size();
        const auto [last, error] = std::from_chars(start + (value.starts_with('+') ? 1 : 0), end, number);
        if (error != std::errc() || last != end) invalid(option.name, value, "integer");
        **whole = number;
    } else if (auto* real = std::get_if<std::optional<double>*>(&option.target)) {
        const std::optional<double> number = ddm::parse_float(value);
        if (!number) invalid(option.name, value, "float");
        **real = *number;
    }
}

}  // namespace

void parse(const std::vector<std::string>& arguments, const std::vector<Option>& options,
           std::optional<std::string>& positional) {
    bool only_positional = false;
    for (size_t i = 0; i < arguments.size(); i++) {
        std::string name = arguments[i];
        if (only_positional || name.size() < 2 || name[0] != '-') {
            if (positional) throw Refused("Got unexpected extra argument (" + name + ")");
            positional = name;
            continue;
        }
        if (name == "--") {
            only_positional = true;
            continue;
        }
        std::optional<std::string> value;
        if (!name.starts_with("--") && name.size() > 2) {  // -n5
            value = name.substr(2);
            name.resize(2);
        } else if (const size_t sign = name.find('='); name.starts_with("--") && sign != std::string::npos) {
            value = name.substr(sign + 1);
            name.resize(sign);
        }
        const auto option = std::find_if(options.begin(), options.end(), [&](const Option& o) { return o.name == name; });
        if (option == options.end()) throw Refused("No such option: " + name);
        if (auto* flag = std::get_if<bool*>(&option->target)) {
            if (value) throw Refused("Option '" + name + "' does not take a value.");
            **flag = true;
            continue;
        }
        if (!value) {
            if (i + 1 == arguments.size()) throw Refused("Option '" + name + "' requires an argument.");
            value = arguments[++i];
        }
        assign(*option, *value);
    }
}

std::string help(const std::vector<Option>& options) {
    std::string text;
    for (const Option& option : options) {
        text += "  " + option.name + std::string(option.name.size() < 28 ? 28 - option.name.size() : 1, ' ');
        text += option.help + "\n";
    }
    return text;
}

}  // namespace cli
