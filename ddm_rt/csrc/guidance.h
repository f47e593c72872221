// Which branches of the denoiser an image needs, and the scale of each; the formulas stand in ddm_rt/sample/loop/guidance.py.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "annealing.h"

namespace ddm {

// What one branch is conditioned on. No text: zeros in its place.
struct Condition {
    std::optional<std::string> text;
    int64_t code;
    std::optional<NoiseAt> noise = std::nullopt;  // on the text's tokens

    auto operator<=>(const Condition&) const = default;
};

// From the least conditioned on, and the scales of the differences between neighbours, one fewer.
struct Branches {
    std::vector<Condition> conditions;
    std::vector<double> scales;
};

// CADS of a request: noise on the tokens of each condition but the null one, from which guidance starts.
struct TokenNoise {
    double scale;
    Condition null;
};

// The fewest branches for one image. No `text_scale`: the bundle takes no prompts.
Branches branches(const Condition& wanted, const std::optional<std::string>& null_text,
                  std::optional<double> text_scale, double code_scale);

}  // namespace ddm
