#include "numpy.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace ddm::numpy {
namespace {

double sum_of(const double* values, size_t n) {
    if (n < 8) {
        double total = 0;
        for (size_t i = 0; i < n; ++i) total += values[i];
        return total;
    }
    if (n > 128) {
        const size_t half = n / 2 - n / 2 % 8;
        return sum_of(values, half) + sum_of(values + half, n - half);
    }
    double r[8];
    std::copy_n(values, 8, r);
    size_t i = 8;
    for (; i + 8 <= n; i += 8) {
        for (size_t k = 0; k < 8; ++k) r[k] += values[i + k];
    }
    double total = ((r[0] + r[1]) + (r[2] + r[3])) + ((r[4] + r[5]) + (r[6] + r[7]));
    for (; i < n; ++i) total += values[i];
    return total;
}

}  // namespace

double sum(const Floats& values) { return sum_of(values.data(), values.size()); }

double power(double base, double exponent) {
    // Out of the compiler's sight, which would make a product of a square.
    double (*volatile function)(double, double) = std::pow;
    return function(base, exponent);
}

Floats linspace(double start, double stop, size_t n, bool endpoint) {
    const size_t intervals = endpoint ? n - 1 : n;
    const double delta = stop - start;
    const double step = intervals ? delta / static_cast<double>(intervals) : 1;
    Floats out;
    for (size_t i = 0; i < n; ++i) {
        auto y = static_cast<double>(i);
        if (intervals == 0) y *= delta;
        else if (step == 0) y = y / static_cast<double>(intervals) * delta;
        else y *= step;
        out.push_back(y + start);
    }
    if (endpoint && n > 1) out.back() = stop;
    return out;
}

Floats interp(const Floats& x, const Floats& xp, const Floats& fp) {
    Floats out;
    for (const double at : x) {
        if (std::isnan(at)) {
            out.push_back(at);
            continue;
        }
        const auto above = std::upper_bound(xp.begin(), xp.end(), at);
        if (above == xp.begin()) {
            out.push_back(fp.front());
        } else if (const auto j = static_cast<size_t>(above - xp.begin()) - 1; j + 1 == xp.size()) {
            out.push_back(fp.back());
        } else if (xp[j] == at) {
            out.push_back(fp[j]);
        } else {
            const double slope = (fp[j + 1] - fp[j]) / (xp[j + 1] - xp[j]);
            double value = slope * (at - xp[j]) + fp[j];
            if (std::isnan(value)) value = slope * (at - xp[j + 1]) + fp[j + 1];
            if (std::isnan(value) && fp[j] == fp[j + 1]) value = fp[j];
            out.push_back(value);
        }
    }
    return out;
}

}  // namespace ddm::numpy
