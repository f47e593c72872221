// Batch sizes that give the same bits for a row, so that an image's bytes don't depend on its batch
// (ddm_rt/sample/loop/batch_sizes.py).
#ifndef DDM_RT_BUCKETS_H
#define DDM_RT_BUCKETS_H

#include <array>
#include <optional>
#include <vector>

#include "array.h"
#include "backend.h"

namespace ddm {

using Shape = std::array<int64_t, 3>;  // C, H, W of latents

// The usable batch sizes, ascending, for latents of `shape`; none above `most`. Denoiser and decoder run on fixed noise
// at every size twice, with other neighbours. Rows of `cond` are repeated; `timesteps` are those of a table. None where
// not even one row alone gives the same bits twice.
std::vector<size_t> probe(Backend& backend, const Cond& cond, const Shape& shape, const std::vector<float>& timesteps,
                          std::optional<int64_t> most);

// Row numbers of each call, in order: every call has a size in `buckets` (ascending), the last may be filled up by
// starting again at row 0, where that wastes at most a quarter of it.
std::vector<std::vector<size_t>> split(size_t rows, const std::vector<size_t>& buckets);

Cond take(const Cond& cond, const std::vector<size_t>& index);

}  // namespace ddm

#endif
