// A command line as a table of options; what is wrong with it is said in the words of `ddm-rt`.
#ifndef DDM_CLI_ARGUMENTS_H
#define DDM_CLI_ARGUMENTS_H

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <variant>
#include <vector>

namespace cli {

// A user's mistake: one line on stderr and exit code 2.
struct Refused : std::runtime_error {
    using std::runtime_error::runtime_error;
};

using Target = std::variant<bool*, std::optional<int64_t>*, std::optional<double>*, std::optional<std::string>*,
                            std::vector<std::string>*>;

struct Option {
    std::string name;  // "--out"
    Target target;     // a bool: a flag; a list: may be given several times
    std::string help;
};

// Fills the targets and `positional`, of which there may be one. Throws Refused.
void parse(const std::vector<std::string>& arguments, const std::vector<Option>& options,
           std::optional<std::string>& positional);

std::string help(const std::vector<Option>& options);

}  // namespace cli

#endif
