// The C boundary: models and sessions, generating and replaying.
#include "handles.h"
#include "json.h"

using ddm::create;
using ddm::given;
using ddm::given_path;
using ddm::given_place;
using ddm::given_text;
using ddm::guarded;

namespace {

std::string describe(const ddm::Model &model) {
    const ddm::RuntimeConfig &config = model.bundle().config;
    const ddm::Codes &codes = model.bundle().codes;
    const ddm::MadeBy &made_by = model.made_by();
    const std::vector<std::string> &former_ids = model.bundle().former_ids;
    ddm::json::Out versions = ddm::json::Out::object();
    for (const auto &[name, version] : made_by.versions) versions[name] = version;
    return ddm::json::write({
        {"bundle_id", model.bundle().bundle_id},
        {"former_ids", former_ids},
        {"name", config.name},
        {"family", name_of(config.family)},
        {"num_codes", codes.num_codes()},
        {"num_top_codes", codes.num_top_codes()},
        {"image_size", config.image_size},
        {"size_multiple", config.size_multiple},
        {"prompt_free", config.prompt_free},
        {"backend", made_by.backend},
        {"precision", made_by.precision},
        {"threads", made_by.threads},
        {"versions", versions},
    });
}

ddm::json::Out counts(const ddm::CodeCounts &found) {
    ddm::json::Out out = ddm::json::Out::object();
    for (const auto &[code, count] : found) out[std::to_string(code)] = count;
    return out;
}

template <typename Options, typename Value>
ddm_rt_error *set_most(ddm_rt_session_options *options, Options ddm::Limits::*limit, const char *name, Value value) {
    return guarded([&] {
        if (value < 1) throw ddm::about(name, ddm::concat(" is ", value, "; expected at least 1"));
        given(options, "options").options.limits.*limit = value;
    });
}

// Which image of the request is number `index` here; none beyond the last.
std::optional<size_t> number_of(const ddm_rt_images *images, int64_t index) {
    if (!images || index < 0) return std::nullopt;
    const auto place = static_cast<size_t>(index);
    if (images->some) return place < images->some->size() ? std::optional((*images->some)[place]) : std::nullopt;
    return place < images->generation->rgb.size() ? std::optional(place) : std::nullopt;
}

const ddm::ImageRecord *record(const ddm_rt_images *images, int64_t index) {
    const auto number = number_of(images, index);
    return number ? &images->generation->manifest.images[*number] : nullptr;
}

}  // namespace

ddm_rt_error *ddm_rt_model_options_create(ddm_rt_model_options **options) {
    return guarded([&] { create(options, "options"); });
}

void ddm_rt_model_options_destroy(ddm_rt_model_options *options) { delete options; }

ddm_rt_error *ddm_rt_model_options_set_backend(ddm_rt_model_options *options, const char *name, int64_t size) {
    return guarded([&] { given(options, "options").options.backend.name = given_text(name, size, "name"); });
}

ddm_rt_error *ddm_rt_model_options_set_provider(ddm_rt_model_options *options, const char *name, int64_t size) {
    return guarded([&] { given(options, "options").options.backend.provider = given_path(name, size, "name"); });
}

ddm_rt_error *ddm_rt_model_options_set_provider_option(ddm_rt_model_options *options, const char *key, int64_t key_size,
                                                       const char *value, int64_t value_size) {
    return guarded([&] {
        given(options, "options")
            .options.backend.provider_options.emplace_back(given_path(key, key_size, "key"),
                                                           given_path(value, value_size, "value"));
    });
}

ddm_rt_error *ddm_rt_model_options_set_threads(ddm_rt_model_options *options, int32_t threads) {
    return guarded([&] { given(options, "options").options.backend.threads = threads; });
}

ddm_rt_error *ddm_rt_model_options_set_batching(ddm_rt_model_options *options, int32_t batching) {
    return guarded([&] { given(options, "options").options.batching = batching != 0; });
}

ddm_rt_error *ddm_rt_model_options_set_onnxruntime(ddm_rt_model_options *options, const char *library, int64_t size) {
    return guarded(
        [&] { given(options, "options").options.backend.onnxruntime = given_path(library, size, "library"); });
}

ddm_rt_error *ddm_rt_model_options_set_cache(ddm_rt_model_options *options, int64_t bytes) {
    return guarded([&] {
        if (bytes < 0) throw ddm::about("bytes", ddm::concat(" is ", bytes, "; expected 0 or more"));
        given(options, "options").options.cache_bytes = bytes;
    });
}

ddm_rt_error *ddm_rt_model_options_set_log(ddm_rt_model_options *options, int32_t level, ddm_rt_log log, void *user) {
    return guarded([&] { given(options, "options").options.log = ddm::log_of(level, log, user); });
}

