// Guidance and step-table update in one op: kernels/guided_step/reference.py, number by number.
#pragma once

#include <cstdint>
#include <vector>

#include "schedule.h"

namespace ddm {

// One step of one image of `size` numbers, in place:
//     out = o_0 + Σ_i scales[i]·(o_{i+1} - o_i);  x0 = clip(a·x + b·out);  x = c·x + d·x0 + e·x0 + g·out + f·z
// with the x0 before on the right. Sums run from left to right and each operation is rounded to float32. z is the noise
// of (seed, counter), where f isn't 0; `noise` is room for it.
void guided_step(const std::vector<const float*>& outputs, const std::vector<float>& scales, const StepTable::Row& row,
                 float* x, float* x0, size_t size, uint64_t seed, uint32_t counter, std::vector<float>& noise);

}  // namespace ddm
