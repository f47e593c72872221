#include "fields.h"

#include <algorithm>
#include <cmath>

#include "text.h"

namespace ddm {
namespace {

template <typename Number>
std::string range(const std::string& kind, Number least, Number most, bool open_below, bool open_above) {
    const auto digits = [](double bound) { return general(bound, 17); };
    if (open_below && open_above) return kind;
    const std::string from = concat(kind, " from ", digits(static_cast<double>(least)));
    return open_above ? from : concat(from, " to ", digits(static_cast<double>(most)));
}

}  // namespace

std::string Field::place() const { return concat(*file_, ": field ", name_.empty() ? "(whole file)" : name_); }

void Field::fail(Status status, const std::string& rest) const {
    throw Error(status, place() + rest, name_.empty() ? *file_ : name_);
}

Field Field::below(const json::Value& value, std::string_view name) const {
    Field out = *this;
    out.value_ = &value;
    out.name_ = name_.empty() ? std::string(name) : concat(name_, ".", name);
    out.asked_.clear();
    return out;
}

std::optional<Field> Field::find(std::string_view name) const {
    if (!value_->is_object()) refuse("an object");
    asked_.emplace(name);
    const auto found = value_->find(name);
    return found == value_->end() || found->is_null() ? std::nullopt : std::optional(below(*found, name));
}

Field Field::operator[](std::string_view name) const {
    if (const auto found = find(name)) return *found;
    static const json::Value null;
    const Field out = below(null, name);
    if (!value_->contains(name)) out.fail(Status::input, ": missing");
    return out;
}

Field Field::get(std::string_view name, json::Value preset) const {
    find(name);
    if (value_->contains(name)) return below(*value_->find(name), name);
    const auto kept = std::make_shared<const json::Value>(std::move(preset));
    Field out = below(*kept, name);
    out.preset_ = kept;
    return out;
}

std::optional<Field> Field::or_null() const { return value_->is_null() ? std::nullopt : std::optional(*this); }

void Field::nothing_else() const {
    each_member([&](const std::string& name, const Field& field) {
        if (!asked_.contains(name)) field.fail(Status::input, ": unknown; expected no such field");
    });
}

std::vector<Field> Field::list_of(size_t count) const {
    if (!value_->is_array() || value_->size() != count) refuse(concat("a list of ", count));
    std::vector<Field> out;
    each([&](const Field& item) { out.push_back(item); });
    return out;
}

std::string Field::text() const {
    if (!value_->is_string()) refuse("text");
    return value_->get<std::string>();
}

std::string Field::hash() const {
    const std::string found = value_->is_string() ? text() : "";
    if (found.size() != 64 || found.find_first_not_of("0123456789abcdef") != found.npos) {
        refuse("64 lower-case hexadecimal digits");
    }
    return found;
}

bool Field::boolean() const {
    if (!value_->is_boolean()) refuse("true or false");
    return value_->get<bool>();
}

int64_t Field::whole(int64_t least, int64_t most) const {
    const bool wide = value_->is_number_unsigned() && value_->get<uint64_t>() > uint64_t{INT64_MAX};
    const int64_t found = value_->is_number_integer() && !wide ? value_->get<int64_t>() : 0;
    if (!value_->is_number_integer() || wide || found < least || found > most) {
        refuse(range("a whole number", least, most, least == INT64_MIN, most == INT64_MAX));
    }
    return found;
}

uint64_t Field::seed() const {
    if (!value_->is_number_unsigned()) refuse("a whole number from 0 to 2**64 - 1");
    return value_->get<uint64_t>();
}

double Field::number(double least, double most) const {
    const double found = value_->is_number() ? value_->get<double>() : NAN;
    if (!(std::isfinite(found) && found >= least && found <= most)) {
        refuse(range("a finite number", least, most, least == -MOST, most == MOST));
    }
    return found;
}

double Field::positive() const {
    const double found = number();
    if (found <= 0) refuse("a number above 0");
    return found;
}

std::vector<std::string> Field::texts() const {
    std::vector<std::string> out;
    each([&](const Field& item) { out.push_back(item.text()); });
    return out;
}

std::vector<double> Field::numbers() const {
    std::vector<double> out;
    each([&](const Field& item) { out.push_back(item.number()); });
    return out;
}

std::pair<double, double> Field::pair() const {
    const std::vector<Field> both = list_of(2);
    return {both[0].number(), both[1].number()};
}

size_t Field::choice(std::initializer_list<std::string_view> names) const {
    const auto found = value_->is_string() ? std::find(names.begin(), names.end(), text()) : names.end();
    if (found == names.end()) refuse("one of: " + join(", ", {names.begin(), names.end()}));
    return static_cast<size_t>(found - names.begin());
}

std::string Field::one_of(std::initializer_list<std::string_view> names) const { return choice(names), text(); }

json::Value parse(std::string_view content, const std::string& file, size_t most) {
    try {
        return json::read(content, most);
    } catch (const Error& error) {
        throw about(file, concat(": ", std::string(error.what())));
    }
}

}  // namespace ddm
