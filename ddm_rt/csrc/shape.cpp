#include "shape.h"

#include <algorithm>
#include <cmath>

#include "error.h"
#include "numerals.h"
#include "text.h"

namespace ddm::shape {
namespace {

using json::Integer;
using json::Value;

constexpr size_t MOST_DIGITS = 4300;  // of a whole number in quotes
constexpr const char* TOO_LARGE = "Unable to parse input string as an integer, exceeded maximum size";

struct Problem {
    std::string field, message;
};

[[noreturn]] void refuse(const Trail& trail, const std::string& message) {
    throw Problem{join(".", trail), message};
}

// `what` at one step further down.
template <typename What>
Value below(Trail& trail, const std::string& name, What what) {
    trail.push_back(name);
    Value value = what();
    trail.pop_back();
    return value;
}

std::string written(double bound) {
    const std::string text = repr(bound);
    return bound == std::floor(bound) ? text.substr(0, text.size() - 2) : text;
}

void check_bounds(double value, const Bounds& bounds, const Trail& trail) {
    const auto fail = [&](const char* relation, double bound) {
        refuse(trail, concat("Input should be ", relation, " ", written(bound)));
    };
    if (bounds.le && !(value <= *bounds.le)) fail("less than or equal to", *bounds.le);
    if (bounds.lt && !(value < *bounds.lt)) fail("less than", *bounds.lt);
    if (bounds.ge && !(value >= *bounds.ge)) fail("greater than or equal to", *bounds.ge);
    if (bounds.gt && !(value > *bounds.gt)) fail("greater than", *bounds.gt);
}

// The same without a double in between, which can't tell neighbours beyond 53 bits apart.
void check_bounds(const Integer& value, const WholeBounds& bounds, const Trail& trail) {
    const auto fail = [&](const char* relation, auto bound) {
        refuse(trail, concat("Input should be ", relation, " ", bound));
    };
    const bool negative = value.negative && (value.wide || value.magnitude);
    const auto exceeds = [&](uint64_t bound) { return !negative && (value.wide || value.magnitude > bound); };
    if (bounds.le && exceeds(*bounds.le)) fail("less than or equal to", *bounds.le);
    if (!bounds.ge) return;
    const int64_t least = *bounds.ge;
    const uint64_t distance = least < 0 ? -static_cast<uint64_t>(least) : static_cast<uint64_t>(least);  // from 0
    const bool too_small = negative ? least >= 0 || value.wide || value.magnitude > distance
                                    : least > 0 && !value.wide && value.magnitude < distance;
    if (too_small) fail("greater than or equal to", least);
}

std::string quoted_choices(const std::vector<std::string>& choices) {
    std::string out;
    for (size_t i = 0; i < choices.size(); ++i) {
        if (i) out += i + 1 == choices.size() ? " or " : ", ";
        out += choices[i];
    }
    return out;
}

Integer integer_of(const Value& value, const Trail& trail) {
    if (const auto* whole = value.as<Integer>()) return *whole;
    if (const auto* truth = value.as<bool>()) return *Value(static_cast<int64_t>(*truth)).as<Integer>();
    if (const auto* number = value.as<double>()) {
        if (!std::isfinite(*number)) refuse(trail, "Input should be a finite number");
        if (*number != std::floor(*number)) {
            refuse(trail, "Input should be a valid integer, got a number with a fractional part");
        }
        const double size = std::abs(*number);
        if (size >= 0x1p63) refuse(trail, TOO_LARGE);
        return {.negative = *number < 0, .magnitude = static_cast<uint64_t>(size)};
    }
    if (const auto* text = value.as<std::string>()) {
        const auto whole = whole_number(*text);
        if (whole && whole->wide && whole->digits->size() > MOST_DIGITS) refuse(trail, TOO_LARGE);
        if (whole) return *whole;
        refuse(trail, "Input should be a valid integer, unable to parse string as an integer");
    }
    refuse(trail, "Input should be a valid integer");
}

double number_of(const Value& value, const Trail& trail) {
    double number = 0;
    if (const auto* truth = value.as<bool>()) {
        number = *truth;
    } else if (const auto* text = value.as<std::string>()) {
        const auto found = decimal_number(*text);
        if (!found) refuse(trail, "Input should be a valid number, unable to parse string as a number");
        number = *found;
    } else if (value.as<Integer>() || value.as<double>()) {
        number = value.number();
    } else {
        refuse(trail, "Input should be a valid number");
    }
    if (!std::isfinite(number)) refuse(trail, "Input should be a finite number");
    return number;
}

bool truth_of(const Value& value, const Trail& trail) {
    if (const auto* truth = value.as<bool>()) return *truth;
    std::string word;
    if (const auto* text = value.as<std::string>()) {
        word = *text;
        std::transform(word.begin(), word.end(), word.begin(),
                       [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; });
    } else if (const auto* whole = value.as<Integer>()) {
        const bool large = whole->wide || whole->magnitude > uint64_t{INT64_MAX} + whole->negative;
        if (large) refuse(trail, "Input should be a valid boolean");
        word = whole->magnitude == 0 ? "0" : whole->magnitude == 1 && !whole->negative ? "1" : "other";
    } else if (const auto* number = value.as<double>();
               number && *number == std::floor(*number) && std::abs(*number) < 0x1p63) {
        word = *number == 0 ? "0" : *number == 1 ? "1" : "other";
    } else {
        refuse(trail, "Input should be a valid boolean");
    }
    for (const char* yes : {"1", "on", "t", "true", "y", "yes"}) {
        if (word == yes) return true;
    }
    for (const char* no : {"0", "off", "f", "false", "n", "no"}) {
        if (word == no) return false;
    }
    refuse(trail, "Input should be a valid boolean, unable to interpret input");
}

const std::string& text_of(const Value& value, const Trail& trail) {
    if (const auto* text = value.as<std::string>()) return *text;
    refuse(trail, "Input should be a valid string");
}

const json::List& list_of(const Value& value, const Trail& trail) {
    if (const auto* list = value.as<json::List>()) return *list;
    refuse(trail, "Input should be a valid array");
}

const json::Object& object_of(const Value& value, const Trail& trail) {
    if (const auto* object = value.as<json::Object>()) return *object;
    refuse(trail, "Input should be an object");
}

}  // namespace

Check integer(WholeBounds bounds) {
    return [bounds](const Value& value, Trail& trail) {
        const Integer found = integer_of(value, trail);
        check_bounds(found, bounds, trail);
        const uint64_t most = static_cast<uint64_t>(std::numeric_limits<int64_t>::max()) + found.negative;
        if (found.wide || found.magnitude > most) refuse(trail, "Input should be an integer of at most 64 bits");
        return Value(found);
    };
}

Check seed() {
    return [](const Value& value, Trail& trail) {
        const Integer found = integer_of(value, trail);
        check_bounds(found, {.ge = 0, .le = UINT64_MAX}, trail);
        return Value(found);
    };
}

Check number(Bounds bounds) {
    return [bounds](const Value& value, Trail& trail) {
        const double found = number_of(value, trail);
        check_bounds(found, bounds, trail);
        return Value(found);
    };
}

Check boolean() {
    return [](const Value& value, Trail& trail) { return Value(truth_of(value, trail)); };
}

Check text() {
    return [](const Value& value, Trail& trail) { return Value(text_of(value, trail)); };
}

Check hash() {
    return [](const Value& value, Trail& trail) {
        const std::string& found = text_of(value, trail);
        if (found.size() != 64 || found.find_first_not_of("0123456789abcdef") != found.npos) {
            refuse(trail, "String should match pattern '^[0-9a-f]{64}$'");
        }
        return value;
    };
}

Check image_file() {
    return [](const Value& value, Trail& trail) {
        const std::string_view found = text_of(value, trail);
        const std::string_view number = found.substr(0, found.size() - std::min<size_t>(found.size(), 4));
        size_t digits = 0, at = 0;  // of any script
        while (at < number.size() && decimal_value(character(number, at).code)) {
            at += character(number, at).bytes;
            ++digits;
        }
        if (!found.ends_with(".png") || digits < 5 || digits > 10 || at < number.size()) {
            refuse(trail, "String should match pattern '^\\d{5,10}\\.png$'");
        }
        return value;
    };
}

Check one_of(std::vector<std::string> names) {
    std::vector<std::string> quoted;
    for (const std::string& name : names) quoted.push_back("'" + name + "'");
    const std::string message = "Input should be " + quoted_choices(quoted);
    return [names = std::move(names), message](const Value& value, Trail& trail) {
        const auto* found = value.as<std::string>();
        if (!found || std::find(names.begin(), names.end(), *found) == names.end()) refuse(trail, message);
        return value;
    };
}

Check one_of(std::vector<int64_t> numbers) {
    std::vector<std::string> listed;
    for (const int64_t number : numbers) listed.push_back(std::to_string(number));
    return [numbers = std::move(numbers), message = "Input should be " + quoted_choices(listed)](const Value& value,
                                                                                                 Trail& trail) {
        const auto* truth = value.as<bool>();
        const bool is_number = value.as<Integer>() || value.as<double>();
        for (const int64_t number : numbers) {
            const auto wanted = static_cast<double>(number);
            if ((truth && *truth == wanted) || (is_number && value.number() == wanted)) return Value(number);
        }
        refuse(trail, message);
    };
}

Check anything() {
    return [](const Value& value, Trail&) { return value; };
}

Check nullable(Check check) {
    return [check = std::move(check)](const Value& value, Trail& trail) {
        return value.is_null() ? value : check(value, trail);
    };
}

Check either(std::string first_name, Check first, std::string second_name, Check second) {
    return [=](const Value& value, Trail& trail) {
        // A number in quotes is text, where text may stand.
        if (second_name == "str" && value.as<std::string>()) return second(value, trail);
        const Trail here = trail;
        try {
            return below(trail, first_name, [&] { return first(value, trail); });
        } catch (const Problem& problem) {
            try {
                trail = here;
                return below(trail, second_name, [&] { return second(value, trail); });
            } catch (const Problem&) {
                throw problem;
            }
        }
    };
}

Check list(Check item, size_t least) {
    return [=](const Value& value, Trail& trail) {
        json::List out;
        for (const Value& each : list_of(value, trail)) {
            out.push_back(below(trail, std::to_string(out.size()), [&] { return item(each, trail); }));
        }
        if (out.size() < least) {
            refuse(trail, concat("Tuple should have at least ", least, " item", least == 1 ? "" : "s",
                                 " after validation, not ", out.size()));
        }
        return Value(std::move(out));
    };
}

Check fixed(std::vector<Check> items) {
    return [items = std::move(items)](const Value& value, Trail& trail) {
        const json::List& given = list_of(value, trail);
        json::List out;
        for (size_t i = 0; i < items.size(); ++i) {
            out.push_back(below(trail, std::to_string(i), [&] {
                if (i >= given.size()) refuse(trail, "Field required");
                return items[i](given[i], trail);
            }));
        }
        if (given.size() > items.size()) {
            refuse(trail, concat("Tuple should have at most ", items.size(), " item", items.size() == 1 ? "" : "s",
                                 " after validation, not ", given.size()));
        }
        return Value(std::move(out));
    };
}

Check mapping(Check item) {
    return [item = std::move(item)](const Value& value, Trail& trail) {
        json::Object out;
        for (const json::Member& member : object_of(value, trail)) {
            out.emplace_back(member.first, below(trail, member.first, [&] { return item(member.second, trail); }));
        }
        return Value(std::move(out));
    };
}

Check open_object(std::vector<Field> fields) {
    struct Known {
        Field field;
        std::optional<Value> preset;
    };
    std::vector<Known> known;
    for (Field& field : fields) {
        std::optional<Value> preset;
        if (field.preset) preset = json::read(field.preset);
        known.push_back({std::move(field), std::move(preset)});
    }
    return [known = std::move(known)](const Value& value, Trail& trail) {
        object_of(value, trail);
        json::Object out;
        for (const Known& each : known) {
            const Field& field = each.field;
            out.emplace_back(field.name, below(trail, field.name, [&] {
                                 const Value* found = value.find(field.name);
                                 if (!found && !each.preset) refuse(trail, "Field required");
                                 return field.check(found ? *found : *each.preset, trail);
                             }));
        }
        return Value(std::move(out));
    };
}

Check object(std::vector<Field> fields) {
    return [open = open_object(std::move(fields))](const Value& value, Trail& trail) {
        Value checked = open(value, trail);
        for (const auto& member : value.object()) {
            if (checked.find(member.first)) continue;
            trail.push_back(member.first);
            refuse(trail, "Extra inputs are not permitted");
        }
        return checked;
    };
}

json::Value parse(const Check& check, std::string_view text, const std::string& where) {
    Value tree;
    try {
        tree = json::read(text);
    } catch (const Error& error) {
        throw Error(concat(where, ": field (whole file): Invalid JSON: ", error.what()));
    }
    return parse_tree(check, tree, where);
}

json::Value parse_tree(const Check& check, const Value& tree, const std::string& where) {
    Trail trail;
    try {
        return check(tree, trail);
    } catch (const Problem& problem) {
        throw Error(concat(where, ": field ", problem.field.empty() ? "(whole file)" : problem.field, ": ",
                           problem.message));
    }
}

}  // namespace ddm::shape
