// Compiled with -ffp-contract=off, as all of the library: a fused multiply-add would round once where numpy rounds
// twice.
#include "guidance.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "error.h"
#include "noise.h"
#include "numpy.h"
#include "runtime.h"
#include "text.h"

namespace ddm {
namespace {

// Mean and standard deviation (of a sample, n - 1).
Pair moments(const float* values, size_t size) {
    const auto n = static_cast<double>(size);
    double sum = 0, squares = 0;
    for (size_t i = 0; i < size; i++) sum += static_cast<double>(values[i]);
    const double mean = sum / n;
    for (size_t i = 0; i < size; i++) {
        const double off = static_cast<double>(values[i]) - mean;
        squares += off * off;
    }
    return {mean, size > 1 ? std::sqrt(squares / (n - 1)) : 0};
}

constexpr double SMALLEST = 1e-300;  // in place of ‖o‖² = 0

// numpy's clip from below: a NaN stays one.
double at_least(double value, double least) { return value < least ? least : value; }

// numpy's clip: a NaN stays one.
inline float clipped(float value, float low, float high) {
    value = value < low ? low : value;
    return value > high ? high : value;
}

}  // namespace

std::vector<double> kept_tokens(const std::vector<double>& t, double most, const std::optional<Pair>& times) {
    std::vector<double> kept(t.size(), 1.0);
    if (!times) return kept;
    const auto [end, begin] = *times;
    if (!(0 <= end && end < begin && begin <= 1)) {
        throw about("cads", concat(": noise ends at ", repr(end), " and begins at ", repr(begin),
                                   "; expected an end below, both within 0 and 1"));
    }
    for (size_t i = 0; i < t.size(); i++) kept[i] = std::clamp((begin - t[i] / most) / (begin - end), 0.0, 1.0);
    return kept;
}

void add_noise(float* tokens, size_t size, const NoiseAt& noise) {
    std::vector<float> mixed(size);
    normal(noise.seed, noise.step, TOKENS_STREAM, mixed.data(), size);
    const auto kept = static_cast<float>(std::sqrt(noise.kept));
    const auto scale = static_cast<float>(noise.scale * std::sqrt(1 - noise.kept));
    for (size_t i = 0; i < size; i++) mixed[i] = kept * tokens[i] + scale * mixed[i];
    const auto [mean, deviation] = moments(mixed.data(), size);
    if (deviation == 0) return;
    const auto [given_mean, given_deviation] = moments(tokens, size);
    const auto gain = static_cast<float>(given_deviation / deviation);
    const auto from = static_cast<float>(mean), to = static_cast<float>(given_mean);
    for (size_t i = 0; i < size; i++) tokens[i] = (mixed[i] - from) * gain + to;
}

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
