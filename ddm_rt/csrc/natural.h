// Floating-point numbers as whole multiples of one tiny unit, so that sums and quotients of them need no rounding.
#pragma once

#include <cstdint>
#include <memory>
#include <openssl/bn.h>
#include <vector>

namespace ddm {

// `value`·2^(1074 + shift), which is whole for every finite value from 0. Throws std::bad_alloc.
class Natural {
public:
    explicit Natural(double value = 0, int shift = 0);

    Natural& operator+=(const Natural& other);
    uint64_t divide(const Natural& divisor);  // the quotient, below 2^63; this becomes the remainder
    double value() const;                     // this·2^-1074, rounded to nearest
    bool operator>(const Natural& other) const { return BN_cmp(number_.get(), other.number_.get()) > 0; }

private:
    std::unique_ptr<BIGNUM, decltype(&BN_free)> number_;
};

// The sum of numbers from 0, rounded once.
double exact_sum(const std::vector<double>& values);

}  // namespace ddm
