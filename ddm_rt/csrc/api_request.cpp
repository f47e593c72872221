// The C boundary: what a request says. Values are checked when it is used, against the bundle, as in Python.
#include "handles.h"

using ddm::given;
using ddm::given_text;
using ddm::guarded;

namespace {

// Sets a field of `wanted` that may be left out.
template <typename Field, typename Value>
ddm_rt_error *set(ddm_rt_request *request, Field ddm::Wanted::*field, Value value) {
    return guarded([&] { given(request, "request").wanted.*field = value; });
}

template <typename Field>
ddm_rt_error *set_text(ddm_rt_request *request, Field ddm::Wanted::*field, const char *text, int64_t size,
                       const char *name) {
    return guarded([&] { given(request, "request").wanted.*field = given_text(text, size, name); });
}

ddm_rt_error *add_text(ddm_rt_request *request, std::optional<std::vector<std::string>> ddm::Wanted::*field,
                       const char *text, int64_t size, const char *name) {
    return guarded([&] {
        auto &list = given(request, "request").wanted.*field;
        std::string added = given_text(text, size, name);
        if (!list) list.emplace();
        list->push_back(std::move(added));
    });
}

// Lends a callback images; whether it takes them.
bool given_to(ddm_rt_on_images callback, void *user, const ddm::Generation &made,
              const std::optional<std::vector<size_t>> &some) {
    const ddm_rt_images images{std::shared_ptr<const ddm::Generation>(std::shared_ptr<void>(), &made), some};
    return callback(user, &images) == 0;
}

}  // namespace

ddm_rt_error *ddm_rt_request_create(ddm_rt_request **request) {
    return guarded([&] { ddm::create(request, "request"); });
}

void ddm_rt_request_destroy(ddm_rt_request *request) { delete request; }

ddm_rt_error *ddm_rt_request_set_n(ddm_rt_request *request, int64_t n) { return set(request, &ddm::Wanted::n, n); }

ddm_rt_error *ddm_rt_request_set_seed(ddm_rt_request *request, uint64_t seed) {
    return set(request, &ddm::Wanted::seed, seed);
}

ddm_rt_error *ddm_rt_request_add_prompt(ddm_rt_request *request, const char *prompt, int64_t size) {
    return add_text(request, &ddm::Wanted::prompt, prompt, size, "prompt");
}

ddm_rt_error *ddm_rt_request_set_negative_prompt(ddm_rt_request *request, const char *prompt, int64_t size) {
    return set_text(request, &ddm::Wanted::negative_prompt, prompt, size, "prompt");
}

ddm_rt_error *ddm_rt_request_set_guidance_scale(ddm_rt_request *request, double scale) {
    return set(request, &ddm::Wanted::guidance_scale, scale);
}

ddm_rt_error *ddm_rt_request_set_indicator_guidance_scale(ddm_rt_request *request, double scale) {
    return set(request, &ddm::Wanted::indicator_guidance_scale, scale);
}

ddm_rt_error *ddm_rt_request_set_guidance_interval(ddm_rt_request *request, double start, double stop) {
    return set(request, &ddm::Wanted::guidance_interval, ddm::Pair(start, stop));
}

ddm_rt_error *ddm_rt_request_set_apg(ddm_rt_request *request, double norm, double eta) {
    return set(request, &ddm::Wanted::apg, ddm::Pair(norm, eta));
}

ddm_rt_error *ddm_rt_request_set_cads(ddm_rt_request *request, double scale, double end, double begin) {
    return set(request, &ddm::Wanted::cads, ddm::Triple{scale, end, begin});
}

ddm_rt_error *ddm_rt_request_set_cache(ddm_rt_request *request, int64_t calls) {
    return set(request, &ddm::Wanted::cache, calls);
}

ddm_rt_error *ddm_rt_request_set_num_steps(ddm_rt_request *request, int64_t num_steps) {
    return set(request, &ddm::Wanted::num_steps, num_steps);
}

ddm_rt_error *ddm_rt_request_set_sampler(ddm_rt_request *request, const char *sampler, int64_t size) {
    return set_text(request, &ddm::Wanted::sampler, sampler, size, "sampler");
}

ddm_rt_error *ddm_rt_request_set_height(ddm_rt_request *request, int64_t height) {
    return set(request, &ddm::Wanted::height, height);
}

