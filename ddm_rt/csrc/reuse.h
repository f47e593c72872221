// Which steps of a table call the denoiser, and how the others are made up for by what the calls before them gave
// (ddm_rt/sample/cache/reuse.py).
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "fields.h"
#include "json.h"
#include "schedule.h"

namespace ddm {

struct Reuse {
    std::vector<int64_t> steps;               // that call it: ascending, from 0
    std::vector<std::array<double, 4>> rows;  // c, d, e, g of each, which lead to the next of `steps`

    static Reuse read(const Field& tree);
    json::Out tree() const;

    // The rows of `table` that are left. Throws Error for a table that doesn't fit, or adds noise.
    StepTable of(const StepTable& table) const;
};

}  // namespace ddm
