// Batch sizes that give the same bits for a row, so that an image's bytes don't depend on its batch
// (ddm_rt/sample/loop/batch_sizes.py).
#pragma once

#include <array>
#include <condition_variable>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <vector>

#include "array.h"
#include "backend.h"
#include "error.h"

namespace ddm {

using Shape = std::array<int64_t, 3>;  // C, H, W of latents

// The usable batch sizes, ascending, for latents of `shape`; none above `most`. Denoiser and decoder run on fixed noise
// at every size twice, with other neighbours. Rows of `cond` are repeated; `timesteps` are those of a table. None where
// not even one row alone gives the same bits twice. Throws Error with Status::cancelled.
std::vector<size_t> probe(Backend& backend, const Cond& cond, const Shape& shape, const std::vector<float>& timesteps,
                          std::optional<int64_t> most, const Cancelled& cancelled = {});

// The batch sizes of every shape that was asked for. Any number of threads may use it: each shape is probed by the
// first that asks, the others that need it wait, and nobody waits for a shape that is known or another's.
class KnownSizes {
public:
    // Throws Error with Status::cancelled, also while waiting, and what `make` throws.
    std::vector<size_t> of(const Shape& shape, const Cancelled& cancelled,
                           const std::function<std::vector<size_t>()>& make);

private:
    std::mutex mutex_;
    std::condition_variable changed_;
    std::map<Shape, std::optional<std::vector<size_t>>> known_;  // none: somebody probes it
};

// Row numbers of each call, in order: every call has a size in `buckets` (ascending), the last may be filled up by
// starting again at row 0, where that wastes at most a quarter of it.
std::vector<std::vector<size_t>> split(size_t rows, const std::vector<size_t>& buckets);

Cond take(const Cond& cond, const std::vector<size_t>& index);

// Rows under one another.
Cond stacked(const std::vector<const Cond*>& rows);

}  // namespace ddm
