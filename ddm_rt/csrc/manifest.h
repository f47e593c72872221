// manifest.json: which seed, prompt, code and settings made each image; the same file that Python writes and reads.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "json.h"
#include "reuse.h"
#include "runtime.h"

namespace ddm {

// What was asked for, with every default filled in.
struct Request {
    std::vector<std::string> prompts;  // none: a prompt-free bundle; several: image i has number i % size
    std::optional<std::string> negative_prompt;
    int64_t n = 1;
    uint64_t seed = 0;
    std::optional<std::vector<int64_t>> codes;  // none: drawn by quota, or null codes
    Balance balance = Balance::automatic;
    std::optional<std::vector<std::string>> leave_alone;
    std::optional<std::string> scope;
    bool shuffle = false;
    int64_t height = 0, width = 0;  // pixels
    std::optional<double> guidance_scale;
    double indicator_guidance_scale = 1;
    double indicator_scale = 1;
    double eta = 0;
    Clip clip;
    std::optional<Pair> guidance_interval;  // start and stop; not written where there is none
    std::optional<Pair> apg;                // norm and eta of projected guidance; the same
    std::optional<Triple> cads;             // scale, end and begin of noise on a prompt's tokens; the same
    std::optional<Reuse> cache;             // steps that call the model, where not all do; the same

    std::optional<Pair> noise_times() const {
        return cads ? std::optional(Pair((*cads)[1], (*cads)[2])) : std::nullopt;
    }
    bool provenance = false, provenance_code = false;  // what files say of themselves; not written where false
    bool one_prompt = true;                            // false: a list of prompts, as it was given
};

struct ImageRecord {
    std::string file;
    uint64_t seed;
    int64_t code;
    int64_t top_code;
    std::optional<int64_t> position;    // in the scope's stream
    std::optional<std::string> prompt;  // where the request has several
};

// On what images are made.
struct MadeBy {
    std::string backend, precision;
    int64_t threads = 1;
    std::vector<std::pair<std::string, std::string>> versions;

    bool operator==(const MadeBy&) const = default;
};

struct Manifest {
    std::string bundle_id;
    std::optional<std::string> calibration_id;
    Request request;
    std::optional<std::string> target;  // none where no quota drew the codes
    SamplerName sampler = SamplerName::ddim;
    int64_t num_steps = 1;
    MadeBy made_by;
    std::optional<int64_t> bucket;  // of Python's batch sizes, where they were not those that go with the largest
    std::vector<ImageRecord> images;

    // Throws Error naming `where` and the field that is wrong.
    static Manifest parse(std::string_view content, const std::string& where);

    json::Out tree() const;
    std::string write() const;  // the bytes that Python's `Generation.save` writes for it
};

// The images of a request whose codes (and, of a scope, positions) are drawn.
std::vector<ImageRecord> image_records(const Request& request, const Codes& known, const std::vector<int64_t>& codes,
                                       const std::optional<std::vector<std::optional<int64_t>>>& positions);

// An XMP packet for each image's file and, last, for a sheet of all; none where the request wants nothing said.
std::vector<std::string> packets(const Manifest& manifest);

}  // namespace ddm
