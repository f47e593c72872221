// Noise and seeds from Philox4x32-10: a function of (seed, stream, row, position), with no state anywhere.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace ddm {

// Third word of the counter.
constexpr uint32_t INITIAL_STREAM = 0;  // the first state; its row is 0
constexpr uint32_t STEP_STREAM = 1;     // noise added by a step; its row is the step's index
constexpr uint32_t TOKENS_STREAM = 2;   // noise on a prompt's tokens; its row is the step's index

std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter, uint64_t key);

// `size` standard normal values of one image; values 4k to 4k + 3 come from block k. Within one unit in the last place
// of numpy's, whose logarithms and cosines differ from the C library's.
void normal(uint64_t seed, uint32_t row, uint32_t stream, float* out, size_t size);

// The seed of image `index` in a request that has `seed`; derive(seed, 0) == seed.
uint64_t derive(uint64_t seed, uint32_t index);

// A permutation of 0 .. n - 1 by the seed.
std::vector<size_t> shuffled(uint64_t seed, size_t n);

}  // namespace ddm
