// Floating-point numbers as whole multiples of one tiny unit: sums, products and quotients of them without rounding.
#ifndef DDM_RT_NATURAL_H
#define DDM_RT_NATURAL_H

#include <cstddef>
#include <compare>
#include <cstdint>
#include <vector>

namespace ddm {

// A whole number from 0 of any size.
class Natural {
public:
    Natural() = default;

    // `value`·2^1074, which is whole for every finite value from 0.
    static Natural of(double value);

    Natural& operator+=(const Natural& other);
    Natural& operator-=(const Natural& other);  // which isn't larger
    Natural shifted(size_t bits) const;         // to the left

    // This divided by `divisor`, of which it has less than 2^63; this becomes the remainder.
    uint64_t divide(const Natural& divisor);

    // This·2^-1074, rounded to nearest; infinite where it is too large.
    double value() const;

    std::strong_ordering operator<=>(const Natural& other) const;
    bool operator==(const Natural& other) const = default;

private:
    size_t bits() const;
    void trim();

    std::vector<uint32_t> words_;  // the least significant first; the last is not 0
};

}  // namespace ddm

#endif
