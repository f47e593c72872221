// The C boundary: opening bundles, generating and looking at images. Nothing is thrown across it.
#include <cstring>
#include <exception>
#include <new>
#include <optional>
#include <system_error>

#include "handles.h"
#include "json.h"

namespace ddm {
namespace {

// Filled in place, so that an error is told where memory is short.
thread_local char last_error[4096] = "";

void keep(const char *message) {
    size_t size = std::strlen(message);
    const size_t room = sizeof last_error - 1;
    if (size > room) {
        size = room;
        while (size > 0 && (static_cast<unsigned char>(message[size]) & 0xC0) == 0x80) size--;  // whole characters
    }
    std::memcpy(last_error, message, size);
    last_error[size] = '\0';
}

json::Out or_null(const std::optional<std::string> &text) { return text ? json::Out(*text) : json::Out(); }

std::string describe(const Pipeline &pipeline) {
    const RuntimeConfig &config = pipeline.bundle().config;
    const Codes &codes = pipeline.bundle().codes;
    const MadeBy &made_by = pipeline.made_by();
    const std::vector<std::string> &former_ids = pipeline.bundle().former_ids;
    json::Out versions = json::Out::object();
    for (const auto &[name, version] : made_by.versions) versions[name] = version;
    return json::write({
        {"bundle_id", pipeline.bundle().bundle_id},
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

Hooks hooks_of(const ddm_rt_request *request) {
    Hooks hooks;
    if (!request) return hooks;
    hooks.cancelled = [request] { return request->cancelled.load(std::memory_order_relaxed); };
    if (request->on_step) {
        hooks.on_step = [request](int64_t done, int64_t total) { request->on_step(request->on_step_user, done, total); };
    }
    if (request->deliver) {
        hooks.deliver = [request](const Generation &generation) {
            const ddm_rt_images images{{std::shared_ptr<void>(), &generation}};  // lent, not owned
            return request->deliver(request->deliver_user, &images) == 0;
        };
    }
    return hooks;
}

bool has(const ddm_rt_images *images, int64_t index) {
    return images && index >= 0 && static_cast<size_t>(index) < images->generation->manifest.images.size();
}

const ImageRecord &record(const ddm_rt_images *images, int64_t index) {
    return images->generation->manifest.images[static_cast<size_t>(index)];
}

}  // namespace

ddm_rt_status keep_error() noexcept {
    try {
        throw;
    } catch (const Error &error) {
        keep(error.what());
        return static_cast<ddm_rt_status>(error.status);
    } catch (const NotDelivered &error) {
        keep(error.what());
        return DDM_RT_NOT_DELIVERED;
    } catch (const std::bad_alloc &) {
        keep("out of memory");
        return DDM_RT_OUT_OF_MEMORY;
    } catch (const std::length_error &) {
        keep("out of memory: more than any machine has was asked for");
        return DDM_RT_OUT_OF_MEMORY;
    } catch (const std::exception &error) {
        keep(error.what());
        return DDM_RT_INTERNAL;
    } catch (...) {
        keep("something was thrown that is no exception, by a callback perhaps");
        return DDM_RT_INTERNAL;
    }
}

}  // namespace ddm

using ddm::given;
using ddm::given_text;
using ddm::guarded;

int32_t ddm_rt_abi(void) { return DDM_RT_ABI; }

const char *ddm_rt_version(void) { return DDM_RT_VERSION; }

const char *ddm_rt_last_error(void) { return ddm::last_error; }

const char *ddm_rt_backends(void) {
    static thread_local std::string text;
    const ddm_rt_status status = guarded([&] {
        ddm::json::Out found = ddm::json::Out::array();
        for (const auto &[name, reason] : ddm::backends()) {
            found.push_back({{"name", name}, {"reason", ddm::or_null(reason)}});
        }
        text = ddm::json::write(found);
    });
    return status == DDM_RT_OK ? text.c_str() : nullptr;
}

ddm_rt_status ddm_rt_options_create(ddm_rt_options **options) {
    return guarded([&] { given(options, "options") = nullptr, *options = new ddm_rt_options; });
}

void ddm_rt_options_destroy(ddm_rt_options *options) { delete options; }

ddm_rt_status ddm_rt_options_set_backend(ddm_rt_options *options, const char *name) {
    return guarded([&] { given(options, "options").options.backend.name = given_text(name, "name"); });
}

ddm_rt_status ddm_rt_options_set_threads(ddm_rt_options *options, int32_t threads) {
    return guarded([&] { given(options, "options").options.backend.threads = threads; });
}

ddm_rt_status ddm_rt_options_set_ledger(ddm_rt_options *options, const char *path, int32_t fsync) {
    return guarded([&] {
        given(options, "options").options.ledger = given_text(path, "path");
        options->options.fsync = fsync != 0;
    });
}

ddm_rt_status ddm_rt_options_set_onnxruntime(ddm_rt_options *options, const char *library) {
    return guarded([&] { given(options, "options").options.backend.onnxruntime = given_text(library, "library"); });
}

ddm_rt_status ddm_rt_options_set_warn(ddm_rt_options *options, ddm_rt_warn warn, void *user) {
    return guarded([&] {
        given(options, "options").options.warn = nullptr;
        if (warn) options->options.warn = [warn, user](const std::string &message) { warn(user, message.c_str()); };
    });
}

ddm_rt_status ddm_rt_pipeline_open(const char *directory, const ddm_rt_options *options, ddm_rt_pipeline **pipeline) {
    return guarded([&] {
        given(pipeline, "pipeline") = nullptr;
        const ddm::PipelineOptions chosen = options ? options->options : ddm::PipelineOptions();
        auto opened = std::unique_ptr<ddm_rt_pipeline>(new ddm_rt_pipeline{{given_text(directory, "directory"), chosen}, {}});
        opened->description = ddm::describe(opened->pipeline);
        *pipeline = opened.release();
    });
}

void ddm_rt_pipeline_close(ddm_rt_pipeline *pipeline) {
    // ONNX Runtime would wait for threads that a forked process hasn't got.
    if (pipeline && !pipeline->pipeline.forked()) delete pipeline;
}

const char *ddm_rt_pipeline_describe(const ddm_rt_pipeline *pipeline) {
    return pipeline ? pipeline->description.c_str() : nullptr;
}

ddm_rt_status ddm_rt_generate(ddm_rt_pipeline *pipeline, const ddm_rt_request *request, ddm_rt_images **images) {
    return guarded([&] {
        given(images, "images") = nullptr;
        ddm::Pipeline &opened = given(pipeline, "pipeline").pipeline;
        ddm::Wanted wanted = given(request, "request").wanted;
        if (request->words_by_scope) wanted.leave_alone = ddm::words_for(*request->words_by_scope, wanted.scope);
        *images = new ddm_rt_images{
            std::make_shared<const ddm::Generation>(opened.generate(wanted, ddm::hooks_of(request)))};
    });
}

ddm_rt_status ddm_rt_replay(ddm_rt_pipeline *pipeline, const char *manifest, int64_t size, const char *name,
                            int64_t index, const ddm_rt_request *request, ddm_rt_images **images) {
    return guarded([&] {
        given(images, "images") = nullptr;
        ddm::Pipeline &opened = given(pipeline, "pipeline").pipeline;
        ddm::Manifest recorded = ddm::Manifest::parse(ddm::given_bytes(manifest, size, "manifest"),
                                                      name ? name : "manifest");
        const std::optional<int64_t> only = index == DDM_RT_ALL ? std::nullopt : std::optional(index);
        *images = new ddm_rt_images{std::make_shared<const ddm::Generation>(
            opened.replay(std::move(recorded), only, ddm::hooks_of(request)))};
    });
}

void ddm_rt_images_destroy(ddm_rt_images *images) { delete images; }

int64_t ddm_rt_images_count(const ddm_rt_images *images) {
    return images ? static_cast<int64_t>(images->generation->manifest.images.size()) : 0;
}

int64_t ddm_rt_images_height(const ddm_rt_images *images) { return images ? images->generation->height : 0; }

int64_t ddm_rt_images_width(const ddm_rt_images *images) { return images ? images->generation->width : 0; }

const uint8_t *ddm_rt_images_rgb(const ddm_rt_images *images, int64_t index) {
    if (!ddm::has(images, index)) return nullptr;
    const int64_t size = images->generation->height * images->generation->width * 3;
    return images->generation->rgb.data() + index * size;
}

int64_t ddm_rt_images_code(const ddm_rt_images *images, int64_t index) {
    return ddm::has(images, index) ? ddm::record(images, index).code : ddm::NULL_CODE;
}

int64_t ddm_rt_images_top_code(const ddm_rt_images *images, int64_t index) {
    return ddm::has(images, index) ? ddm::record(images, index).top_code : ddm::NULL_CODE;
}

uint64_t ddm_rt_images_seed(const ddm_rt_images *images, int64_t index) {
    return ddm::has(images, index) ? ddm::record(images, index).seed : 0;
}

const char *ddm_rt_images_file(const ddm_rt_images *images, int64_t index) {
    return ddm::has(images, index) ? ddm::record(images, index).file.c_str() : nullptr;
}

const char *ddm_rt_images_xmp(const ddm_rt_images *images, int64_t index) {
    if (!images || images->generation->xmp.empty()) return nullptr;
    if (index == DDM_RT_ALL) return images->generation->xmp.back().c_str();
    return ddm::has(images, index) ? images->generation->xmp[static_cast<size_t>(index)].c_str() : nullptr;
}

const char *ddm_rt_images_manifest(const ddm_rt_images *images) {
    return images ? images->generation->text.c_str() : nullptr;
}
