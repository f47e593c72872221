#include "natural.h"

#include <cmath>
#include <new>

namespace ddm {
namespace {

constexpr int UNIT = 1074;  // the smallest number above 0 is 2^-1074

void done(int good) {
    if (!good) throw std::bad_alloc();
}

}  // namespace

Natural::Natural(double value, int shift) : number_(BN_new(), BN_free) {
    int exponent = 0;
    const double fraction = std::frexp(value, &exponent);  // in [.5, 1), or 0
    auto whole = static_cast<uint64_t>(std::ldexp(fraction, 53));
    int places = exponent - 53 + UNIT;
    if (places < 0) whole >>= -places, places = 0;  // a subnormal number, whose low bits are 0
    done(number_ && BN_set_word(number_.get(), whole) && BN_lshift(number_.get(), number_.get(), places + shift));
}

Natural& Natural::operator+=(const Natural& other) {
    done(BN_add(number_.get(), number_.get(), other.number_.get()));
    return *this;
}

uint64_t Natural::divide(const Natural& divisor) {
    const std::unique_ptr<BN_CTX, decltype(&BN_CTX_free)> room(BN_CTX_new(), BN_CTX_free);
    const Natural quotient;
    done(room && BN_div(quotient.number_.get(), number_.get(), number_.get(), divisor.number_.get(), room.get()));
    return BN_get_word(quotient.number_.get());
}

double Natural::value() const {
    const int below = std::max(BN_num_bits(number_.get()) - 64, 0);  // bits that the word leaves out
    const Natural top;
    done(BN_rshift(top.number_.get(), number_.get(), below));
    uint64_t word = BN_get_word(top.number_.get());
    bool rest = false;
    for (int i = 0; i < below && !rest; ++i) rest = BN_is_bit_set(number_.get(), i);
    word |= rest;  // below what a double holds, so that it only decides between two of them
    return std::ldexp(static_cast<double>(word), below - UNIT);
}

double exact_sum(const std::vector<double>& values) {
    Natural total;
    for (const double value : values) total += Natural(value);
    return total.value();
}

}  // namespace ddm
