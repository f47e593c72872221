#include "model.h"

#include <unistd.h>
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>

#include "text.h"

namespace ddm {
namespace {

// Pixels in one call of a VAE: it holds hundreds of channels of them.
constexpr int64_t kVaePixels = 1 << 16;

uint8_t grey_level(float value) {
    const float clipped = std::min(std::max(value, -1.0F), 1.0F);
    return static_cast<uint8_t>(std::nearbyint((clipped + 1.0F) * 127.5F));
}

Bundle opened(const std::string& directory, const ModelOptions& options) {
    Bundle bundle = Bundle::load(directory, [&](uint64_t done, uint64_t total) {
        if (options.progress) options.progress(static_cast<int64_t>(done), static_cast<int64_t>(total));
        if (options.cancelled && options.cancelled()) {
            throw Error(Status::cancelled, concat("cancelled after checking ", done, " of ", total, " bytes"));
        }
    });
    // What is opened later is opened where the bundle lay, wherever the process has gone.
    bundle.path = std::filesystem::absolute(bundle.path).string();
    return bundle;
}

}  // namespace

Model::Model(const std::string& directory, const ModelOptions& options)
    : log_(options.log), bundle_(opened(directory, options)), backend_(load_backend(bundle_, options.backend, log_)),
      tree_(code_tree(bundle_)), conditions_(bundle_, *backend_, options.cache_bytes),
      engine_(*backend_, backend_->calls_at_a_time(), options.batching), pid_(::getpid()) {
    bundle_.check_unchanged();
    log_(Level::info, concat(bundle_.path, ": opened on ", backend_->provider(), ", ", made_by().threads, " threads"));
}

bool Model::forked() const { return ::getpid() != pid_; }

void Model::check_process() const {
    if (!forked()) return;
    throw Error(
        concat("the model was opened in process ", pid_, ", from which this one was forked; open it in each process"));
}

std::vector<size_t> Model::buckets_for(const Shape& shape, Size size, const Cancelled& cancelled) {
    const RuntimeConfig& config = bundle_.config;
    int64_t most = std::numeric_limits<int64_t>::max();
    if (const std::optional<int64_t> own = backend_->max_batch()) {
        most = *own;
    } else if (config.family != Family::pixel) {
        most = std::max<int64_t>(kVaePixels / (size.height * size.width), 1);
    }
    if (most == 1) return {1};  // there is nothing to compare, and a large model's calls take long
    return sizes_.of(shape, cancelled, [&] {
        const StepTable table = step_table(bundle_.schedule, config.sampling.sampler, config.sampling.num_steps);
        auto sizes = probe(*backend_, conditions_.probe_rows(config.sampling.indicator_scale, size), shape,
                           table.timesteps(), most, cancelled);
        if (sizes.empty()) {
            throw about(Status::bundle, bundle_.path,
                        concat(": gives other values each time for the same input; its "
                               "graphs must not draw random numbers"));
        }
        log_(Level::info,
             concat("images of ", size.height, " by ", size.width, ": up to ", sizes.back(), " rows in a call"));
        return sizes;
    });
}

std::vector<std::vector<uint8_t>> Model::decode(const std::vector<Image>& images, const Shape& shape, Size size,
                                                const std::vector<size_t>& buckets) {
    const auto pixels = static_cast<size_t>(size.height * size.width);
    std::vector<std::vector<uint8_t>> out(images.size());
    for (const std::vector<size_t>& rows : split(images.size(), buckets)) {
        Array x0(DType::float32, {static_cast<int64_t>(rows.size()), shape[0], shape[1], shape[2]});
        for (size_t i = 0; i < rows.size(); i++) {
            const std::vector<float>& x = images[rows[i]].x;
            std::copy(x.begin(), x.end(), x0.floats() + i * x.size());
        }
        const Array made = backend_->decoder(x0);
        if (made.shape.size() != 4 || made.rows() != rows.size() || (made.shape[1] != 1 && made.shape[1] != 3) ||
            made.shape[2] != size.height || made.shape[3] != size.width) {
            throw about(Status::bundle, bundle_.path, concat("/decoder.onnx: gives another shape than that of images"));
        }
        const auto channels = static_cast<size_t>(made.shape[1]);
        for (size_t i = 0; i < rows.size(); i++) {
            const float* image = made.floats() + i * channels * pixels;
            std::vector<uint8_t>& rgb = out[rows[i]];
            rgb.resize(pixels * 3);
            for (size_t pixel = 0; pixel < pixels; pixel++) {
                for (size_t c = 0; c < 3; c++) {
                    rgb[3 * pixel + c] = grey_level(image[(channels == 1 ? 0 : c) * pixels + pixel]);
                }
            }
        }
    }
    return out;
}

}  // namespace ddm
