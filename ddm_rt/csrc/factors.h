// Targets over crossing factors, "gender:female=.5,gender:male=.5" (ddm_rt/sample/balance/factors.py).
#ifndef DDM_RT_FACTORS_H
#define DDM_RT_FACTORS_H

#include <map>
#include <string>
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

}  // namespace ddm

#endif