ddm_rt_error *ddm_rt_model_options_set_progress(ddm_rt_model_options *options, ddm_rt_progress progress, void *user) {
    return guarded([&] {
        given(options, "options").options.progress = nullptr;
        if (!progress) return;
        options->options.progress = [progress, user](int64_t done, int64_t total) { progress(user, done, total); };
    });
}

ddm_rt_error *ddm_rt_model_options_set_cancel(ddm_rt_model_options *options, const ddm_rt_cancel *cancel) {
    return guarded([&] { given(options, "options").options.cancelled = ddm::cancelled_by(cancel); });
}

ddm_rt_error *ddm_rt_model_open_abi(int32_t abi, const char *directory, int64_t size,
                                    const ddm_rt_model_options *options, ddm_rt_model **model) {
    return guarded([&] {
        given_place(model, "model");
        if (abi < 1 || abi > DDM_RT_ABI) {
            throw ddm::about(ddm::Status::abi, "abi", ddm::concat(" is ", abi, "; this library has 1 to ", DDM_RT_ABI));
        }
        const std::string path = given_path(directory, size, "directory");
        const auto opened = std::make_shared<ddm::Model>(path, options ? options->options : ddm::ModelOptions());
        *model =
            new ddm_rt_model{opened, describe(*opened), name_of(opened->bundle().config.family), opened->provider()};
    });
}

void ddm_rt_model_close(ddm_rt_model *model) {
    if (model && model->model->forked()) ddm::abandon(std::move(model->model));
    delete model;
}

const char *ddm_rt_model_describe(const ddm_rt_model *model) { return model ? model->description.c_str() : nullptr; }

const char *ddm_rt_model_bundle_id(const ddm_rt_model *model) {
    return model ? model->model->bundle().bundle_id.c_str() : nullptr;
}

const char *ddm_rt_model_name(const ddm_rt_model *model) {
    return model ? model->model->bundle().config.name.c_str() : nullptr;
}

const char *ddm_rt_model_family(const ddm_rt_model *model) { return model ? model->family.c_str() : nullptr; }

const char *ddm_rt_model_backend(const ddm_rt_model *model) {
    return model ? model->model->made_by().backend.c_str() : nullptr;
}

const char *ddm_rt_model_provider(const ddm_rt_model *model) { return model ? model->provider.c_str() : nullptr; }

const char *ddm_rt_model_precision(const ddm_rt_model *model) {
    return model ? model->model->made_by().precision.c_str() : nullptr;
}

int64_t ddm_rt_model_num_codes(const ddm_rt_model *model) {
    return model ? static_cast<int64_t>(model->model->bundle().codes.num_codes()) : 0;
}

int64_t ddm_rt_model_num_top_codes(const ddm_rt_model *model) {
    return model ? static_cast<int64_t>(model->model->bundle().codes.num_top_codes()) : 0;
}

int64_t ddm_rt_model_image_size(const ddm_rt_model *model) {
    return model ? model->model->bundle().config.image_size : 0;
}

int64_t ddm_rt_model_size_multiple(const ddm_rt_model *model) {
    return model ? model->model->bundle().config.size_multiple : 0;
}

int64_t ddm_rt_model_threads(const ddm_rt_model *model) { return model ? model->model->made_by().threads : 0; }

int32_t ddm_rt_model_prompt_free(const ddm_rt_model *model) {
    return model && model->model->bundle().config.prompt_free;
}

void ddm_rt_model_trim(ddm_rt_model *model) {
    if (model && !model->model->forked()) model->model->trim();
}

ddm_rt_error *ddm_rt_session_options_create(ddm_rt_session_options **options) {
    return guarded([&] { create(options, "options"); });
}

void ddm_rt_session_options_destroy(ddm_rt_session_options *options) { delete options; }

ddm_rt_error *ddm_rt_session_options_set_ledger(ddm_rt_session_options *options, const char *path, int64_t size,
                                                int32_t fsync) {
    return guarded([&] {
        given(options, "options").options.ledger = given_path(path, size, "path");
        options->options.fsync = fsync != 0;
    });
}

ddm_rt_error *ddm_rt_session_options_set_log(ddm_rt_session_options *options, int32_t level, ddm_rt_log log,
                                             void *user) {
    return guarded([&] { given(options, "options").options.log = ddm::log_of(level, log, user); });
}

ddm_rt_error *ddm_rt_session_options_set_most_images(ddm_rt_session_options *options, int64_t images) {
    return set_most(options, &ddm::Limits::images, "images", images);
}

ddm_rt_error *ddm_rt_session_options_set_most_pixels(ddm_rt_session_options *options, int64_t pixels) {
    return set_most(options, &ddm::Limits::pixels, "pixels", pixels);
}

ddm_rt_error *ddm_rt_session_options_set_most_bytes(ddm_rt_session_options *options, int64_t bytes) {
    return set_most(options, &ddm::Limits::bytes, "bytes", bytes);
}

