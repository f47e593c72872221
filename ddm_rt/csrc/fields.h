// The fields of a JSON file, read one by one: what doesn't fit is an Error that names the file and the field.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "error.h"
#include "json.h"

namespace ddm {

constexpr double MOST = std::numeric_limits<double>::infinity();

class Field {
public:
    // A whole file. `tree` must outlive this and what is taken from it.
    Field(const json::Value& tree, std::string file)
        : value_(&tree), file_(std::make_shared<const std::string>(std::move(file))) {}

    Field operator[](std::string_view name) const;               // a member that must be there
    std::optional<Field> find(std::string_view name) const;      // none where it is left out, or null
    Field get(std::string_view name, json::Value preset) const;  // or what stands for one that is left out
    std::optional<Field> or_null() const;                        // this, unless it is null
    void nothing_else() const;                                   // refuses members that were not asked for
    // Calls `use` with each, one after the other: as many as a file may hold take no memory at once.
    template <typename Use>
    void each_member(Use use) const {
        if (!value_->is_object()) refuse("an object");
        for (const auto& [name, value] : value_->items()) use(name, below(value, name));
    }
    template <typename Use>
    void each(Use use) const {
        if (!value_->is_array()) refuse("a list");
        for (size_t i = 0; i < value_->size(); ++i) use(below((*value_)[i], std::to_string(i)));
    }
    std::vector<Field> list_of(size_t count) const;

    std::string text() const;
    std::string hash() const;  // 64 lower-case hexadecimal digits
    bool boolean() const;
    int64_t whole(int64_t least = INT64_MIN, int64_t most = INT64_MAX) const;
    uint64_t seed() const;                                          // 0 to 2**64 - 1
    double number(double least = -MOST, double most = MOST) const;  // finite
    double positive() const;
    std::vector<std::string> texts() const;
    std::vector<double> numbers() const;
    std::pair<double, double> pair() const;
    size_t choice(std::initializer_list<std::string_view> names) const;  // which of them it is
    std::string one_of(std::initializer_list<std::string_view> names) const;

    const json::Value& value() const { return *value_; }
    std::string place() const;                                             // "FILE: field a.b"
    [[noreturn]] void fail(Status status, const std::string& rest) const;  // an error of this place
    [[noreturn]] void refuse(const std::string& expected) const { fail(Status::input, ": expected " + expected); }

private:
    Field below(const json::Value& value, std::string_view name) const;

    const json::Value* value_;
    std::shared_ptr<const json::Value> preset_ = nullptr;  // what `value_` points at where the field is left out
    std::shared_ptr<const std::string> file_;
    std::string name_ = {};
    mutable std::set<std::string, std::less<>> asked_ = {};
};

// The tree of a file's content. Throws Error naming the file.
json::Value parse(std::string_view content, const std::string& file, size_t most = json::LARGEST_TREE);

}  // namespace ddm
