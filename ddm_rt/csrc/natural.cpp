#include "natural.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace ddm {
namespace {

constexpr int UNIT = 1074;  // the smallest number above 0 is 2^-1074

}  // namespace

Natural Natural::of(double value) {
    int exponent = 0;
    const double fraction = std::frexp(value, &exponent);  // in [.5, 1), or 0
    auto whole = static_cast<uint64_t>(std::ldexp(fraction, 53));
    int shift = exponent - 53 + UNIT;
    if (shift < 0) {  // a subnormal number, whose low bits are 0
        whole >>= -shift;
        shift = 0;
    }
    Natural out;
    out.words_ = {static_cast<uint32_t>(whole), static_cast<uint32_t>(whole >> 32)};
    out.trim();
    return out.shifted(static_cast<size_t>(shift));
}

Natural& Natural::operator+=(const Natural& other) {
    words_.resize(std::max(words_.size(), other.words_.size()) + 1);
    uint64_t carry = 0;
    for (size_t i = 0; i < words_.size(); ++i) {
        carry += uint64_t{words_[i]} + (i < other.words_.size() ? other.words_[i] : 0);
        words_[i] = static_cast<uint32_t>(carry);
        carry >>= 32;
    }
    trim();
    return *this;
}

Natural& Natural::operator-=(const Natural& other) {
    int64_t borrow = 0;
    for (size_t i = 0; i < words_.size(); ++i) {
        borrow += int64_t{words_[i]} - (i < other.words_.size() ? int64_t{other.words_[i]} : 0);
        words_[i] = static_cast<uint32_t>(borrow);
        borrow >>= 32;
    }
    trim();
    return *this;
}

Natural Natural::shifted(size_t bits) const {
    Natural out;
    if (words_.empty()) return out;
    out.words_.assign(bits / 32, 0);
    const size_t part = bits % 32;
    uint64_t carry = 0;
    for (const uint32_t word : words_) {
        carry |= uint64_t{word} << part;
        out.words_.push_back(static_cast<uint32_t>(carry));
        carry >>= 32;
    }
    out.words_.push_back(static_cast<uint32_t>(carry));
    out.trim();
    return out;
}

uint64_t Natural::divide(const Natural& divisor) {
    uint64_t quotient = 0;
    if (bits() < divisor.bits()) return quotient;
    for (size_t shift = bits() - divisor.bits() + 1; shift-- > 0;) {
        const Natural part = divisor.shifted(shift);
        if (*this < part) continue;
        *this -= part;
        quotient |= uint64_t{1} << shift;
    }
    return quotient;
}

double Natural::value() const {
    const size_t size = bits();
    if (size <= 53) {
        uint64_t whole = 0;
        for (size_t i = words_.size(); i-- > 0;) whole = whole << 32 | words_[i];
        return std::ldexp(static_cast<double>(whole), -UNIT);
    }
    const auto bit = [this](size_t i) { return words_[i / 32] >> (i % 32) & 1; };
    uint64_t top = 0;
    for (size_t i = 0; i < 53; ++i) top = top << 1 | bit(size - 1 - i);
    bool below = false;
    for (size_t i = 0; i + 54 < size; ++i) below = below || bit(i);
    if (bit(size - 54) && (below || (top & 1))) ++top;  // ties to even
    return std::ldexp(static_cast<double>(top), static_cast<int>(size) - 53 - UNIT);
}

std::strong_ordering Natural::operator<=>(const Natural& other) const {
    if (words_.size() != other.words_.size()) return words_.size() <=> other.words_.size();
    for (size_t i = words_.size(); i-- > 0;) {
        if (words_[i] != other.words_[i]) return words_[i] <=> other.words_[i];
    }
    return std::strong_ordering::equal;
}

size_t Natural::bits() const {
    return words_.empty() ? 0 : 32 * words_.size() - static_cast<size_t>(std::countl_zero(words_.back()));
}

void Natural::trim() {
    while (!words_.empty() && words_.back() == 0) words_.pop_back();
}

}  // namespace ddm
