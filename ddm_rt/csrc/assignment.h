// Which code each image of a request gets: given, none, or drawn by a quota, of the request alone or of a scope
// (ddm_rt/sample/balance/assignment.py).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "bundle.h"
#include "ledger.h"
#include "quota.h"

namespace ddm {

struct Wanted;

// What a quota draws by: `target` as the ledger knows it, and the shares of top codes and of codes in them.
struct Weights {
    std::string target;
    std::vector<double> tops;
    Tree leaves;
    std::optional<std::string> calibration_id;

    TreeQuota quota() const { return {tops, leaves}; }
};

// A request's way to its codes, checked; nothing is drawn yet.
struct CodePlan {
    int64_t n;
    std::optional<std::vector<int64_t>> codes;  // none where a quota draws them
    std::vector<int64_t> balanced = {};         // numbers of the images that it draws for; the others get the null code
};

struct Assigned {
    std::vector<int64_t> codes;
    std::optional<std::vector<std::optional<int64_t>>> positions = {};  // in the scope's stream
    std::optional<Lease> lease = {};                                    // of a scope
};

// Throws Error naming the argument that doesn't fit. `left_alone` are the images that get no code.
CodePlan plan_codes(const Bundle& bundle, const Wanted& wanted, Balance balance, const std::vector<int64_t>& left_alone,
                    int64_t prompts);

// By `weights` where a quota draws the codes.
Assigned draw_codes(const CodePlan& plan, const std::optional<Weights>& weights, const Bundle& bundle,
                    const Wanted& wanted, Ledger& ledger);

// Throws Error for a code that the bundle hasn't got.
void check_codes(const Bundle& bundle, const std::vector<int64_t>& codes, const std::string& field);

// Whether the target is over top codes, and not over groups.
bool names_top_codes(const std::string& target);

Weights by_top_codes(const Tree& tree, const std::string& target);

// Weights of the codes themselves: a top code has the sum of its branch, a code its part of that sum.
Weights by_codes(const Tree& tree, const std::string& target, const std::vector<double>& code_weights,
                 const std::optional<std::string>& calibration_id);

// The weights of a target over top codes or factors; none for one over groups, which only calibrations know.
std::optional<Weights> by_names(const Bundle& bundle, const Tree& tree, const std::string& target);

// What to add to the refusal of a target over groups, which may have been meant for factors.
std::string other_names(const Bundle& bundle, const std::string& target);

// For each top code, its codes with their shares of it.
Tree code_tree(const Bundle& bundle);

}  // namespace ddm
