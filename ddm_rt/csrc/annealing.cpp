#include "annealing.h"

#include <algorithm>
#include <cmath>

#include "error.h"
#include "noise.h"
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

}  // namespace

std::vector<double> kept_tokens(const std::vector<double>& t, double most, const std::optional<Pair>& times) {
    std::vector<double> kept(t.size(), 1.0);
    if (!times) return kept;
    const auto [end, begin] = *times;
    if (!(0 <= end && end < begin && begin <= 1)) {
        throw Error(concat("cads: noise ends at ", repr(end), " and begins at ", repr(begin),
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

}  // namespace ddm
