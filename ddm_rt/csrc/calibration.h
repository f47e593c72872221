// Calibrations that lie in a bundle, as sampling uses them: a target over groups becomes weights of codes
// (ddm_rt/sample/calibration/calibration.py).
#pragma once

#include <string>
#include <vector>

#include "bundle.h"
#include "error.h"
#include "manifest.h"

namespace ddm {

struct Weighted {
    std::vector<double> code_weights;  // [K], sum to 1
    std::string target;                // in one spelling
    std::string calibration_id;
};

// Of the calibrations that know the target's groups and hold for the settings of `manifest` (its request, sampler,
// steps and precision) the one with the most audited images. Throws Error where there is none, where the target is
// malformed or out of reach, and where every one is for other settings, unless `allow_stale`: then `warn` is told.
Weighted resolve(const Bundle& bundle, const std::string& target, const Manifest& manifest, bool allow_stale,
                 const Warn& warn);

}  // namespace ddm
