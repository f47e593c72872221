// p(group | code) from audited counts, and weights of codes that reach given shares of groups
// (ddm_rt/sample/calibration/posterior.py and tilt.py have the reasons and the literature).
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

namespace ddm {

using Row = std::vector<double>;
using Table = std::vector<Row>;  // [K][G]: of each code, over groups

constexpr double PRIOR = 0.5;  // Jeffreys' prior for two groups

Table posterior_mean(const Table& counts, double prior = PRIOR);
Table posterior_variance(const Table& counts);

// The prior on each group that makes counts likeliest, at most ½.
double fitted_prior(const Table& counts);

// The lowest and highest share of one group that weights over the codes surely give; p, spread, base: [K].
std::pair<double, double> extremes(const Row& p, const Row& spread, const Row& base);

struct Tilt {
    Row weights;  // [K], sum to 1
    Row shares;   // [F]: what they give
    bool reached;
};

// The weights closest to `base` [K] that give the shares `target` [F] by p [K][F].
Tilt tilt(const Table& p, const Row& target, const Row& base);

}  // namespace ddm
