// JSON: read into trees whose members are found by name, and written with members in order, as Python writes it.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace ddm::json {

using Value = nlohmann::json;        // what is read
using Out = nlohmann::ordered_json;  // what is written

constexpr size_t LARGEST_TREE = size_t{48} << 20;  // bytes, about

// Throws Error for what isn't JSON, is nested too deeply, or would take more than `most` bytes as a tree.
Value read(std::string_view text, size_t most = LARGEST_TREE);

// As json.dumps: ASCII, ", " and ": " between, or `indent` spaces a level where that isn't negative.
std::string write(const Out& tree, int indent = -1);

}  // namespace ddm::json
