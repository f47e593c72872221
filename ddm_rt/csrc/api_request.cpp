// The C boundary: what a request says. Values are checked when it is used, against the bundle, as in Python.
#include "handles.h"

using ddm::given;
using ddm::given_text;
using ddm::guarded;

namespace {

// Sets a field of `wanted` that may be left out.
template <typename Field, typename Value>
ddm_rt_status set(ddm_rt_request *request, Field ddm::Wanted::*field, Value value) {
    return guarded([&] { given(request, "request").wanted.*field = value; });
}

template <typename Field>
ddm_rt_status set_text(ddm_rt_request *request, Field ddm::Wanted::*field, const char *text, const char *name) {
    return guarded([&] { given(request, "request").wanted.*field = std::string(given_text(text, name)); });
}

ddm_rt_status add_text(ddm_rt_request *request, std::optional<std::vector<std::string>> ddm::Wanted::*field,
                       const char *text, const char *name) {
    return guarded([&] {
        auto &list = given(request, "request").wanted.*field;
        const std::string added = given_text(text, name);
        if (!list) list.emplace();
        list->push_back(added);
    });
}

}  // namespace

ddm_rt_status ddm_rt_request_create(ddm_rt_request **request) {
    return guarded([&] { given(request, "request") = nullptr, *request = new ddm_rt_request; });
}

void ddm_rt_request_destroy(ddm_rt_request *request) { delete request; }

ddm_rt_status ddm_rt_request_set_n(ddm_rt_request *request, int64_t n) { return set(request, &ddm::Wanted::n, n); }

ddm_rt_status ddm_rt_request_set_seed(ddm_rt_request *request, uint64_t seed) {
    return set(request, &ddm::Wanted::seed, seed);
}

ddm_rt_status ddm_rt_request_add_prompt(ddm_rt_request *request, const char *prompt) {
    return add_text(request, &ddm::Wanted::prompt, prompt, "prompt");
}

ddm_rt_status ddm_rt_request_set_negative_prompt(ddm_rt_request *request, const char *prompt) {
    return set_text(request, &ddm::Wanted::negative_prompt, prompt, "prompt");
}

ddm_rt_status ddm_rt_request_set_guidance_scale(ddm_rt_request *request, double scale) {
    return set(request, &ddm::Wanted::guidance_scale, scale);
}

ddm_rt_status ddm_rt_request_set_indicator_guidance_scale(ddm_rt_request *request, double scale) {
    return set(request, &ddm::Wanted::indicator_guidance_scale, scale);
}

ddm_rt_status ddm_rt_request_set_guidance_interval(ddm_rt_request *request, double start, double stop) {
    return set(request, &ddm::Wanted::guidance_interval, ddm::Pair(start, stop));
}

ddm_rt_status ddm_rt_request_set_apg(ddm_rt_request *request, double norm, double eta) {
    return set(request, &ddm::Wanted::apg, ddm::Pair(norm, eta));
}

ddm_rt_status ddm_rt_request_set_cads(ddm_rt_request *request, double scale, double end, double begin) {
    return set(request, &ddm::Wanted::cads, ddm::Triple{scale, end, begin});
}

ddm_rt_status ddm_rt_request_set_num_steps(ddm_rt_request *request, int64_t num_steps) {
    return set(request, &ddm::Wanted::num_steps, num_steps);
}

ddm_rt_status ddm_rt_request_set_sampler(ddm_rt_request *request, const char *sampler) {
    return set_text(request, &ddm::Wanted::sampler, sampler, "sampler");
}

ddm_rt_status ddm_rt_request_set_height(ddm_rt_request *request, int64_t height) {
    return set(request, &ddm::Wanted::height, height);
}

ddm_rt_status ddm_rt_request_set_width(ddm_rt_request *request, int64_t width) {
    return set(request, &ddm::Wanted::width, width);
}

ddm_rt_status ddm_rt_request_set_codes(ddm_rt_request *request, const int64_t *codes, int64_t count) {
    return guarded([&] {
        if (count < 0) throw ddm::Error(ddm::concat("count is ", count, "; expected 0 or more"));
        if (count > 0) given(codes, "codes");
        given(request, "request").wanted.codes.emplace(codes, codes + count);
    });
}

ddm_rt_status ddm_rt_request_set_target(ddm_rt_request *request, const char *target) {
    return set_text(request, &ddm::Wanted::target, target, "target");
}

ddm_rt_status ddm_rt_request_set_balance(ddm_rt_request *request, const char *balance) {
    return set_text(request, &ddm::Wanted::balance, balance, "balance");
}

ddm_rt_status ddm_rt_request_set_scope(ddm_rt_request *request, const char *scope) {
    return set_text(request, &ddm::Wanted::scope, scope, "scope");
}

ddm_rt_status ddm_rt_request_set_shuffle(ddm_rt_request *request, int32_t shuffle) {
    return set(request, &ddm::Wanted::shuffle, shuffle != 0);
}

ddm_rt_status ddm_rt_request_set_allow_stale(ddm_rt_request *request, int32_t allow_stale) {
    return set(request, &ddm::Wanted::allow_stale, allow_stale != 0);
}

ddm_rt_status ddm_rt_request_set_provenance(ddm_rt_request *request, int32_t provenance) {
    return set(request, &ddm::Wanted::provenance, provenance != 0);
}

ddm_rt_status ddm_rt_request_set_provenance_code(ddm_rt_request *request, int32_t provenance_code) {
    return set(request, &ddm::Wanted::provenance_code, provenance_code != 0);
}

ddm_rt_status ddm_rt_request_add_leave_alone(ddm_rt_request *request, const char *word) {
    return add_text(request, &ddm::Wanted::leave_alone, word, "word");
}

ddm_rt_status ddm_rt_request_set_leave_alone_json(ddm_rt_request *request, const char *json, int64_t size,
                                                  const char *name) {
    return guarded([&] {
        const std::string_view content = ddm::given_bytes(json, size, "json");
        given(request, "request").words_by_scope = ddm::words_by_scope(content, name ? name : "");
    });
}

ddm_rt_status ddm_rt_request_set_on_step(ddm_rt_request *request, ddm_rt_on_step on_step, void *user) {
    return guarded([&] { given(request, "request").on_step = on_step, request->on_step_user = user; });
}

ddm_rt_status ddm_rt_request_set_deliver(ddm_rt_request *request, ddm_rt_deliver deliver, void *user) {
    return guarded([&] { given(request, "request").deliver = deliver, request->deliver_user = user; });
}

ddm_rt_status ddm_rt_request_cancel(ddm_rt_request *request) {
    return guarded([&] { given(request, "request").cancelled.store(true, std::memory_order_relaxed); });
}
