// A bundle on one backend: a request becomes images (ddm_rt/sample/pipeline.py). An image's bytes depend on the bundle,
// the backend with its versions and threads, the image's seed, prompt, code and the settings; on nothing else.
#ifndef DDM_RT_PIPELINE_H
#define DDM_RT_PIPELINE_H

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <sys/types.h>
#include <vector>

#include "assignment.h"
#include "backend.h"
#include "buckets.h"
#include "bundle.h"
#include "conditions.h"
#include "error.h"
#include "ledger.h"
#include "loop.h"
#include "manifest.h"
#include "prepare.h"

namespace ddm {

struct Generation {
    int64_t height, width;
    std::vector<uint8_t> rgb;  // [n, height, width, 3]
    Manifest manifest;
    std::string text;              // the manifest as it is written
    std::vector<std::string> xmp;  // of each image's file, and of a sheet of all; empty: they say nothing
};

// `deliver` refused the images.
struct NotDelivered : std::runtime_error {
    using std::runtime_error::runtime_error;
};

struct Hooks {
    std::function<void(int64_t, int64_t)> on_step;  // steps done, steps in all
    Cancelled cancelled;
    std::function<bool(const Generation&)> deliver;  // asked before a scope's draws count as done
};

struct PipelineOptions {
    BackendOptions backend;
    std::optional<std::string> ledger;  // none: counts are in memory
    bool fsync = false;
    Warn warn;
};

// What a request may ask for at most.
struct Limits {
    int64_t images = int64_t{1} << 20;
    int64_t pixels = int64_t{1} << 26;  // of one image
    int64_t bytes = int64_t{1} << 34;   // of all its images
};

// Any number of threads may generate at a time, in the process that opened it.
class Pipeline {
public:
    // Throws Error for a bad bundle, backend or ledger.
    Pipeline(const std::string& directory, const PipelineOptions& options);

    // Throws Error naming the argument that doesn't fit, and NotDelivered.
    Generation generate(const Wanted& wanted, const Hooks& hooks);
    Generation replay(Manifest manifest, std::optional<int64_t> index, const Hooks& hooks);

    const Bundle& bundle() const { return bundle_; }
    const MadeBy& made_by() const { return backend_->made_by(); }
    bool forked() const;  // whether this is another process than the one that opened it

private:
    void check(int64_t images, std::optional<int64_t> height, std::optional<int64_t> width) const;
    Generation render(const Prepared& request, const Hooks& hooks);
    std::vector<size_t> buckets_for(const Shape& shape, Size size, const Cancelled& cancelled);
    void decode(const Array& x0, const std::vector<size_t>& members, const std::vector<size_t>& buckets,
                Generation& out);

    Ledger ledger_;  // first: as by `ddm-rt sample`, one that can't be used is told before a bundle that can't be
    Bundle bundle_;
    Warn warn_;
    std::unique_ptr<Backend> backend_;
    Tree tree_;
    Conditions conditions_;
    KnownSizes sizes_;
    const Limits limits_;
    const pid_t pid_;
};

}  // namespace ddm

#endif
