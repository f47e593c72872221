#include "projected_guidance.h"

#include <algorithm>
#include <cmath>

#include "numpy.h"

namespace ddm {
namespace {

constexpr double SMALLEST = 1e-300;  // in place of ‖o‖² = 0

// numpy's clip from below: a NaN stays one.
double at_least(double value, double least) { return value < least ? least : value; }

}  // namespace

void projected_guidance(const std::vector<const float*>& outputs, const std::vector<float>& scales,
                        const Projection& projection, float* out, size_t size) {
    std::vector<double> room(size);
    const double largest = projection.norm, eta = projection.eta;
    std::copy_n(outputs[0], size, out);
    for (size_t k = 0; k + 1 < outputs.size(); k++) {
        const float *before = outputs[k], *given = outputs[k + 1];
        const auto total = [&](const auto& product) {
            for (size_t i = 0; i < size; i++) room[i] = product(double{given[i] - before[i]}, double{given[i]});
            return numpy::sum(room);
        };
        const double norm = std::sqrt(total([](double delta, double) { return delta * delta; }));
        const double product = total([](double delta, double o) { return delta * o; });
        const double along = product / at_least(total([](double, double o) { return o * o; }), SMALLEST);
        const double p = scales[k] * (largest / at_least(norm, largest));
        const double q = p * (eta - 1) * along;
        const auto across = static_cast<float>(p), along_output = static_cast<float>(q);
        for (size_t i = 0; i < size; i++) {
            out[i] = out[i] + (across * (given[i] - before[i]) + along_output * given[i]);
        }
    }
}

}  // namespace ddm
