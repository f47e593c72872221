// R. Tijdeman, "The chairman assignment problem", Discrete Mathematics 32 (1980) 323-330, in exact integers.
#include "quota.h"

#include <openssl/bn.h>
#include <algorithm>
#include <cmath>
#include <memory>
#include <new>
#include <numeric>
#include <set>

#include "error.h"
#include "text.h"
#include "unicode.h"

namespace ddm {
namespace {

__extension__ typedef __int128 Wide;

// Python counts without end; what no program has drawn is refused before a product could overflow.
constexpr int64_t MOST_DRAWS = int64_t{1} << 62;

std::vector<double> values_of(const Shares& shares) {
    std::vector<double> out;
    for (const auto& [code, share] : shares) out.push_back(share);
    return out;
}

constexpr int UNIT = 1074;  // the smallest number above 0 is 2^-1074

// Floating-point numbers as whole multiples of 2^-1074, so that sums and quotients of them need no rounding.
class Natural {
public:
    // `value`·2^(1074 + shift), which is whole for every finite value from 0.
    explicit Natural(double value = 0, int shift = 0) : number_(BN_new(), BN_free) {
        int exponent = 0;
        const double fraction = std::frexp(value, &exponent);  // in [.5, 1), or 0
        auto whole = static_cast<uint64_t>(std::ldexp(fraction, 53));
        int places = exponent - 53 + UNIT;
        if (places < 0) whole >>= -places, places = 0;  // a subnormal number, whose low bits are 0
        done(number_ && BN_set_word(number_.get(), whole) && BN_lshift(number_.get(), number_.get(), places + shift));
    }

    void operator+=(const Natural& other) { done(BN_add(number_.get(), number_.get(), other.number_.get())); }
    bool operator>(const Natural& other) const { return BN_cmp(number_.get(), other.number_.get()) > 0; }

    // The quotient, below 2^63; this becomes the remainder.
    uint64_t divide(const Natural& divisor) {
        const std::unique_ptr<BN_CTX, decltype(&BN_CTX_free)> room(BN_CTX_new(), BN_CTX_free);
        const Natural quotient;
        done(room && BN_div(quotient.number_.get(), number_.get(), number_.get(), divisor.number_.get(), room.get()));
        return BN_get_word(quotient.number_.get());
    }

    // This·2^-1074, rounded to nearest.
    double value() const {
        const int below = std::max(BN_num_bits(number_.get()) - 64, 0);  // bits that the word leaves out
        const Natural top;
        done(BN_rshift(top.number_.get(), number_.get(), below));
        uint64_t word = BN_get_word(top.number_.get());
        for (int i = 0; i < below; ++i)
            word |= static_cast<uint64_t>(BN_is_bit_set(number_.get(), i));  // decides ties alone
        return std::ldexp(static_cast<double>(word), below - UNIT);
    }

private:
    static void done(int good) {
        if (!good) throw std::bad_alloc();
    }

