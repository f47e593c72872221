// A bundle's caches, which say for some settings which steps call the model (ddm_rt/sample/cache/record.py).
#pragma once

#include <cstdint>
#include <optional>

#include "bundle.h"
#include "error.h"
#include "manifest.h"

namespace ddm {

// The cache with so many calls for the settings of `manifest` (its request, sampler and steps). DDM_RT_CACHE_AUTO: the
// one with the fewest of those that were judged to change nothing, or none. DDM_RT_CACHE_OFF: none. Throws Error for
// a number of calls that no cache has for these settings. A cache that can't be read is passed over and told.
std::optional<Reuse> find_cache(const Bundle& bundle, int64_t calls, const Manifest& manifest, const Warn& warn);

}  // namespace ddm
