// Guidance: which branches an image needs, how their outputs are combined, and a step of the table. The formulas stand
// in ddm_rt/sample/loop/guidance.py and annealing.py, and in kernels/*/reference.py, which this follows number by
// number.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "schedule.h"

namespace ddm {

// The noise of one image at one step.
struct NoiseAt {
    uint64_t seed;
    uint32_t step;
    double scale;
    double kept;  // γ, below 1

    auto operator<=>(const NoiseAt&) const = default;
};

// How much each step keeps of the tokens, for timesteps of `most`; without times, all. Throws Error for times that
// aren't two ascending ones within 0 and 1.
std::vector<double> kept_tokens(const std::vector<double>& t, double most, const std::optional<Pair>& times);

// Puts the noise on one prompt's tokens, in place.
void add_noise(float* tokens, size_t size, const NoiseAt& noise);

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

struct Projection {
    float norm;  // the largest of a difference
    float eta;   // how much of its part along the more conditioned output is kept
};

// Combines the outputs of one image of `size` numbers each, 2 or 3 of them, into `out`:
//     out = o_0 + Σ_i scales[i]·(Δ⊥_i + η·Δ∥_i),  Δ_i = (o_{i+1} - o_i)·min(1, norm/‖o_{i+1} - o_i‖)
void projected_guidance(const std::vector<const float*>& outputs, const std::vector<float>& scales,
                        const Projection& projection, float* out, size_t size);

// One step of one image of `size` numbers, in place:
//     out = o_0 + Σ_i scales[i]·(o_{i+1} - o_i);  x0 = clip(a·x + b·out);  x = c·x + d·x0 + e·x0 + g·out + f·z
// with the x0 before on the right. Sums run from left to right and each operation is rounded to float32. z is the noise
// of (seed, counter), where f isn't 0; `noise` is room for it.
void guided_step(const std::vector<const float*>& outputs, const std::vector<float>& scales, const StepTable::Row& row,
                 float* x, float* x0, size_t size, uint64_t seed, uint32_t counter, std::vector<float>& noise);

}  // namespace ddm
