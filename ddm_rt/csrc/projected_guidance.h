// Adaptive projected guidance: kernels/projected_guidance/reference.py, number by number.
#pragma once

#include <cstddef>
#include <vector>

namespace ddm {

struct Projection {
    float norm;  // the largest of a difference
    float eta;   // how much of its part along the more conditioned output is kept
};

// Combines the outputs of one image of `size` numbers each, 2 or 3 of them, into `out`:
//     out = o_0 + Σ_i scales[i]·(Δ⊥_i + η·Δ∥_i),  Δ_i = (o_{i+1} - o_i)·min(1, norm/‖o_{i+1} - o_i‖)
void projected_guidance(const std::vector<const float*>& outputs, const std::vector<float>& scales,
                        const Projection& projection, float* out, size_t size);

}  // namespace ddm
