// What a JSON file must look like, told as tables and checked in pydantic's order and words.
#ifndef DDM_RT_SHAPE_H
#define DDM_RT_SHAPE_H

#include <cstddef>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "json.h"

namespace ddm::shape {

// Where in a tree a check stands: "request.codes.0".
using Trail = std::vector<std::string>;

// Gives the value as it is meant: numbers out of text, what is left out filled in. Throws what `parse` turns into an
// Error.
using Check = std::function<json::Value(const json::Value& value, Trail& trail)>;

struct Bounds {
    std::optional<double> gt = {}, ge = {}, lt = {}, le = {};
};

struct WholeBounds {
    std::optional<int64_t> ge = {};
    std::optional<uint64_t> le = {};
};

struct Field {
    const char* name;
    Check check;
    const char* preset = nullptr;  // JSON of what stands for a field that is left out; null: it must be there
};

Check integer(WholeBounds bounds = {});  // within int64_t
Check seed();                       // 0 to 2**64 - 1
Check number(Bounds bounds = {});
Check boolean();
Check text();
Check hash();        // 64 lower-case hexadecimal digits
Check image_file();  // 00000.png
Check one_of(std::vector<std::string> names);
Check one_of(std::vector<int64_t> numbers);
Check anything();
Check nullable(Check check);
Check either(std::string first_name, Check first, std::string second_name, Check second);
Check list(Check item, size_t least = 0);
Check fixed(std::vector<Check> items);  // a list of so many
Check mapping(Check item);
Check object(std::vector<Field> fields);
Check open_object(std::vector<Field> fields);  // fields that it doesn't know are left out: a later version's

// JSON text as `check` has it. Throws Error naming `where` and the first field that is wrong.
json::Value parse(const Check& check, std::string_view text, const std::string& where);

// The same of a tree that was read before.
json::Value parse_tree(const Check& check, const json::Value& tree, const std::string& where);

}  // namespace ddm::shape

#endif