ddm_rt_error *ddm_rt_session_open(ddm_rt_model *model, const ddm_rt_session_options *options,
                                  ddm_rt_session **session) {
    return guarded([&] {
        given_place(session, "session");
        const std::shared_ptr<ddm::Model> &opened = given(model, "model").model;
        *session = new ddm_rt_session{{opened, options ? options->options : ddm::SessionOptions()}};
    });
}

void ddm_rt_session_close(ddm_rt_session *session) { delete session; }

ddm_rt_error *ddm_rt_session_ledger(ddm_rt_session *session, const char *scope, int64_t size, char **json) {
    return guarded([&] {
        given_place(json, "json");
        const auto wanted = scope ? std::optional(given_text(scope, size, "scope")) : std::nullopt;
        if (wanted == "") throw ddm::about("scope", " is empty; expected one, or null for all");
        ddm::json::Out found = ddm::json::Out::array();
        for (const ddm::Standing &each : given(session, "session").session.standings(wanted)) {
            const auto &calibration_id = each.stream.calibration_id;
            found.push_back({
                {"scope", each.stream.scope},
                {"target", each.stream.target},
                {"calibration_id", calibration_id ? ddm::json::Out(*calibration_id) : ddm::json::Out()},
                {"issued", counts(each.issued)},
                {"leased", counts(each.leased)},
                {"pooled", counts(each.pooled)},
            });
        }
        *json = ddm::copied(ddm::json::write(found));
    });
}

ddm_rt_error *ddm_rt_generate(ddm_rt_session *session, const ddm_rt_request *request, ddm_rt_images **images) {
    return guarded([&] {
        given_place(images, "images");
        ddm::Session &opened = given(session, "session").session;
        ddm::Wanted wanted = given(request, "request").wanted;
        if (request->words_by_scope) wanted.leave_alone = ddm::words_for(*request->words_by_scope, wanted.scope);
        *images = new ddm_rt_images{std::make_shared<const ddm::Generation>(opened.generate(wanted, request->hooks))};
    });
}

ddm_rt_error *ddm_rt_replay(ddm_rt_session *session, const char *manifest, int64_t size, const char *name,
                            int64_t name_size, int64_t index, const ddm_rt_request *request, ddm_rt_images **images) {
    return guarded([&] {
        given_place(images, "images");
        ddm::Session &opened = given(session, "session").session;
        ddm::Manifest recorded = ddm::Manifest::parse(given_text(manifest, size, "manifest"),
                                                      name ? given_text(name, name_size, "name") : "manifest");
        const std::optional<int64_t> only = index == DDM_RT_ALL ? std::nullopt : std::optional(index);
        *images = new ddm_rt_images{std::make_shared<const ddm::Generation>(
            opened.replay(std::move(recorded), only, request ? request->hooks : ddm::Hooks()))};
    });
}

void ddm_rt_images_destroy(ddm_rt_images *images) { delete images; }

int64_t ddm_rt_images_count(const ddm_rt_images *images) {
    if (!images) return 0;
    return static_cast<int64_t>(images->some ? images->some->size() : images->generation->rgb.size());
}

int64_t ddm_rt_images_height(const ddm_rt_images *images) { return images ? images->generation->height : 0; }

int64_t ddm_rt_images_width(const ddm_rt_images *images) { return images ? images->generation->width : 0; }

const uint8_t *ddm_rt_images_rgb(const ddm_rt_images *images, int64_t index) {
    const auto number = number_of(images, index);
    if (!number || images->generation->rgb[*number].empty()) return nullptr;
    return images->generation->rgb[*number].data();
}

int64_t ddm_rt_images_index(const ddm_rt_images *images, int64_t index) {
    const auto number = number_of(images, index);
    return number ? static_cast<int64_t>(*number) : -1;
}

int64_t ddm_rt_images_code(const ddm_rt_images *images, int64_t index) {
    const auto *found = record(images, index);
    return found ? found->code : ddm::NULL_CODE;
}

int64_t ddm_rt_images_top_code(const ddm_rt_images *images, int64_t index) {
    const auto *found = record(images, index);
    return found ? found->top_code : ddm::NULL_CODE;
}

uint64_t ddm_rt_images_seed(const ddm_rt_images *images, int64_t index) {
    const auto *found = record(images, index);
    return found ? found->seed : 0;
}

const char *ddm_rt_images_file(const ddm_rt_images *images, int64_t index) {
    const auto *found = record(images, index);
    return found ? found->file.c_str() : nullptr;
}

const char *ddm_rt_images_xmp(const ddm_rt_images *images, int64_t index) {
    if (!images || images->generation->xmp.empty()) return nullptr;
    if (index == DDM_RT_ALL) return images->generation->xmp.back().c_str();
    const auto number = number_of(images, index);
    return number ? images->generation->xmp[*number].c_str() : nullptr;
}

const char *ddm_rt_images_manifest(const ddm_rt_images *images) {
    return images ? images->generation->text.c_str() : nullptr;
}
