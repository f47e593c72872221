// Attributes with their groups, and targets over them in words; ddm_rt/sample/calibration/groups.py says how they are
// written.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace ddm {

// A named attribute and the groups that its values are.
struct Attribute {
    std::string name;
    std::vector<std::string> groups;
};

// Wanted shares over the combinations of `attributes`, in the order of `cells(attributes)`.
struct Part {
    std::vector<Attribute> attributes;
    std::vector<double> shares;

    std::string text() const;  // in one spelling
};

// The combinations of groups, the last attribute's changing fastest: "female&asian", "female&black", ...
std::vector<std::string> cells(const std::vector<Attribute>& attributes);

// Throws Error naming `where` for names that targets couldn't name.
void check_attributes(const std::vector<Attribute>& attributes, const std::string& where);

// The parts of a target, ordered as `attributes`. Throws Error quoting it.
std::vector<Part> parse_group_target(const std::string& target, const std::vector<Attribute>& attributes);

}  // namespace ddm
