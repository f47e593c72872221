// Compiled with -ffp-contract=off, as all of the library: a fused multiply-add would round once where numpy rounds twice.
#include "guided_step.h"

#include "noise.h"

namespace ddm {
namespace {

// numpy's clip: a NaN stays one.
inline float clipped(float value, float low, float high) {
    value = value < low ? low : value;
    return value > high ? high : value;
}

}  // namespace

void guided_step(const std::vector<const float*>& outputs, const std::vector<float>& scales, const StepTable::Row& row,
                 float* x, float* x0, size_t size, uint64_t seed, uint32_t counter, std::vector<float>& noise) {
    const auto [a, b, c, d, e, g, f, low, high] = row;
    const bool with_noise = f != 0;
    if (with_noise) {
        noise.resize(size);
        normal(seed, counter, STEP_STREAM, noise.data(), size);
    }
    for (size_t i = 0; i < size; i++) {
        float out = outputs[0][i];
        for (size_t k = 0; k + 1 < outputs.size(); k++) out = out + scales[k] * (outputs[k + 1][i] - outputs[k][i]);
        const float now = clipped(a * x[i] + b * out, low, high);
        float next = c * x[i] + d * now + e * x0[i] + g * out;
        if (with_noise) next = next + f * noise[i];
        x[i] = next;
        x0[i] = now;
    }
}

}  // namespace ddm
