#include "sample.h"

#include <malloc.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <exception>
#include <fstream>
#include <iterator>
#include <memory>

#include "ddm_rt.h"
#include "output.h"

namespace cli {
namespace {

namespace fs = std::filesystem;

template <typename T>
using Owned = std::unique_ptr<T, void (*)(T*)>;

int64_t size_of(std::string_view text) { return static_cast<int64_t>(text.size()); }

template <typename T>
Owned<T> created(ddm_rt_error* (*create)(T**), void (*destroy)(T*)) {
    T* handle = nullptr;
    check(create(&handle));
    return {handle, destroy};
}

std::string content(const std::string& path, const char* expected) {
    errno = 0;
    std::ifstream file(path, std::ios::binary);
    std::string found{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
    if (!file.is_open() || file.bad() || errno == EISDIR) {
        throw Refused(path + ": cannot be read (" + std::strerror(errno) + "); expected " + expected);
    }
    return found;
}

int64_t calls_of(const std::string& cache) {
    if (cache == "auto") return DDM_RT_CACHE_AUTO;
    if (cache == "off") return DDM_RT_CACHE_OFF;
    int64_t calls = 0;
    const auto [end, error] = std::from_chars(cache.data(), cache.data() + cache.size(), calls);
    if (error == std::errc() && end == cache.data() + cache.size() && calls > 1) return calls;
    throw Refused("--cache: " + cache + " given; expected auto, off, or a number of calls, at least 2");
}

// What an option's own form doesn't say.
void check_options(const Sample& s) {
    const auto check_count = [](const char* option, size_t count, std::initializer_list<size_t> expected,
                                const char* form) {
        if (count == 0 || std::find(expected.begin(), expected.end(), count) != expected.end()) return;
        throw Refused(std::string(option) + ": " + std::to_string(count) + " given; expected " + form);
    };
    check_count("--guidance-interval", s.guidance_interval.size(), {2}, "A,B, for example .2,.8");
    check_count("--apg", s.apg.size(), {1, 2}, "NORM or NORM,ETA, for example 15 or 15,.5");
    check_count("--cads", s.cads.size(), {1, 3}, "SCALE or SCALE,END,BEGIN, for example .25 or .25,.6,.9");
    if (s.cache) calls_of(*s.cache);
    if (static_cast<int64_t>(s.prompts.size()) > s.n) {
        throw Refused("--prompt: " + std::to_string(s.prompts.size()) + " texts for " + std::to_string(s.n) +
                      " images; expected -n to be no fewer");
    }
}

void fill_leave_alone(ddm_rt_request* request, const std::vector<std::string>& given) {
    if (given.size() == 1 && given[0].ends_with(".json")) {
        const std::string words = content(given[0], "words in JSON");
        check(ddm_rt_request_set_leave_alone_json(request, words.data(), size_of(words), given[0].data(),
                                                  size_of(given[0])));
        return;
    }
    for (const std::string& word : given) {  // "woman, man"
        const size_t start = std::min(word.find_first_not_of(' '), word.size()), end = word.find_last_not_of(' ') + 1;
        check(ddm_rt_request_add_leave_alone(request, word.data() + start, static_cast<int64_t>(end - start)));
    }
}

void fill(ddm_rt_request* request, const Sample& s) {
    check(ddm_rt_request_set_n(request, s.n));
    check(ddm_rt_request_set_seed(request, s.seed));
    for (const std::string& prompt : s.prompts)
        check(ddm_rt_request_add_prompt(request, prompt.data(), size_of(prompt)));
    const auto text = [&](const std::optional<std::string>& value, auto set) {
        if (value) check(set(request, value->data(), size_of(*value)));
    };
    const auto number = [&](const auto& value, auto set) {
        if (value) check(set(request, *value));
    };
    text(s.negative_prompt, ddm_rt_request_set_negative_prompt);
    text(s.target, ddm_rt_request_set_target);
    text(s.balance, ddm_rt_request_set_balance);
    text(s.scope, ddm_rt_request_set_scope);
    text(s.sampler, ddm_rt_request_set_sampler);
    number(s.guidance_scale, ddm_rt_request_set_guidance_scale);
    number(s.indicator_guidance_scale, ddm_rt_request_set_indicator_guidance_scale);
    number(s.steps, ddm_rt_request_set_num_steps);
    number(s.height, ddm_rt_request_set_height);
    number(s.width, ddm_rt_request_set_width);
    const auto or_default = [](const std::vector<double>& given, size_t i, double value) {
        return i < given.size() ? given[i] : value;
    };
    if (const auto& v = s.guidance_interval; !v.empty()) {
        check(ddm_rt_request_set_guidance_interval(request, v[0], v[1]));
    }
    if (const auto& v = s.apg; !v.empty()) check(ddm_rt_request_set_apg(request, v[0], or_default(v, 1, 0.0)));
    if (const auto& v = s.cads; !v.empty()) {
        check(ddm_rt_request_set_cads(request, v[0], or_default(v, 1, .6), or_default(v, 2, .9)));
    }
    if (s.cache) check(ddm_rt_request_set_cache(request, calls_of(*s.cache)));
    check(ddm_rt_request_set_allow_stale(request, s.allow_stale));
    check(ddm_rt_request_set_shuffle(request, s.shuffle));
    check(ddm_rt_request_set_provenance(request, !s.no_provenance));
    check(ddm_rt_request_set_provenance_code(request, s.provenance_code));
}

void warn(void*, int32_t, const char* message) { std::fprintf(stderr, "%s\n", message); }

int32_t show_step(void*, int64_t done, int64_t total) {
    std::fprintf(stderr, "\rsampling %lld/%lld%s", static_cast<long long>(done), static_cast<long long>(total),
                 done == total ? "\n" : "");
    return 0;
}

// The images, written; where the ledger then can't record them, they are taken away again.
struct Delivery {
    fs::path out;
    bool written = false;
    std::exception_ptr failure;

    static int32_t deliver(void* user, const ddm_rt_images* images) {
        auto* self = static_cast<Delivery*>(user);
        try {
            save(images, self->out);
            self->written = true;
            return 0;
        } catch (...) {  // not through the library
            self->failure = std::current_exception();
            return 1;
        }
    }
};

}  // namespace

void sample(const Sample& s) {
    check_options(s);
    const auto request = created(ddm_rt_request_create, ddm_rt_request_destroy);
    fill_leave_alone(request.get(), s.leave_alone);
    fs::path out = fs::path(s.out).lexically_normal();
    if (!out.has_filename()) out = out.parent_path();  // "out/"
    Delivery delivery{out, false, nullptr};
    check_free(out);

    const auto options = created(ddm_rt_model_options_create, ddm_rt_model_options_destroy);
    const auto named = [&](const std::optional<std::string>& value, auto set) {
        if (value) check(set(options.get(), value->data(), size_of(*value)));
    };
    named(s.backend, ddm_rt_model_options_set_backend);
    named(s.onnxruntime, ddm_rt_model_options_set_onnxruntime);
    if (s.threads) check(ddm_rt_model_options_set_threads(options.get(), *s.threads));
    ddm_rt_model* opened = nullptr;
    check(ddm_rt_model_open(s.bundle.data(), size_of(s.bundle), options.get(), &opened));
    const Owned<ddm_rt_model> model{opened, ddm_rt_model_close};
    const auto own = created(ddm_rt_session_options_create, ddm_rt_session_options_destroy);
    if (s.ledger) check(ddm_rt_session_options_set_ledger(own.get(), s.ledger->data(), size_of(*s.ledger), s.fsync));
    check(ddm_rt_session_options_set_log(own.get(), DDM_RT_LOG_WARNING, warn, nullptr));
    ddm_rt_session* begun = nullptr;
    check(ddm_rt_session_open(model.get(), own.get(), &begun));
    const Owned<ddm_rt_session> session{begun, ddm_rt_session_close};

#ifdef __GLIBC__
    malloc_trim(0);  // what opening took and gave back
#endif
    if (!s.from) fill(request.get(), s);  // a replay takes none of it
    if (isatty(STDERR_FILENO)) check(ddm_rt_request_set_on_step(request.get(), show_step, nullptr));
    check(ddm_rt_request_set_deliver(request.get(), Delivery::deliver, &delivery));
    ddm_rt_images* made = nullptr;
    ddm_rt_error* error = nullptr;
    if (s.from) {
        const std::string manifest = content(*s.from, "a manifest.json");
        error = ddm_rt_replay(session.get(), manifest.data(), size_of(manifest), s.from->data(), size_of(*s.from),
                              s.index.value_or(DDM_RT_ALL), request.get(), &made);
    } else {
        error = ddm_rt_generate(session.get(), request.get(), &made);
    }
    const Owned<ddm_rt_images> images{made, ddm_rt_images_destroy};
    std::error_code ignored;
    if (error && delivery.written) fs::remove_all(delivery.out, ignored);
    if (delivery.failure) ddm_rt_error_destroy(error), std::rethrow_exception(delivery.failure);
    check(error);
    if (s.scope && !s.ledger) std::printf("scope: its counts end with this command; --ledger keeps them\n");
    std::printf("%lld images: %s\nlook at: %s\n", static_cast<long long>(ddm_rt_images_count(images.get())),
                delivery.out.c_str(), (delivery.out / "contact_sheet.png").c_str());
}

}  // namespace cli
