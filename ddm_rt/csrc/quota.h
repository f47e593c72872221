// Quotas: which code each image of a stream gets, so that every prefix is close to the target
// (ddm_rt/sample/balance/quota.py).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace ddm {

// The sum of numbers from 0, rounded once.
double exact_sum(const std::vector<double>& values);

// Weights are stored as integers W_k with λ_k = W_k / QUOTA_DENOMINATOR.
constexpr int64_t QUOTA_DENOMINATOR = int64_t{1} << 48;
constexpr double SUM_TOLERANCE = 1e-6;

// Draws indices 0 .. K - 1 in the shares `weights` by Tijdeman's rule. Throws Error naming `field`.
class Quota {
public:
    explicit Quota(const std::vector<double>& weights, const std::string& field = "weights");

    size_t draw();

    // Go on as after draws with these counts. Throws Error for counts that no sequence of draws leads to.
    void restore(const std::vector<int64_t>& counts);

    const std::vector<int64_t>& weights() const { return weights_; }
    const std::vector<int64_t>& counts() const { return counts_; }

private:
    std::vector<int64_t> weights_, counts_, lag_;
    std::vector<size_t> live_;
    int64_t largest_lag_;
};

using Shares = std::vector<std::pair<int64_t, double>>;  // code, share of its top code
using Tree = std::vector<Shares>;                        // for each top code
using CodeCounts = std::vector<std::pair<int64_t, int64_t>>;

// A top code by `top_weights`, then a code of that branch by the branch's own quota.
class TreeQuota {
public:
    TreeQuota(const std::vector<double>& top_weights, const Tree& leaf_shares);

    int64_t draw();  // the next code

    CodeCounts counts() const;  // how often each code was drawn, branch by branch
    void restore(const CodeCounts& counts);

private:
    Quota top_;
    std::vector<std::vector<int64_t>> codes_;
    std::vector<Quota> leaves_;
};

// Integers in proportion to `weights` that sum to QUOTA_DENOMINATOR, by largest remainder; zero stays zero.
std::vector<int64_t> quantise(const std::vector<double>& weights, const std::string& field, const std::string& of = "");

// Weights of the top codes from "uniform" or "code:0=.3,code:1=.7". Throws Error naming `target`.
std::vector<double> parse_target(const std::string& target, size_t num_top_codes);

}  // namespace ddm