ddm_rt_error *ddm_rt_request_set_width(ddm_rt_request *request, int64_t width) {
    return set(request, &ddm::Wanted::width, width);
}

ddm_rt_error *ddm_rt_request_set_codes(ddm_rt_request *request, const int64_t *codes, int64_t count) {
    return guarded([&] {
        if (count < 0) throw ddm::about("count", ddm::concat(" is ", count, "; expected 0 or more"));
        if (count > 0) given(codes, "codes");
        given(request, "request").wanted.codes.emplace(codes, codes + count);
    });
}

ddm_rt_error *ddm_rt_request_set_target(ddm_rt_request *request, const char *target, int64_t size) {
    return set_text(request, &ddm::Wanted::target, target, size, "target");
}

ddm_rt_error *ddm_rt_request_set_balance(ddm_rt_request *request, const char *balance, int64_t size) {
    return set_text(request, &ddm::Wanted::balance, balance, size, "balance");
}

ddm_rt_error *ddm_rt_request_set_scope(ddm_rt_request *request, const char *scope, int64_t size) {
    return set_text(request, &ddm::Wanted::scope, scope, size, "scope");
}

ddm_rt_error *ddm_rt_request_set_shuffle(ddm_rt_request *request, int32_t shuffle) {
    return set(request, &ddm::Wanted::shuffle, shuffle != 0);
}

ddm_rt_error *ddm_rt_request_set_allow_stale(ddm_rt_request *request, int32_t allow_stale) {
    return set(request, &ddm::Wanted::allow_stale, allow_stale != 0);
}

ddm_rt_error *ddm_rt_request_set_provenance(ddm_rt_request *request, int32_t provenance) {
    return set(request, &ddm::Wanted::provenance, provenance != 0);
}

ddm_rt_error *ddm_rt_request_set_provenance_code(ddm_rt_request *request, int32_t provenance_code) {
    return set(request, &ddm::Wanted::provenance_code, provenance_code != 0);
}

ddm_rt_error *ddm_rt_request_add_leave_alone(ddm_rt_request *request, const char *word, int64_t size) {
    return add_text(request, &ddm::Wanted::leave_alone, word, size, "word");
}

ddm_rt_error *ddm_rt_request_set_leave_alone_json(ddm_rt_request *request, const char *json, int64_t size,
                                                  const char *name, int64_t name_size) {
    return guarded([&] {
        const std::string content = given_text(json, size, "json");
        const std::string called = name ? given_text(name, name_size, "name") : "";
        given(request, "request").words_by_scope = ddm::words_by_scope(content, called);
    });
}

ddm_rt_error *ddm_rt_request_set_on_step(ddm_rt_request *request, ddm_rt_on_step on_step, void *user) {
    return guarded([&] {
        ddm::Hooks &hooks = given(request, "request").hooks;
        hooks.on_step = nullptr;
        if (on_step) hooks.on_step = [=](int64_t done, int64_t total) { return on_step(user, done, total) != 0; };
    });
}

ddm_rt_error *ddm_rt_request_set_on_images(ddm_rt_request *request, ddm_rt_on_images on_images, void *user) {
    return guarded([&] {
        ddm::Hooks &hooks = given(request, "request").hooks;
        hooks.on_images = nullptr;
        if (!on_images) return;
        hooks.on_images = [=](const auto &made, const auto &numbers) {
            return given_to(on_images, user, made, numbers);
        };
    });
}

ddm_rt_error *ddm_rt_request_set_deliver(ddm_rt_request *request, ddm_rt_on_images deliver, void *user) {
    return guarded([&] {
        ddm::Hooks &hooks = given(request, "request").hooks;
        hooks.deliver = nullptr;
        if (deliver) hooks.deliver = [=](const auto &made) { return given_to(deliver, user, made, std::nullopt); };
    });
}

ddm_rt_error *ddm_rt_request_set_keep(ddm_rt_request *request, int32_t keep) {
    return guarded([&] { given(request, "request").hooks.keep = keep != 0; });
}

ddm_rt_error *ddm_rt_request_set_cancel(ddm_rt_request *request, const ddm_rt_cancel *cancel) {
    return guarded([&] { given(request, "request").hooks.cancelled = ddm::cancelled_by(cancel); });
}
