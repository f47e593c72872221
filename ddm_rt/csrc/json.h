// JSON with members in order, NaN, and errors in the words of the two readers that the Python side has.
#ifndef DDM_RT_JSON_H
#define DDM_RT_JSON_H

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace ddm::json {

class Value;

using List = std::vector<Value>;
using Member = std::pair<std::string, Value>;
using Object = std::vector<Member>;  // no key twice; of two with one key, the last value in the first's place

struct Integer {
    bool negative = false;
    bool wide = false;  // beyond 64 bits: `magnitude` says nothing
    uint64_t magnitude = 0;
    std::shared_ptr<const std::string> digits = {};  // where it is wide

    double approximate() const;  // the nearest; infinite where none is
};

class Value : public std::variant<std::nullptr_t, bool, Integer, double, std::string, List, Object> {
public:
    using variant::variant;
    Value() : variant(nullptr) {}
    Value(int64_t value);
    Value(uint64_t value);
    Value(int value) : Value(static_cast<int64_t>(value)) {}
    Value(const char* value) : variant(std::string(value)) {}

    bool is_null() const { return std::holds_alternative<std::nullptr_t>(*this); }
    template <typename T>
    const T* as() const { return std::get_if<T>(this); }

    // Of a checked tree: each ends with std::bad_variant_access, or std::out_of_range, where `shape.h` was left out.
    const Value& operator[](std::string_view key) const;
    const Value* find(std::string_view key) const;  // null where there is no such member
    const List& list() const { return std::get<List>(*this); }
    const Object& object() const { return std::get<Object>(*this); }
    const std::string& text() const { return std::get<std::string>(*this); }
    bool boolean() const { return std::get<bool>(*this); }
    double number() const;
    int64_t integer() const;
    uint64_t natural() const;
};

// Whose words an error has: pydantic's ("expected value at line 1 column 1") or those of Python's own json module
// ("Expecting value: line 1 column 1 (char 0)").
enum class Dialect { pydantic, python };

// Throws ddm::Error whose message is what the reader says.
Value read(std::string_view text, Dialect dialect = Dialect::pydantic);

// As json.dumps: ASCII, ", " and ": " between, or `indent` spaces a level where that isn't negative.
// Throws ddm::Error for NaN and infinities.
std::string write(const Value& value, int indent = -1);

}  // namespace ddm::json

#endif
