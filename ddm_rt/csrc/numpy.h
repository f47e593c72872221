// The few functions of numpy that step tables stand on, with its order of operations, so that both sides get one table.
#pragma once

#include <cstddef>
#include <vector>

namespace ddm::numpy {

using Floats = std::vector<double>;

double power(double base, double exponent);  // a call of the C library's pow, which no compiler replaces
Floats linspace(double start, double stop, size_t n, bool endpoint = true);
double sum(const Floats& values);                                    // pairwise
Floats interp(const Floats& x, const Floats& xp, const Floats& fp);  // xp ascends

}  // namespace ddm::numpy
