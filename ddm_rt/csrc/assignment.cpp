#include "assignment.h"

#include <algorithm>
#include <numeric>
#include <set>

#include "error.h"
#include "factors.h"
#include "noise.h"
#include "prepare.h"
#include "quota.h"
#include "text.h"
#include "unicode.h"

namespace ddm {
namespace {

constexpr size_t SCOPE_LENGTH = 200;

void check_scope(const std::optional<std::string>& scope) {
    if (!scope) return;
    const size_t length = code_points(*scope);
    if (length > 0 && length <= SCOPE_LENGTH && is_printable(*scope)) return;
    throw about("scope", concat(" is ", repr(*scope), "; expected 1 to ", SCOPE_LENGTH, " printable characters"));
}

void check_nothing_to_draw(const Wanted& wanted) {
    const auto refuse = [](const char* field, const std::string& value) {
        throw about(field, concat(" is ", value, ", but no quota draws the codes of this request"));
    };
    if (wanted.target != "uniform") refuse("target", repr(wanted.target));
    if (wanted.scope) refuse("scope", repr(*wanted.scope));
    if (wanted.shuffle) refuse("shuffle", "True");
}

}  // namespace

CodePlan plan_codes(const Bundle& bundle, const Wanted& wanted, Balance balance, const std::vector<int64_t>& left_alone,
                    int64_t prompts) {
    const int64_t n = wanted.n;
    const bool quota = !wanted.codes && balance != Balance::off && bundle.codes.num_codes() > 0;
    const std::vector<int64_t> nulls(static_cast<size_t>(n), NULL_CODE);
    if (balance == Balance::on && !quota) {
        const char* reason = wanted.codes ? "codes are given" : "the bundle has no codes";
        throw about("balance", concat(" is \"on\", but ", reason, "; expected \"off\" or \"auto\""));
    }
    check_scope(wanted.scope);
    if (quota) {
        CodePlan plan{n, std::nullopt};
        // Where the images take several prompts in turn, each prompt has a run of the codes drawn.
        for (int64_t first = 0; first < prompts; ++first) {
            for (int64_t i = first; i < n; i += prompts) {
                if (!std::binary_search(left_alone.begin(), left_alone.end(), i)) plan.balanced.push_back(i);
            }
        }
        if (plan.balanced.empty()) plan.codes = nulls;
        return plan;
    }
    check_nothing_to_draw(wanted);
    const std::vector<int64_t>& given = wanted.codes ? *wanted.codes : nulls;
    if (static_cast<int64_t>(given.size()) != n) {
        throw about("codes", concat(" has ", given.size(), " entries; expected n = ", n));
    }
    check_codes(bundle, given, "codes");
    if (balance == Balance::off && given != nulls) {
        throw about("balance", " is \"off\", which means the null code (-1); leave it at \"auto\" to give codes");
    }
    return {n, given};
}

Assigned draw_codes(const CodePlan& plan, const std::optional<Weights>& weights, const Bundle& bundle,
                    const Wanted& wanted, Ledger& ledger) {
    if (plan.codes || !weights) return {plan.codes.value_or(std::vector<int64_t>())};
    const size_t count = plan.balanced.size();
    std::vector<size_t> order(count);
    std::iota(order.begin(), order.end(), size_t{0});
    if (wanted.shuffle) order = shuffled(wanted.seed, count);
    Assigned out{std::vector<int64_t>(static_cast<size_t>(plan.n), NULL_CODE)};
    const auto code_of = [&](size_t i) -> int64_t& { return out.codes[static_cast<size_t>(plan.balanced[i])]; };
    if (!wanted.scope) {
        TreeQuota quota = weights->quota();
        std::vector<int64_t> drawn;
        for (size_t i = 0; i < count; ++i) drawn.push_back(quota.draw());
        for (size_t i = 0; i < count; ++i) code_of(i) = drawn[order[i]];
        return out;
    }
    const Stream stream{bundle.bundle_id, *wanted.scope, weights->target, weights->calibration_id};
    out.lease.emplace(ledger.lease(stream, [&] { return weights->quota(); }, static_cast<int64_t>(count)));
    out.positions.emplace(static_cast<size_t>(plan.n));
    for (size_t i = 0; i < count; ++i) {
        const Draw& draw = out.lease->draws()[order[i]];
        code_of(i) = draw.code;
        (*out.positions)[static_cast<size_t>(plan.balanced[i])] = draw.position;
    }
    return out;
}

void check_codes(const Bundle& bundle, const std::vector<int64_t>& codes, const std::string& field) {
    const auto most = static_cast<int64_t>(bundle.codes.num_codes());
    for (size_t i = 0; i < codes.size(); ++i) {
        if (NULL_CODE <= codes[i] && codes[i] < most) continue;
        const std::string choices =
            most ? concat("-1 (null) to ", most - 1) : "-1, the null code: this bundle has no others";
        throw about(field, concat(": image ", i, " has code ", codes[i], "; expected ", choices));
    }
}

bool names_top_codes(const std::string& target) { return target == "uniform" || strip(target).starts_with("code:"); }

Weights by_top_codes(const Tree& tree, const std::string& target) {
    const std::vector<double> tops = parse_target(target, tree.size());
    if (target == "uniform") return {target, tops, tree, std::nullopt};
    std::vector<std::string> parts;  // one target, however it is written
    for (size_t top = 0; top < tops.size(); ++top) {
        if (tops[top] != 0) parts.push_back(concat("code:", top, "=", repr(tops[top])));
    }
    return {join(",", parts), tops, tree, std::nullopt};
}

Weights by_codes(const Tree& tree, const std::string& target, const std::vector<double>& code_weights,
                 const std::optional<std::string>& calibration_id) {
    Weights out{target, {}, {}, calibration_id};
    for (const Shares& branch : tree) {
        std::vector<double> weights;
        for (const auto& [code, share] : branch) weights.push_back(code_weights[static_cast<size_t>(code)]);
        const double top = exact_sum(weights);
        out.tops.push_back(top);
        out.leaves.push_back(branch);
        if (top == 0) continue;
        for (size_t i = 0; i < branch.size(); ++i) out.leaves.back()[i].second = weights[i] / top;
    }
    return out;
}

std::optional<Weights> by_names(const Bundle& bundle, const Tree& tree, const std::string& target) {
    const Codes& codes = bundle.codes;
    if (names_top_codes(target)) return by_top_codes(tree, target);
    if (!names_factors(target, codes.factors)) return std::nullopt;
    const WantedShares wanted = parse_factors(target, codes.factors);
    return by_codes(tree, spelled(wanted, codes.factors), cell_weights(codes, wanted, target), std::nullopt);
}

std::string other_names(const Bundle& bundle, const std::string& target) {
    const std::vector<Factor>& factors = bundle.codes.factors;
    bool meant = target.find(':') != target.npos;
    for (const Factor& factor : factors) {
        for (const std::string& value : factor.values) meant = meant || target.find(value) != target.npos;
    }
    if (factors.empty() || !meant) return "";
    return concat(" (the bundle's factors are ", known_factors(factors), ")");
}

Tree code_tree(const Bundle& bundle) {
    Tree tree(bundle.codes.num_top_codes());
    for (const Leaf& leaf : bundle.codes.leaves) {
        tree[static_cast<size_t>(leaf.top_code)].emplace_back(leaf.code, leaf.share_in_top);
    }
    return tree;
}

}  // namespace ddm
