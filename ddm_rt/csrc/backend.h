// What a backend offers, and which of them there are (ddm_rt/engine/contract.py and backends.py).
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "array.h"
#include "bundle.h"
#include "error.h"
#include "manifest.h"

namespace ddm {

// A loaded bundle. Any number of threads may call it, and as many calls as are made at a time run, the others wait;
// rows of one call never meet.
class Backend {
public:
    virtual ~Backend() = default;

    virtual const MadeBy& made_by() const = 0;
    virtual const std::string& provider() const = 0;       // "CPUExecutionProvider"
    virtual size_t calls_at_a_time() const = 0;            // that don't slow each other
    virtual std::optional<int64_t> max_batch() const = 0;  // rows of one call; none: as many as memory holds

    // Token ids int64 [B, max_length] by TextSpec.input -> `context` [B, T, D]; SDXL: and `text_embeds` [B, P].
    virtual Cond text_encoder(const std::map<std::string, Array>& input_ids) = 0;

    // `context` [B, T, D], `code` int64 [B], `indicator_scale` [B] and what the bundle lists as `added` -> cond.
    // Throws Error for shapes that the graph refuses.
    virtual Cond conditioner(const std::map<std::string, Array>& given) = 0;

    // Model output for x_t [B, C, H, W] at timesteps t [B]: the only call inside the loop.
    virtual Array denoiser(const Array& x_t, const Array& t, const Cond& cond) = 0;

    // Images [B, channels, H, W], nominally in [-1, 1]. Throws Error for non-finite values.
    virtual Array decoder(const Array& x0) = 0;
};

struct BackendOptions {
    std::string name = "auto";
    std::optional<int64_t> threads;          // none: every core that this process may use
    std::optional<std::string> onnxruntime;  // its shared library
    std::string provider = "CPU";            // of ONNX Runtime
    std::vector<std::pair<std::string, std::string>> provider_options;
};

// The bundle must outlive it. Throws Error for an unknown name or fewer than one thread, and with Status::backend where
// it can't run the bundle.
std::unique_ptr<Backend> load_backend(const Bundle& bundle, const BackendOptions& options, const Log& log);

struct BackendFound {
    std::string name;
    std::optional<std::string> reason;  // why it isn't here
    std::vector<std::string> providers;
};

std::vector<BackendFound> backends();

}  // namespace ddm
