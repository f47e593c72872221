// From what is asked for to a checked request whose codes are drawn: all of generating but the tensors.
// (`Pipeline.prepare` and `Pipeline.recorded` of ddm_rt/sample/pipeline.py in one.)
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "bundle.h"
#include "error.h"
#include "ledger.h"
#include "manifest.h"
#include "quota.h"

namespace ddm {

// The arguments of Pipeline.generate; what is empty takes the bundle's default.
struct Wanted {
    std::optional<std::vector<std::string>> prompt;  // one, or several: image i has number i % size
    std::optional<std::string> negative_prompt;
    int64_t n = 1;
    uint64_t seed = 0;
    std::optional<std::vector<int64_t>> codes;
    std::optional<int64_t> num_steps;
    std::optional<std::string> sampler;
    std::optional<double> guidance_scale;
    std::optional<double> indicator_guidance_scale;
    std::optional<Pair> guidance_interval;  // start and stop, fractions of the steps
    std::optional<Pair> apg;                // norm and eta of projected guidance
    std::optional<Triple> cads;             // scale, end and begin of noise on a prompt's tokens
    int64_t cache = 0;                      // as `find_cache` has it
    std::optional<int64_t> height, width;   // pixels
    std::string target = "uniform";
    std::string balance = "auto";
    std::optional<std::string> scope;
    bool shuffle = false;
    bool allow_stale = false;
    std::optional<std::vector<std::string>> leave_alone;  // those that hold for this scope
    bool provenance = true, provenance_code = false;
};

// One image: its seed, its prompt (none: a prompt-free bundle) and its code.
struct Job {
    uint64_t seed;
    std::optional<std::string> text;
    int64_t code;
};

struct Prepared {
    Manifest manifest;
    StepTable table;
    std::array<int64_t, 3> shape;          // C, H, W of the latents
    std::vector<Job> jobs;                 // in the order of the manifest's images
    std::optional<std::string> null_text;  // what stands in for no prompt; none: zeros do
    std::optional<Lease> lease;            // of a scope's draws: commit it once the images are delivered
};

// Throws Error naming the argument that doesn't fit; then nothing is drawn.
// `tree` is the bundle's code tree.
Prepared prepare(const Bundle& bundle, const Tree& tree, const Wanted& wanted, const MadeBy& made_by, Ledger& ledger,
                 const Warn& warn);

// What `prepare` gave for this manifest, or only its image `index`; `warn` is told where it was made by something else.
// The ledger isn't asked, and the result says `made_by`.
Prepared replay(const Bundle& bundle, Manifest manifest, std::optional<int64_t> index, const MadeBy& made_by,
                const Warn& warn);

}  // namespace ddm
