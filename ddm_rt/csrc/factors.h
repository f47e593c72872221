// Targets over crossing factors, "gender:female=.5,gender:male=.5" (ddm_rt/sample/balance/factors.py).
#pragma once

#include <cstddef>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "runtime.h"

namespace ddm {

using WantedShares = std::map<std::string, std::vector<double>>;  // factor -> the share of each of its values

// Whether a target is over factors: it begins with the name of one, and a colon.
bool names_factors(const std::string& target, const std::vector<Factor>& factors);

// Throws Error naming `target`.
WantedShares parse_factors(const std::string& target, const std::vector<Factor>& factors);

// The one spelling of a target.
std::string spelled(const WantedShares& wanted, const std::vector<Factor>& factors);

// The factors and their values, for a message.
std::string known_factors(const std::vector<Factor>& factors);

// The weight of each code: the uniform ones, raked. Throws Error naming `target` where no weights give it.
std::vector<double> cell_weights(const Codes& codes, const WantedShares& wanted, const std::string& target);

// One factor: of each cell an index into `wanted`, and the share wanted of each value.
struct Margin {
    std::vector<size_t> value_of;
    std::vector<double> wanted;
};

// Weights nearest to `weights` that give `margins`, and whether they do.
std::pair<std::vector<double>, bool> rake(std::vector<double> weights, const std::vector<Margin>& margins);

// The weight of each value, added up in the order of the cells.
std::vector<double> shares_of(const std::vector<size_t>& value_of, const std::vector<double>& weights,
                              size_t num_values);

}  // namespace ddm