    std::unique_ptr<BIGNUM, decltype(&BN_free)> number_;
};

}  // namespace

Quota::Quota(const std::vector<double>& weights, const std::string& field)
    : weights_(quantise(weights, field)), counts_(weights.size()), lag_(weights.size()) {
    for (size_t k = 0; k < weights_.size(); ++k) {
        if (weights_[k]) live_.push_back(k);
    }
    const auto parts = static_cast<int64_t>(2 * live_.size()) - 2;
    // The bound 1 - 1/(2K - 2), rounded down; 0 for K = 1.
    largest_lag_ = parts ? static_cast<int64_t>(Wide{QUOTA_DENOMINATOR} * (parts - 1) / parts) : 0;
}

size_t Quota::draw() {
    for (const size_t k : live_) lag_[k] += weights_[k];
    size_t chosen = live_[0];
    if (live_.size() > 1) {
        // Both sides of Tijdeman's conditions are multiplied by (2K - 2)·QUOTA_DENOMINATOR.
        const Wide parts = static_cast<Wide>(2 * live_.size() - 2);
        Wide numerator = 1, denominator = 0;  // +∞: the soonest deadline so far, in draws from now, as a fraction
        for (const size_t k : live_) {
            const Wide scaled = parts * lag_[k];
            if (scaled < QUOTA_DENOMINATOR) continue;
            const Wide slack = (parts - 1) * QUOTA_DENOMINATOR - scaled;
            if (slack * denominator < numerator * weights_[k]) {
                chosen = k;
                numerator = slack;
                denominator = weights_[k];
            }
        }
    }
    lag_[chosen] -= QUOTA_DENOMINATOR;
    ++counts_[chosen];
    return chosen;
}

void Quota::restore(const std::vector<int64_t>& counts) {
    const bool negative = std::any_of(counts.begin(), counts.end(), [](int64_t count) { return count < 0; });
    if (counts.size() != weights_.size() || negative) {
        throw Error(concat("counts: expected ", weights_.size(), " whole numbers, not negative"));
    }
    const Wide n = std::accumulate(counts.begin(), counts.end(), Wide{0});
    std::vector<int64_t> lag;
    for (size_t k = 0; k < counts.size(); ++k) {
        const Wide behind = n * weights_[k] - Wide{counts[k]} * QUOTA_DENOMINATOR;
        if (n > MOST_DRAWS || behind > largest_lag_ || -behind > largest_lag_) {
            throw Error("counts: further from the weights than any draws could be");
        }
        lag.push_back(static_cast<int64_t>(behind));
    }
    counts_ = counts;
    lag_ = std::move(lag);
}

TreeQuota::TreeQuota(const std::vector<double>& top_weights, const Tree& leaf_shares)
    : top_([&] {
          if (top_weights.size() == leaf_shares.size()) return Quota(top_weights, "target");
          throw about("target", concat(" has ", top_weights.size(), " top codes; the tree has ", leaf_shares.size()));
      }()) {
    std::set<int64_t> seen;
    bool twice = false;
    for (const Shares& shares : leaf_shares) {
        codes_.emplace_back();
        for (const auto& [code, share] : shares) {
            codes_.back().push_back(code);
            twice = !seen.insert(code).second || twice;
        }
        leaves_.emplace_back(values_of(shares), concat("shares of top code ", leaves_.size()));
    }
    if (twice) throw Error("a code stands in more than one branch of the tree");
}

int64_t TreeQuota::draw() {
    const size_t top = top_.draw();
    return codes_[top][leaves_[top].draw()];
}

CodeCounts TreeQuota::counts() const {
    CodeCounts out;
    for (size_t top = 0; top < codes_.size(); ++top) {
        for (size_t i = 0; i < codes_[top].size(); ++i) out.emplace_back(codes_[top][i], leaves_[top].counts()[i]);
    }
    return out;
}

void TreeQuota::restore(const CodeCounts& counts) {
    const auto sorted = [](CodeCounts list) {
        std::sort(list.begin(), list.end());
        return list;
    };
    const auto named = [&](const CodeCounts& list) {
        std::vector<std::string> names;
        for (const auto& [code, count] : sorted(list)) names.push_back(std::to_string(code));
        return "[" + join(", ", names) + "]";
    };
    if (named(counts) != named(this->counts())) {
        throw Error(
            concat("counts: expected one for each of the codes ", named(this->counts()), "; found ", named(counts)));
    }
    const CodeCounts given = sorted(counts);
    std::vector<int64_t> tops;
    for (size_t top = 0; top < codes_.size(); ++top) {
        std::vector<int64_t> branch;
        for (const int64_t code : codes_[top]) {
            branch.push_back(std::lower_bound(given.begin(), given.end(), std::pair(code, INT64_MIN))->second);
        }
        leaves_[top].restore(branch);
        tops.push_back(std::accumulate(branch.begin(), branch.end(), int64_t{0}));
    }
    top_.restore(tops);
}

std::vector<int64_t> quantise(const std::vector<double>& weights, const std::string& field, const std::string& of) {
    if (weights.empty()) throw about(field, of + ": no weights; expected at least one");
    Natural total;
    for (size_t k = 0; k < weights.size(); ++k) {
        if (!(std::isfinite(weights[k]) && weights[k] >= 0)) {
            throw about(field, concat(of, ": weight ", k, " is ", repr(weights[k]),
                                      "; expected a finite number, not negative"));
        }
        total += Natural(weights[k]);
    }
    const double sum = total.value();
    if (std::abs(sum - 1) > SUM_TOLERANCE) {
        throw about(field, concat(of, ": the weights sum to ", general(sum, 9), "; expected 1"));
    }
    std::vector<int64_t> whole;
    std::vector<Natural> remainders;
    int64_t left = QUOTA_DENOMINATOR;
    for (const double weight : weights) {
        Natural exact(weight, 48);
        whole.push_back(static_cast<int64_t>(exact.divide(total)));
        remainders.push_back(std::move(exact));
        left -= whole.back();
    }
    std::vector<size_t> by_remainder(weights.size());
    std::iota(by_remainder.begin(), by_remainder.end(), size_t{0});
    std::stable_sort(by_remainder.begin(), by_remainder.end(),
                     [&](size_t a, size_t b) { return remainders[a] > remainders[b]; });
    for (size_t i = 0; i < static_cast<size_t>(left); ++i) ++whole[by_remainder[i]];
    return whole;
}

std::vector<double> parse_target(const std::string& target, size_t num_top_codes) {
    if (target == "uniform") return std::vector<double>(num_top_codes, 1 / static_cast<double>(num_top_codes));
    std::vector<std::string> names;
    for (size_t k = 0; k < num_top_codes; ++k) names.push_back(concat("code:", k));
    std::vector<double> weights(num_top_codes);
    std::set<size_t> seen;
    for (const std::string& part : split(target, ',')) {
        const size_t equals = part.find('=');
        const std::string name(strip(part.substr(0, equals)));
        const std::string share(equals == part.npos ? "" : strip(std::string_view(part).substr(equals + 1)));
        const auto place = static_cast<size_t>(std::find(names.begin(), names.end(), name) - names.begin());
        if (place == names.size() || equals == part.npos) {
            throw about("target", concat(" ", repr(target), ": ", repr(strip(part)),
                                         "; expected uniform, or NAME=SHARE with NAME in ", join(", ", names)));
        }
        if (!seen.insert(place).second) throw about("target", concat(" ", repr(target), ": ", name, " is given twice"));
        const auto value = parse_float(share);
        if (!value) {
            throw about("target",
                        concat(" ", repr(target), ": ", repr(share), " is no number; expected the share of ", name));
        }
        weights[place] = *value;
    }
    quantise(weights, "target", " " + repr(target));
    return weights;
}

double exact_sum(const std::vector<double>& values) {
    Natural total;
    for (const double value : values) total += Natural(value);
    return total.value();
}

}  // namespace ddm
