// Requests over a model, with a ledger, a log and limits of their own (ddm_rt/sample/pipeline.py). An image's bytes
// depend on the bundle, the backend with its versions and threads, the image's seed, prompt, code and the settings; on
// nothing else.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "error.h"
#include "ledger.h"
#include "manifest.h"
#include "model.h"
#include "prepare.h"

namespace ddm {

struct Generation {
    int64_t height, width;
    std::vector<std::vector<uint8_t>>
        rgb;  // of each image [height * width * 3]; empty where it isn't done or wasn't kept
    Manifest manifest;
    std::string text;              // the manifest as it is written
    std::vector<std::string> xmp;  // of each image's file, and of a sheet of all; empty: they say nothing
};

// A callback refused the images.
struct NotDelivered : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// Called on the thread that generates.
struct Hooks {
    std::function<bool(int64_t, int64_t)> on_step;  // steps done, steps in all: whether to stop
    Cancelled cancelled;
    std::function<bool(const Generation&, const std::vector<size_t>&)> on_images;  // takes these, or refuses
    std::function<bool(const Generation&)> deliver;  // the same of all, before a scope's draws count as done
    bool keep = true;                                // pixels, after on_images
};

// What a request may ask for at most.
struct Limits {
    int64_t images = int64_t{1} << 16;
    int64_t pixels = int64_t{1} << 26;  // of one image
    int64_t bytes = int64_t{1} << 34;   // of all images that are kept
};

struct SessionOptions {
    std::optional<std::string> ledger;  // none: counts are in memory
    bool fsync = false;
    Limits limits;
    Log log;
};

// Any number of threads may use it, in the process that opened it.
class Session {
public:
    // Throws Error for a bad ledger.
    Session(std::shared_ptr<Model> model, const SessionOptions& options);
    ~Session();

    // Throws Error naming the argument that doesn't fit, and NotDelivered.
    Generation generate(const Wanted& wanted, const Hooks& hooks);
    Generation replay(Manifest manifest, std::optional<int64_t> index, const Hooks& hooks);

    // Where the ledger's streams stand; of one scope, or of all.
    std::vector<Standing> standings(const std::optional<std::string>& scope);

private:
    void check(int64_t images, std::optional<int64_t> height, std::optional<int64_t> width, bool keep) const;
    Generation render(const Prepared& request, const Hooks& hooks);

    std::shared_ptr<Model> model_;
    Ledger ledger_;
    const Limits limits_;
    const Warn warn_;
};

// In a forked process, keeps a model from being destroyed: ONNX Runtime would wait for threads that aren't there.
void abandon(std::shared_ptr<Model> model);

}  // namespace ddm
