// A bundle on one backend, for any number of sessions: its weights once, the conditions that are kept, and the engine.
#pragma once

#include <sys/types.h>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "assignment.h"
#include "backend.h"
#include "buckets.h"
#include "bundle.h"
#include "conditions.h"
#include "engine.h"
#include "error.h"

namespace ddm {

struct ModelOptions {
    BackendOptions backend;
    bool batching = true;
    std::optional<int64_t> cache_bytes;
    Log log;
    std::function<void(int64_t, int64_t)> progress;  // bytes of files that are checked, and of all
    Cancelled cancelled;
};

// Any number of threads may use it, in the process that opened it.
class Model {
public:
    // Throws Error for a bad bundle or backend.
    Model(const std::string& directory, const ModelOptions& options);

    const Bundle& bundle() const { return bundle_; }
    const Tree& tree() const { return tree_; }
    const MadeBy& made_by() const { return backend_->made_by(); }
    const std::string& provider() const { return backend_->provider(); }

    bool forked() const;         // whether this is another process than the one that opened it
    void check_process() const;  // throws Error where it is

    CondRow row(const Condition& condition, double indicator_scale, Size size, const Warn& warn) {
        return conditions_.row(condition, indicator_scale, size, warn);
    }
    std::vector<size_t> buckets_for(const Shape& shape, Size size, const Cancelled& cancelled);
    void sample(Recipe recipe, const Client& client) { engine_.sample(std::move(recipe), client); }

    // RGB bytes [height * width * 3] of each of these latents. Throws Error for values that are no image.
    std::vector<std::vector<uint8_t>> decode(const std::vector<Image>& images, const Shape& shape, Size size,
                                             const std::vector<size_t>& buckets);
    void trim() { conditions_.trim(); }

private:
    const Log log_;
    Bundle bundle_;
    std::unique_ptr<Backend> backend_;
    Tree tree_;
    Conditions conditions_;
    KnownSizes sizes_;
    Engine engine_;
    const pid_t pid_;
};

}  // namespace ddm
