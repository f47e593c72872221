// Which files an ONNX graph reads beside its own.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "bundle.h"

namespace ddm {

// The places of a graph's tensors that lie in other files, as the graph names them. `path` is what errors name.
// Throws Error (Status::bundle) for what is no ONNX graph.
std::vector<std::string> external_files(std::string_view graph, const std::string& path);

// Throws Error (Status::bundle) where the graph `name` reads a file that the bundle's index doesn't list: its content
// wouldn't be hashed.
void check_external_files(const Bundle& bundle, const std::string& name);

}  // namespace ddm
