#include "pipeline.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <limits>
#include <unistd.h>

#include "noise.h"
#include "manifest.h"
#include "text.h"

namespace ddm {
namespace {

// Pixels in one call of a VAE: it holds hundreds of channels of them.
constexpr int64_t kVaePixels = 1 << 16;

uint8_t grey_level(float value) {
    const float clipped = std::min(std::max(value, -1.0F), 1.0F);
    return static_cast<uint8_t>(std::nearbyint((clipped + 1.0F) * 127.5F));
}

// What is opened later is opened where the bundle lay, wherever the process has gone.
Bundle absolute(Bundle bundle) {
    bundle.path = std::filesystem::absolute(bundle.path).string();
    return bundle;
}

// Image numbers of each batch: equal numbers of branches, and no more rows than the largest bucket.
std::vector<std::vector<size_t>> batches(const std::vector<Branches>& needed, size_t largest) {
    std::map<size_t, std::vector<size_t>> by_count;
    for (size_t i = 0; i < needed.size(); i++) by_count[needed[i].conditions.size()].push_back(i);
    std::vector<std::vector<size_t>> found;
    for (const auto& [count, members] : by_count) {
        const size_t most = std::max<size_t>(largest / count, 1);
        for (size_t start = 0; start < members.size(); start += most) {
            const auto begin = members.begin() + static_cast<std::ptrdiff_t>(start);
            found.emplace_back(begin, begin + static_cast<std::ptrdiff_t>(std::min(most, members.size() - start)));
        }
    }
    return found;
}

}  // namespace

Pipeline::Pipeline(const std::string& directory, const PipelineOptions& options)
    : ledger_(options.ledger, options.fsync),
      bundle_(absolute(Bundle::load(directory))),
      warn_(options.warn ? options.warn : [](const std::string&) {}),
      backend_((ledger_.check_bundle(bundle_.bundle_id, bundle_.former_ids, bundle_.path),
                load_backend(bundle_, options.backend))),
      tree_(code_tree(bundle_)),
      conditions_(bundle_, *backend_),
      pid_(::getpid()) {
    bundle_.check_unchanged();
}

bool Pipeline::forked() const { return ::getpid() != pid_; }

// Before anything is allocated for it.
void Pipeline::check(int64_t images, std::optional<int64_t> height, std::optional<int64_t> width) const {
    __extension__ typedef __int128 Wide;
    if (forked()) {
        throw Error(concat("the bundle was opened in process ", pid_, ", from which this one was forked; open it in each process"));
    }
    const int64_t high = height.value_or(bundle_.config.image_size), wide = width.value_or(bundle_.config.image_size);
    if (images > limits_.images) throw Error(concat("n is ", images, "; expected at most ", limits_.images));
    if (high > 0 && wide > 0 && Wide{high} * wide > limits_.pixels) {
        throw Error(concat("height is ", high, ", width is ", wide, "; expected at most ", limits_.pixels, " pixels"));
    }
    if (high > 0 && wide > 0 && Wide{high} * wide * 3 * images > limits_.bytes) {
        throw Error(concat("n is ", images, "; images of ", high, " by ", wide, " pixels may have at most ", limits_.bytes,
                           " bytes together"));
    }
}

Generation Pipeline::generate(const Wanted& wanted, const Hooks& hooks) {
    check(wanted.n, wanted.height, wanted.width);
    Prepared request = prepare(bundle_, tree_, wanted, made_by(), ledger_, warn_);
    Generation made = render(request, hooks);
    if (hooks.deliver && !hooks.deliver(made)) throw NotDelivered("the images were not delivered");
    if (request.lease) request.lease->commit();
    return made;
}

Generation Pipeline::replay(Manifest manifest, std::optional<int64_t> index, const Hooks& hooks) {
    check(index ? 1 : static_cast<int64_t>(manifest.images.size()), manifest.request.height, manifest.request.width);
    const Prepared request = ddm::replay(bundle_, std::move(manifest), index, made_by(), warn_);
    Generation made = render(request, hooks);
    if (hooks.deliver && !hooks.deliver(made)) throw NotDelivered("the images were not delivered");
    return made;
}

Generation Pipeline::render(const Prepared& request, const Hooks& hooks) {
    const Request& settings = request.manifest.request;
    const Size size{settings.height, settings.width};
    const std::vector<size_t> buckets = buckets_for(request.shape, size, hooks.cancelled);
    std::vector<Branches> needed;
    for (const Job& job : request.jobs) {
        needed.push_back(branches({job.text, job.code}, request.null_text, settings.guidance_scale,
                                  settings.indicator_guidance_scale));
    }
    Generation made{size.height, size.width, {}, request.manifest, {}, {}};
    made.rgb.resize(needed.size() * static_cast<size_t>(size.height * size.width) * 3);

    const auto [channels, height, width] = request.shape;
    const auto elements = static_cast<size_t>(channels * height * width);
    const auto steps = static_cast<int64_t>(request.table.num_steps());
    const auto scale = static_cast<float>(request.table.init_scale);
    std::optional<Projection> projection;
    if (const auto& apg = settings.apg) projection = Projection{static_cast<float>(apg->first), static_cast<float>(apg->second)};
    std::optional<TokenNoise> noise;
    if (const auto& cads = settings.cads) noise = TokenNoise{(*cads)[0], {request.null_text, NULL_CODE}};
    const auto planned = batches(needed, buckets.back());
    int64_t before = 0;
    for (const std::vector<size_t>& members : planned) {
        Array x(DType::float32, {static_cast<int64_t>(members.size()), channels, height, width});
        std::vector<Branches> own;
        std::vector<uint64_t> seeds;
        for (const size_t image : members) {
            normal(request.jobs[image].seed, 0, INITIAL_STREAM, x.floats() + own.size() * elements, elements);
            own.push_back(needed[image]);
            seeds.push_back(request.jobs[image].seed);
        }
        std::for_each(x.floats(), x.floats() + x.size(), [&](float& value) { value *= scale; });
        const auto gather = [&](const std::vector<Condition>& wanted) {
            return conditions_.gather(wanted, settings.indicator_scale, size, warn_);
        };
        const auto done = [&](int64_t step) {
            if (hooks.on_step) hooks.on_step(before + step, static_cast<int64_t>(planned.size()) * steps);
        };
        decode(sample(*backend_, request.table, std::move(x), own, seeds, projection, noise, gather, buckets, done,
                      hooks.cancelled),
               members, buckets, made);
        before += steps;
    }
    made.text = made.manifest.write();
    made.xmp = packets(made.manifest);
    return made;
}

void Pipeline::decode(const Array& x0, const std::vector<size_t>& members, const std::vector<size_t>& buckets,
                      Generation& out) {
    const auto pixels = static_cast<size_t>(out.height * out.width);
    for (const std::vector<size_t>& rows : split(members.size(), buckets)) {
        const Array images = backend_->decoder(take(x0, rows));
        const std::vector<int64_t>& shape = images.shape;
        if (shape.size() != 4 || images.rows() != rows.size() || (shape[1] != 1 && shape[1] != 3) ||
            shape[2] != out.height || shape[3] != out.width) {
            throw Error(Status::bundle, concat(bundle_.path, "/decoder.onnx: gives another shape than that of images"));
        }
        const auto channels = static_cast<size_t>(shape[1]);
        for (size_t i = 0; i < rows.size(); i++) {
            const float* image = images.floats() + i * channels * pixels;
            uint8_t* rgb = out.rgb.data() + members[rows[i]] * pixels * 3;
            for (size_t pixel = 0; pixel < pixels; pixel++) {
                for (size_t c = 0; c < 3; c++) {
                    rgb[3 * pixel + c] = grey_level(image[(channels == 1 ? 0 : c) * pixels + pixel]);
                }
            }
        }
    }
}

std::vector<size_t> Pipeline::buckets_for(const Shape& shape, Size size, const Cancelled& cancelled) {
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
        if (!sizes.empty()) return sizes;
        throw Error(Status::bundle, concat(bundle_.path, ": gives other values each time for the same input; its "
                                                         "graphs must not draw random numbers"));
    });
}

}  // namespace ddm
