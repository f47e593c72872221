// `ddm-cli sample`: what `ddm-rt sample` does without Python; shards are left to that.
#ifndef DDM_CLI_SAMPLE_H
#define DDM_CLI_SAMPLE_H

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace cli {

// What the options say; what isn't given is the library's default, but for `n`.
struct Sample {
    std::string bundle, out;
    std::optional<std::string> negative_prompt, target, balance, scope, ledger, sampler, backend, onnxruntime, from,
        cache;
    std::optional<int64_t> steps, height, width, index;
    std::optional<int32_t> threads;
    std::optional<double> guidance_scale, indicator_guidance_scale;
    std::vector<double> guidance_interval, apg, cads;
    std::vector<std::string> prompts, leave_alone;
    int64_t n = 16;
    uint64_t seed = 0;
    bool allow_stale = false, fsync = false, shuffle = false, no_provenance = false, provenance_code = false;
};

// Throws Refused.
void sample(const Sample& asked);

}  // namespace cli

#endif
