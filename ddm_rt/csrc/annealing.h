// CADS: noise on a prompt's tokens that fades while an image is made; the formulas stand in ddm_rt/sample/loop/annealing.py.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
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

// How much each step keeps of the tokens, for timesteps of `most`; without times, all. Throws Error for times that aren't
// two ascending ones within 0 and 1.
std::vector<double> kept_tokens(const std::vector<double>& t, double most, const std::optional<Pair>& times);

// Puts the noise on one prompt's tokens, in place.
void add_noise(float* tokens, size_t size, const NoiseAt& noise);

}  // namespace ddm
