// The sampling loop of images that start and end together (`Pipeline._render` of ddm_rt/sample/pipeline.py).
#ifndef DDM_RT_LOOP_H
#define DDM_RT_LOOP_H

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "backend.h"
#include "buckets.h"
#include "guidance.h"
#include "projected_guidance.h"
#include "schedule.h"

namespace ddm {

// Told the number of steps done.
using Done = std::function<void(int64_t)>;
// Makes a `cond` with one row per condition.
using Gather = std::function<Cond(const std::vector<Condition>&)>;

// Samples [B, C, H, W] from the first states `x`, already times table.init_scale. All of `needed` have as many branches
// as each other; in a step without guidance each has its last one. With `projection`, guidance is projected, and with
// `token_noise` the steps that don't keep all of a prompt's tokens have noise on them. Calls have sizes in
// `buckets`. Throws Error with Status::cancelled.
Array sample(Backend& backend, const StepTable& table, Array x, const std::vector<Branches>& needed,
             const std::vector<uint64_t>& seeds, const std::optional<Projection>& projection,
             const std::optional<TokenNoise>& token_noise, const Gather& gather, const std::vector<size_t>& buckets,
             const Done& done, const Cancelled& cancelled);

}  // namespace ddm

#endif
