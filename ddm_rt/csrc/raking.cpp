// W. E. Deming and F. F. Stephan, Annals of Mathematical Statistics 11 (1940) 427-444: iterative proportional fitting.
#include "raking.h"

#include <algorithm>
#include <cmath>

namespace ddm {
namespace {

constexpr double DONE = 1e-10;      // of a share; the cycles stop
constexpr double REACHED = 1e-6;  // of a share; what is further off after all cycles is not reached
constexpr int CYCLES = 1000;
constexpr int ROUNDS = 3;           // the last two without cells that were left with nothing
constexpr double NONE = 1e-200;     // below it a division may have no finite result
constexpr double FALLING = 0.6;     // of the weight at half of the cycles; one that falls as 1/n has .5

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
