#include "noise.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace ddm {
namespace {

constexpr uint32_t DERIVE = 1, SHUFFLE = 2;  // fourth word of the counter; noise has 0

uint64_t first_64_bits(uint64_t seed, uint32_t index, uint32_t purpose) {
    const auto words = philox4x32({index, 0, 0, purpose}, seed);
    return words[0] | static_cast<uint64_t>(words[1]) << 32;
}

}  // namespace

std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> c, uint64_t key) {
    auto k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
    for (int round = 0; round < 10; ++round) {
        const uint64_t product0 = uint64_t{0xD2511F53} * c[0], product1 = uint64_t{0xCD9E8D57} * c[2];
        c = {static_cast<uint32_t>(product1 >> 32) ^ c[1] ^ k0, static_cast<uint32_t>(product1),
             static_cast<uint32_t>(product0 >> 32) ^ c[3] ^ k1, static_cast<uint32_t>(product0)};
        k0 += 0x9E3779B9;
        k1 += 0xBB67AE85;
    }
    return c;
}

void normal(uint64_t seed, uint32_t row, uint32_t stream, float* out, size_t size) {
    const auto uniform = [](uint32_t word) { return (static_cast<double>(word) + 0.5) * 0x1p-32; };
    for (size_t first = 0; first < size; first += 4) {
        const auto words = philox4x32({static_cast<uint32_t>(first / 4), row, stream, 0}, seed);
        float block[4];
        for (size_t pair = 0; pair < 2; ++pair) {  // Box-Muller
            const double radius = std::sqrt(-2 * std::log(uniform(words[2 * pair])));
            const double angle = 2 * M_PI * uniform(words[2 * pair + 1]);
            block[2 * pair] = static_cast<float>(radius * std::cos(angle));
            block[2 * pair + 1] = static_cast<float>(radius * std::sin(angle));
        }
        std::copy_n(block, std::min<size_t>(4, size - first), out + first);
    }
}

uint64_t derive(uint64_t seed, uint32_t index) { return index == 0 ? seed : first_64_bits(seed, index, DERIVE); }

std::vector<size_t> shuffled(uint64_t seed, size_t n) {
    std::vector<uint64_t> keys(n);
    for (size_t i = 0; i < n; ++i) keys[i] = first_64_bits(seed, static_cast<uint32_t>(i), SHUFFLE);
    std::vector<size_t> order(n);
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return keys[a] < keys[b]; });
    return order;
}

}  // namespace ddm
