#include "session.h"

#include <algorithm>

#include "manifest.h"
#include "noise.h"
#include "text.h"

namespace ddm {

void abandon(std::shared_ptr<Model> model) {
    static auto& kept = *new std::vector<std::shared_ptr<Model>>;
    kept.push_back(std::move(model));
}

Session::Session(std::shared_ptr<Model> model, const SessionOptions& options)
    : model_(std::move(model)), ledger_((model_->check_process(), options.ledger), options.fsync),
      limits_(options.limits), warn_(options.log.warn()) {
    ledger_.check_bundle(model_->bundle().bundle_id, model_->bundle().former_ids, model_->bundle().path);
}

Session::~Session() {
    if (model_->forked()) abandon(std::move(model_));
}

// Before anything is allocated for it.
void Session::check(int64_t images, std::optional<int64_t> height, std::optional<int64_t> width, bool keep) const {
    __extension__ typedef __int128 Wide;
    model_->check_process();
    const int64_t own = model_->bundle().config.image_size, high = height.value_or(own), wide = width.value_or(own);
    if (images > limits_.images) throw about("n", concat(" is ", images, "; expected at most ", limits_.images));
    if (high <= 0 || wide <= 0 || images <= 0) return;  // refused later, in other words
    if (Wide{high} * wide > limits_.pixels) {
        throw about("height",
                    concat(" is ", high, ", width is ", wide, "; expected at most ", limits_.pixels, " pixels"));
    }
    if (keep && Wide{high} * wide * 3 * images > limits_.bytes) {
        throw about("n", concat(" is ", images, "; images of ", high, " by ", wide,
                                " pixels that are kept may have at most ", limits_.bytes, " bytes together"));
    }
}

Generation Session::generate(const Wanted& wanted, const Hooks& hooks) {
    check(wanted.n, wanted.height, wanted.width, hooks.keep);
    for (const std::string& prompt :
         wanted.prompt.value_or(std::vector<std::string>())) {  // the manifest may repeat it
        if (static_cast<double>(prompt.size()) * static_cast<double>(wanted.n) <= static_cast<double>(limits_.bytes))
            continue;
        throw about("prompt", concat(" has ", prompt.size(), " bytes; ", wanted.n, " images may have at most ",
                                     limits_.bytes, " bytes of it together"));
    }
    Prepared request = prepare(model_->bundle(), model_->tree(), wanted, model_->made_by(), ledger_, warn_);
    Generation made = render(request, hooks);
    if (request.lease) request.lease->commit();
    return made;
}

Generation Session::replay(Manifest manifest, std::optional<int64_t> index, const Hooks& hooks) {
    check(index ? 1 : static_cast<int64_t>(manifest.images.size()), manifest.request.height, manifest.request.width,
          hooks.keep);
    return render(ddm::replay(model_->bundle(), std::move(manifest), index, model_->made_by(), warn_), hooks);
}

std::vector<Standing> Session::standings(const std::optional<std::string>& scope) {
    model_->check_process();
    return ledger_.standings(scope);
}

Generation Session::render(const Prepared& request, const Hooks& hooks) {
    const Request& asked = request.manifest.request;
    const Size size{asked.height, asked.width};
    const double indicator_scale = asked.indicator_scale;
    Generation made{size.height, size.width, {}, request.manifest, request.manifest.write(), packets(request.manifest)};
    made.rgb.resize(request.jobs.size());
    Recipe recipe{request.table, request.shape, model_->buckets_for(request.shape, size, hooks.cancelled), {}, {}, {}};
    const std::vector<size_t> buckets = recipe.buckets;
    if (const auto& apg = asked.apg) {
        recipe.projection = Projection{static_cast<float>(apg->first), static_cast<float>(apg->second)};
    }
    if (const auto& cads = asked.cads) recipe.token_noise = TokenNoise{(*cads)[0], {request.null_text, NULL_CODE}};
    // It may outlive this call, though not the model: another's thread may be in the middle of a step.
    recipe.noisy_row = [model = model_.get(), indicator_scale, size](const Condition& condition) {
        return model->row(condition, indicator_scale, size, {});
    };
    const auto [channels, height, width] = request.shape;
    const auto elements = static_cast<size_t>(channels * height * width);
    const auto init_scale = static_cast<float>(request.table.init_scale);
    const auto begin = [&](size_t number) {
        const Job& job = request.jobs[number];
        Image image{
            number,
            job.seed,
            branches({job.text, job.code}, request.null_text, asked.guidance_scale, asked.indicator_guidance_scale),
            {},
            std::vector<float>(elements)};
        for (const Condition& condition : image.branches.conditions) {
            image.rows.push_back(model_->row(condition, indicator_scale, size, warn_));
        }
        normal(job.seed, 0, INITIAL_STREAM, image.x.data(), elements);
        for (float& value : image.x) value *= init_scale;
        return image;
    };
    const auto finished = [&](const std::vector<Image>& images) {
        auto pixels = model_->decode(images, request.shape, size, buckets);
        std::vector<size_t> numbers;
        for (size_t i = 0; i < images.size(); i++) {
            numbers.push_back(images[i].number);
            made.rgb[images[i].number] = std::move(pixels[i]);
        }
        if (hooks.on_images && !hooks.on_images(made, numbers)) throw NotDelivered("the images were not delivered");
        for (const size_t number : numbers) {
            if (!hooks.keep) made.rgb[number] = {};
        }
    };
    Client client{request.jobs.size(), begin, finished, {}, hooks.cancelled};
    if (hooks.on_step) {
        client.progress = [&](int64_t done, int64_t total) {
            if (!hooks.on_step(done, total)) return;
            throw Error(Status::cancelled, concat("stopped at step ", done, " of ", total));
        };
    }
    model_->sample(std::move(recipe), client);
    if (hooks.deliver && !hooks.deliver(made)) throw NotDelivered("the images were not delivered");
    return made;
}

}  // namespace ddm
