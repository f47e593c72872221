#include "posterior.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "numpy.h"

namespace ddm {
namespace {

constexpr double Z90 = 1.6448536269514722;   // standard normal: 90 % lie between -Z90 and Z90
constexpr double PREFERENCE = 1e-6;          // of log likelihood: rounding decides nothing

double log_gamma(double value) {
    int sign = 0;
    return ::lgamma_r(value, &sign);
}

double total(const Row& row) { return std::accumulate(row.begin(), row.end(), 0.0); }

// log P(counts | prior): Dirichlet-multinomial, without the terms that don't hold the prior.
double evidence(const Table& counts, double prior) {
    double sum = 0;
    for (const Row& row : counts) {
        const double all = prior * static_cast<double>(row.size());
        sum += log_gamma(all) - log_gamma(total(row) + all);
        for (const double n : row) {
            if (n != 0) sum += log_gamma(n + prior) - log_gamma(prior);
        }
    }
    return sum;
}

// The largest lower bound that any mixture of codes has.
double largest_lower_bound(const Row& p, const Row& spread) {
    double low = *std::min_element(p.begin(), p.end()) - Z90 * std::sqrt(*std::max_element(spread.begin(), spread.end()));
    double high = *std::max_element(p.begin(), p.end());
    for (int i = 0; i < 100; ++i) {
        const double middle = (low + high) / 2;
        double sum = 0;
        for (size_t k = 0; k < p.size(); ++k) {
            const double above = std::max(p[k] - middle, 0.0);
            sum += above * above / spread[k];
        }
        (sum > Z90 * Z90 ? low : high) = middle;
    }
    return low;
}

}  // namespace

Table posterior_mean(const Table& counts, double prior) {
    Table out;
    for (const Row& row : counts) {
        Row with_prior;
        for (const double n : row) with_prior.push_back(n + prior);
        const double all = numpy::sum(with_prior);
        for (double& n : with_prior) n /= all;
        out.push_back(std::move(with_prior));
    }
    return out;
}

Table posterior_variance(const Table& counts) {
    Table out = posterior_mean(counts);
    for (size_t k = 0; k < out.size(); ++k) {
        const double all = total(counts[k]) + PRIOR * static_cast<double>(counts[k].size());  // exact: halves
        for (double& p : out[k]) p = p * (1 - p) / (all + 1);
    }
    return out;
}

double fitted_prior(const Table& counts) {
    double best = PRIOR, most = evidence(counts, PRIOR);
    for (int i = 1; i < 11; ++i) {
        const double prior = PRIOR / std::pow(2, i / 2.0);
        const double found = evidence(counts, prior);
        if (found <= most + PREFERENCE) continue;
        best = prior;
        most = found;
    }
    return best;
}

std::pair<double, double> extremes(const Row& p, const Row& spread, const Row& base) {
    const double now = std::inner_product(base.begin(), base.end(), p.begin(), 0.0);
    Row used, rest, spreads;
    for (size_t k = 0; k < p.size(); ++k) {
        if (base[k] <= 0) continue;
        used.push_back(p[k]);
        rest.push_back(1 - p[k]);
        spreads.push_back(spread[k]);
    }
    if (used.empty()) return {now, now};
    return {std::min(1 - largest_lower_bound(rest, spreads), now), std::max(largest_lower_bound(used, spreads), now)};
}

}  // namespace ddm
