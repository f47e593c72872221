#include "posterior.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>

#include "numpy.h"

namespace ddm {
namespace {

constexpr double Z90 = 1.6448536269514722;  // standard normal: 90 % lie between -Z90 and Z90
constexpr double PREFERENCE = 1e-6;         // of log likelihood: rounding decides nothing

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
    double low =
        *std::min_element(p.begin(), p.end()) - Z90 * std::sqrt(*std::max_element(spread.begin(), spread.end()));
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

// Newton's method on the dual of least relative entropy, as ddm_rt/sample/calibration/tilt.py has it, without slack.
constexpr int STEPS = 200;
constexpr double LARGEST = 1e7;     // |λ|: no finite λ gives a target on the hull's edge
constexpr double TOLERANCE = 1e-9;  // of a share
constexpr double NEAR = 1e-6;

double dot(const Row& a, const Row& b) { return std::inner_product(a.begin(), a.end(), b.begin(), 0.0); }

double largest(const Row& row) {
    double most = 0;
    for (const double value : row) most = std::max(most, std::abs(value));
    return most;
}

// weights · table: [F].
Row mixed(const Row& weights, const Table& table, size_t width) {
    Row out(width);
    for (size_t k = 0; k < table.size(); ++k) {
        for (size_t f = 0; f < width; ++f) out[f] += weights[k] * table[k][f];
    }
    return out;
}

// Eigenvalues of a symmetric matrix, which becomes diagonal, and its eigenvectors as columns: Jacobi's rotations.
Table diagonalise(Table& matrix) {
    const size_t n = matrix.size();
    Table vectors(n, Row(n));
    for (size_t i = 0; i < n; ++i) vectors[i][i] = 1;
    for (int sweep = 0; sweep < 100; ++sweep) {
        double outside = 0, inside = 0;
        for (size_t i = 0; i < n; ++i) {
            for (size_t j = 0; j < n; ++j) (i == j ? inside : outside) += matrix[i][j] * matrix[i][j];
        }
        if (outside <= 1e-34 * inside) break;
        for (size_t p = 0; p < n; ++p) {
            for (size_t q = p + 1; q < n; ++q) {
                if (matrix[p][q] == 0) continue;
                const double theta = (matrix[q][q] - matrix[p][p]) / (2 * matrix[p][q]);
                const double t = std::copysign(1, theta) / (std::abs(theta) + std::hypot(theta, 1));
                const double c = 1 / std::hypot(t, 1), s = t * c;
                for (size_t k = 0; k < n; ++k) {
                    const double left = matrix[k][p], right = matrix[k][q];
                    matrix[k][p] = c * left - s * right;
                    matrix[k][q] = s * left + c * right;
                }
                for (size_t k = 0; k < n; ++k) {
                    const double left = matrix[p][k], right = matrix[q][k];
                    matrix[p][k] = c * left - s * right;
                    matrix[q][k] = s * left + c * right;
                    const double first = vectors[k][p], second = vectors[k][q];
                    vectors[k][p] = c * first - s * second;
                    vectors[k][q] = s * first + c * second;
                }
            }
        }
    }
    return vectors;
}

// The shortest x with matrix·x nearest to `wanted`; eigenvalues below 1e-12 of the largest count as zero.
Row least_squares(Table matrix, const Row& wanted) {
    const Table vectors = diagonalise(matrix);
    const size_t n = wanted.size();
    double most = 0;
    for (size_t i = 0; i < n; ++i) most = std::max(most, std::abs(matrix[i][i]));
    Row out(n);
    for (size_t i = 0; i < n; ++i) {
        if (std::abs(matrix[i][i]) <= 1e-12 * most) continue;
        double along = 0;
        for (size_t k = 0; k < n; ++k) along += vectors[k][i] * wanted[k];
        for (size_t k = 0; k < n; ++k) out[k] += vectors[k][i] * along / matrix[i][i];
    }
    return out;
}

struct Dual {
    double value;
    Row weights;
};

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

Tilt tilt(const Table& p, const Row& target, const Row& base) {
    const size_t width = target.size();
    Table moves;  // of the codes that may be used: p - target
    Row log_base;
    for (size_t k = 0; k < p.size(); ++k) {
        if (base[k] <= 0) continue;
        moves.emplace_back();
        for (size_t f = 0; f < width; ++f) moves.back().push_back(p[k][f] - target[f]);
        log_base.push_back(std::log(base[k]));
    }
    const auto dual = [&](const Row& at) {
        Row score = log_base;
        for (size_t k = 0; k < score.size(); ++k) score[k] += dot(moves[k], at);
        const double top = *std::max_element(score.begin(), score.end());
        double total = 0;
        for (double& each : score) total += each = std::exp(each - top);
        for (double& each : score) each /= total;
        return Dual{top + std::log(total), score};
    };
    Row direction(width);
    Dual here = dual(direction);
    for (int i = 0; i < STEPS; ++i) {
        const Row gradient = mixed(here.weights, moves, width);
        if (largest(gradient) < TOLERANCE / 10) break;
        Table hessian(width, Row(width));
        for (size_t k = 0; k < moves.size(); ++k) {
            for (size_t f = 0; f < width; ++f) {
                const double centred = (moves[k][f] - gradient[f]) * here.weights[k];
                for (size_t g = 0; g < width; ++g) hessian[f][g] += centred * (moves[k][g] - gradient[g]);
            }
        }
        Row step = least_squares(std::move(hessian), gradient);
        for (double& each : step) each = -each;
        if (!std::all_of(step.begin(), step.end(), [](double each) { return std::isfinite(each); })) break;
        const double longest = std::max(100.0, largest(direction));
        const double shrink = std::min(1.0, longest / std::max(largest(step), 1e-300));
        for (double& each : step) each *= shrink;
        const auto moved = [&](double scale) {
            Row out = direction;
            for (size_t f = 0; f < width; ++f) out[f] += scale * step[f];
            return out;
        };
        double scale = 1;
        std::optional<Dual> next;
        for (; scale > 1e-10 && !next;) {
            Dual there = dual(moved(scale));
            // Near the end the fall of the dual drowns in rounding, and Newton's step is right as it is.
            const bool near = largest(gradient) < NEAR;
            if (near || there.value <= here.value + 1e-4 * scale * dot(gradient, step)) next = std::move(there);
            else scale /= 2;
        }
        if (!next) break;
        direction = moved(scale);
        here = std::move(*next);
        if (largest(direction) > LARGEST) break;
    }
    Tilt out{Row(p.size()), {}, true};
    for (size_t k = 0, live = 0; k < p.size(); ++k) {
        if (base[k] > 0) out.weights[k] = here.weights[live++];
    }
    out.shares = mixed(out.weights, p, width);
    for (size_t f = 0; f < width; ++f) out.reached = out.reached && std::abs(out.shares[f] - target[f]) < TOLERANCE;
    return out;
}

}  // namespace ddm
