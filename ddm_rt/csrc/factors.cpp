#include "factors.h"

#include <algorithm>
#include <cmath>

#include "error.h"
#include "quota.h"
#include "text.h"
#include "unicode.h"

namespace ddm {
namespace {

constexpr double NOTHING = 1e-9;                   // a share that a person needn't be told
constexpr double MIXED[] = {0.0, 0.01, 0.1, 1.0};  // parts of the uniform weights

// Both sides of the first `at`, without white space around; the second is empty where there is none.
std::pair<std::string, std::string> parted(std::string_view text, char at) {
    const size_t place = text.find(at);
    return {std::string(strip(text.substr(0, place))),
            std::string(place == text.npos ? std::string_view() : strip(text.substr(place + 1)))};
}

// The shares of `found`, or of a mixture with `weights` where raking would take too long to reach those.
std::vector<Margin> within_reach(const std::vector<double>& found, const std::vector<double>& weights,
                                 const std::vector<Factor>& factors) {
    std::vector<Margin> margins;
    for (const double part : MIXED) {
        std::vector<double> mixed(found.size());
        for (size_t i = 0; i < mixed.size(); ++i) mixed[i] = (1 - part) * found[i] + part * weights[i];
        margins.clear();
        for (const Factor& factor : factors) {
            margins.push_back({factor.value_of, shares_of(factor.value_of, mixed, factor.values.size())});
        }
        if (rake(weights, margins).second) break;
    }
    return margins;
}

// Iterative proportional fitting: W. E. Deming and F. F. Stephan, Annals of Mathematical Statistics 11 (1940) 427-444.
constexpr double DONE = 1e-10;    // of a share; the cycles stop
constexpr double REACHED = 1e-6;  // of a share; what is further off after all cycles is not reached
constexpr int CYCLES = 1000;
constexpr int ROUNDS = 3;        // the last two without cells that were left with nothing
constexpr double NONE = 1e-200;  // below it a division may have no finite result
constexpr double FALLING = 0.6;  // of the weight at half of the cycles; one that falls as 1/n has .5

// One cycle over all factors; how far a share was off.
double cycle(std::vector<double>& weights, const std::vector<Margin>& margins) {
    double off = 0;
    for (const auto& [value_of, wanted] : margins) {
        std::vector<double> ratios = shares_of(value_of, weights, wanted.size());
        for (size_t value = 0; value < wanted.size(); ++value) {
            const double has = ratios[value];
            off = std::max(off, std::abs(has - wanted[value]));
            ratios[value] = has > NONE ? wanted[value] / has : 0;
        }
        for (size_t cell = 0; cell < weights.size(); ++cell) weights[cell] *= ratios[value_of[cell]];
    }
    return off;
}

}  // namespace

bool names_factors(const std::string& target, const std::vector<Factor>& factors) {
    if (target.find(':') == target.npos) return false;
    const std::string name = parted(target, ':').first;
    return std::any_of(factors.begin(), factors.end(), [&](const Factor& factor) { return factor.name == name; });
}

WantedShares parse_factors(const std::string& target, const std::vector<Factor>& factors) {
    const std::string quoted = " " + repr(target);
    std::map<std::string, std::map<std::string, double>> given;
    for (const std::string& part : split(target, ',')) {
        const auto [name, share] = parted(part, '=');
        const auto [factor, value] = parted(name, ':');
        // clang 14 doesn't let a lambda take a structured binding by name alone
        const auto found = std::find_if(factors.begin(), factors.end(),
                                        [&factor = factor](const Factor& it) { return it.name == factor; });
        if (part.find('=') == part.npos || found == factors.end() ||
            std::find(found->values.begin(), found->values.end(), value) == found->values.end()) {
            throw about("target", concat(quoted, ": ", repr(strip(part)), "; expected FACTOR:VALUE=SHARE, with ",
                                         known_factors(factors)));
        }
        if (given[factor].contains(value))
            throw about("target", concat(quoted, ": ", factor, ":", value, " is given twice"));
        const auto number = parse_float(share);
        if (!number) {
            throw about("target",
                        concat(quoted, ": ", repr(share), " is no number; expected the share of ", factor, ":", value));
        }
        given[factor][value] = *number;
    }
    WantedShares out;
    for (const Factor& factor : factors) {
        if (!given.contains(factor.name)) continue;
        std::vector<double>& shares = out[factor.name];
        for (const std::string& value : factor.values) {
            const auto found = given[factor.name].find(value);
            shares.push_back(found == given[factor.name].end() ? 0 : found->second);
        }
        quantise(shares, "target", concat(quoted, ": ", factor.name));
    }
    return out;
}

std::string known_factors(const std::vector<Factor>& factors) {
    std::vector<std::string> out;
    for (const Factor& factor : factors) out.push_back(factor.name + ": " + join(", ", factor.values));
    return join("; ", out);
}

std::string spelled(const WantedShares& wanted, const std::vector<Factor>& factors) {
    std::vector<std::string> out;
    for (const Factor& factor : factors) {
        const auto found = wanted.find(factor.name);
        for (size_t i = 0; found != wanted.end() && i < factor.values.size(); ++i) {
            const double share = found->second[i];
            if (share != 0) out.push_back(concat(factor.name, ":", factor.values[i], "=", repr(share)));
        }
    }
    return join(",", out);
}

std::vector<double> cell_weights(const Codes& codes, const WantedShares& wanted, const std::string& target) {
    std::vector<double> weights;
    for (const Leaf& leaf : codes.leaves) {
        weights.push_back(leaf.share_in_top / static_cast<double>(codes.num_top_codes()));
    }
    std::vector<Margin> margins, named;  // where not all can be met, those that were named are: they come last
    for (const Factor& factor : codes.factors) {
        const auto found = wanted.find(factor.name);
        if (found == wanted.end()) {
            margins.push_back({factor.value_of, shares_of(factor.value_of, weights, factor.values.size())});
            continue;
        }
        const double total = exact_sum(found->second);
        named.push_back({factor.value_of, found->second});
        for (double& share : named.back().wanted) share /= total;
    }
    margins.insert(margins.end(), named.begin(), named.end());
    auto [out, reached] = rake(weights, margins);
    if (reached) return out;
    const double mass = exact_sum(out);
    if (mass == 0) {
        throw about("target", concat(" ", repr(target), " is out of reach: no code has all of these values"));
    }
    for (double& weight : out) weight /= mass;
    const std::vector<Margin> reachable = within_reach(out, weights, codes.factors);
    std::vector<std::string> within;
    for (size_t f = 0; f < codes.factors.size(); ++f) {
        const Factor& factor = codes.factors[f];
        const std::vector<double>& shares = reachable[f].wanted;
        for (size_t i = 0; i < shares.size(); ++i) {
            if (shares[i] > NOTHING)
                within.push_back(concat(factor.name, ":", factor.values[i], "=", general(shares[i], 9)));
        }
    }
    throw about("target",
                concat(" ", repr(target), " is out of reach: some combinations of values have no code, or too little ",
                       "of one. A target within reach is ", join(",", within)));
}

std::pair<std::vector<double>, bool> rake(std::vector<double> weights, const std::vector<Margin>& margins) {
    double off = 0;
    for (int left = ROUNDS - 1; left >= 0; --left) {
        std::vector<double> half;
        for (int number = 0; number < CYCLES; ++number) {
            if (number == CYCLES / 2) half = weights;
            const std::vector<double> before = weights;
            off = cycle(weights, margins);
            if (off <= DONE || weights == before) return {weights, off <= REACHED};
        }
        for (size_t cell = 0; left && cell < weights.size(); ++cell) {
            if (weights[cell] < FALLING * half[cell]) weights[cell] = 0;
        }
    }
    return {weights, off <= REACHED};
}

std::vector<double> shares_of(const std::vector<size_t>& value_of, const std::vector<double>& weights,
                              size_t num_values) {
    std::vector<double> out(num_values);
    for (size_t cell = 0; cell < weights.size(); ++cell) out[value_of[cell]] += weights[cell];
    return out;
}

}  // namespace ddm
