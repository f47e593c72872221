// A step between equal conditions adds nothing, nor does a last one of scale 0; a first one of scale 1 replaces what it
// starts from; two steps of one scale are one step.
#include "guidance.h"

#include <utility>

#include "runtime.h"

namespace ddm {

Branches branches(const Condition& wanted, const std::optional<std::string>& null_text,
                  std::optional<double> text_scale, double code_scale) {
    Branches found{{{null_text, NULL_CODE}}, {}};
    auto& [conditions, scales] = found;
    std::vector<std::pair<Condition, double>> steps;
    if (text_scale) steps.emplace_back(Condition{wanted.text, NULL_CODE}, *text_scale);
    steps.emplace_back(wanted, code_scale);
    for (const auto& [condition, scale] : steps) {
        if (condition == conditions.back()) continue;
        if (!scales.empty() && scales.back() == scale) {
            conditions.back() = condition;
        } else {
            conditions.push_back(condition);
            scales.push_back(scale);
        }
    }
    while (!scales.empty() && scales.back() == 0) {
        conditions.pop_back();
        scales.pop_back();
    }
    if (!scales.empty() && scales.front() == 1) {
        conditions.erase(conditions.begin());
        scales.erase(scales.begin());
    }
    return found;
}

}  // namespace ddm
