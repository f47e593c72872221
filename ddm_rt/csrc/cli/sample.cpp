#include "sample.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <fstream>
#include <iterator>
#include <limits>
#include <memory>
#include <tuple>
#include <utility>

#include "../text.h"
#include "arguments.h"
#include "ddm_rt.h"
#include "output.h"

namespace cli {
namespace {

namespace fs = std::filesystem;
using Text = std::optional<std::string>;

struct Given {
    Text guidance_interval, apg, cads;
    Text bundle, out, seed, negative_prompt, target, balance, leave_alone, scope, ledger, sampler, backend, from,
        onnxruntime;
    std::optional<int64_t> n, steps, height, width, threads, index;
    std::optional<double> guidance_scale, indicator_guidance_scale;
    std::vector<std::string> prompt;
    bool allow_stale = false, fsync = false, shuffle = false, no_provenance = false, provenance_code = false, help = false;
};

std::vector<Option> options_of(Given& g) {
    return {
        {"--out", &g.out, "Directory to write; must not exist, or be empty."},
        {"-n", &g.n, "Number of images; by default 16."},
        {"--seed", &g.seed, "Image i has the seed derive(seed, i); by default 0."},
        {"--prompt", &g.prompt, "Text; given several times, the images take them in turn."},
        {"--negative-prompt", &g.negative_prompt, "Text to stay away from."},
        {"--guidance-scale", &g.guidance_scale, "Guidance on the prompt."},
        {"--indicator-guidance-scale", &g.indicator_guidance_scale, "Guidance on the code."},
        {"--guidance-interval", &g.guidance_interval, "A,B: guide the steps from A to B alone, fractions of all."},
        {"--apg", &g.apg, "NORM[,ETA]: projected guidance; the largest norm, and what is kept along the output (0)."},
        {"--cads", &g.cads, "SCALE[,END,BEGIN]: noise on the prompt's tokens, so that images of one prompt differ more."},
        {"--target", &g.target, "uniform, shares of top codes: code:0=.3,code:1=.7, or of groups: a=.5,b=.5."},
        {"--allow-stale", &g.allow_stale, "Use a calibration that was made for other settings."},
        {"--balance", &g.balance, "on: codes by quota. off: the null code. auto: on where there are codes."},
        {"--leave-alone", &g.leave_alone, "woman,man: such prompts get the null code. Or a .json: scope -> words."},
        {"--scope", &g.scope, "Go on with the codes where the last request of this scope stopped."},
        {"--ledger", &g.ledger, "File that keeps the counts of scopes; made where there is none."},
        {"--fsync", &g.fsync, "The ledger also survives a power loss; slower."},
        {"--shuffle", &g.shuffle, "Permute the codes by the seed."},
        {"--no-provenance", &g.no_provenance, "Files don't say that a model made them, which one, and the seed."},
        {"--provenance-code", &g.provenance_code, "Files say the code, too."},
        {"--steps", &g.steps, "Sampling steps."},
        {"--sampler", &g.sampler, "One of: ddpm, ddim, euler, dpm++2m, lcm."},
        {"--height", &g.height, "Pixels."},
        {"--width", &g.width, "Pixels."},
        {"--backend", &g.backend, "auto, or one of `ddm-cli backends`."},
        {"--threads", &g.threads, "CPU threads; by default all."},
        {"--from", &g.from, "Replay this manifest.json."},
        {"--index", &g.index, "With --from: this image alone."},
        {"--onnxruntime", &g.onnxruntime, "ONNX Runtime's shared library."},
        {"--help", &g.help, "Show this and exit."},
        {"-h", &g.help, "The same."},
    };
}

void check(ddm_rt_status status) {
    if (status != DDM_RT_OK) throw Refused(ddm_rt_last_error());
}

template <typename T>
using Owned = std::unique_ptr<T, void (*)(T*)>;

template <typename T>
Owned<T> created(ddm_rt_status (*create)(T**), void (*destroy)(T*)) {
    T* handle = nullptr;
    check(create(&handle));
    return {handle, destroy};
}

// An option that is several numbers with commas between them: an example, and the defaults of the last ones.
struct Numbers {
    const char *option, *example, *shortest;
    std::vector<double> defaults;

    std::vector<double> of(const std::string& text) const {
        const size_t expected = count(example);
        std::vector<double> found;
        // parse_float takes what Python's float() does; here it is ASCII, and no underscores.
        if (std::any_of(text.begin(), text.end(), [](unsigned char byte) { return byte > 127 || byte == '_'; })) refuse(text);
        for (size_t at = 0; at <= text.size();) {
            const size_t comma = std::min(text.find(',', at), text.size());
            const auto number = ddm::parse_float(text.substr(at, comma - at));
            if (!number) refuse(text);
            found.push_back(*number);
            at = comma + 1;
        }
        if (found.size() + defaults.size() == expected) found.insert(found.end(), defaults.begin(), defaults.end());
        if (found.size() != expected) refuse(text);
        return found;
    }

private:
    static size_t count(const std::string& text) { return 1 + static_cast<size_t>(std::count(text.begin(), text.end(), ',')); }

    [[noreturn]] void refuse(const std::string& text) const {
        const std::string also = defaults.empty() ? "" : ddm::concat(", or ", shortest);
        throw Refused(ddm::concat(option, " ", ddm::repr(text), ": expected numbers with commas between them, for example ",
                                  example, also));
    }
};

const Numbers kInterval{"--guidance-interval", ".2,.8", "", {}};
const Numbers kApg{"--apg", "15,.5", "15", {0.0}};
const Numbers kCads{"--cads", ".25,.6,.9", ".25", {0.6, 0.9}};

// Whether int() would read it.
bool is_whole(const std::string& text) {
    const size_t sign = text.starts_with('+') || text.starts_with('-');
    return text.size() > sign && text.find_first_not_of("0123456789", sign) == std::string::npos;
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

// What can be said without a bundle, in the order of `ddm-rt sample`.
void check_options(const Given& g) {
    constexpr int64_t kMostThreads = std::numeric_limits<int32_t>::max();
    if (g.seed && !is_whole(*g.seed)) {
        throw Refused("Invalid value for '--seed': " + ddm::repr(*g.seed) + " is not a valid integer.");
    }
    if (g.threads && (*g.threads < 1 || *g.threads > kMostThreads)) {
        const std::string range = *g.threads < 1 ? "x>=1" : ddm::concat("x<=", kMostThreads);
        throw Refused(ddm::concat("Invalid value for '--threads': ", *g.threads, " is not in the range ", range, "."));
    }
    if (g.guidance_interval) kInterval.of(*g.guidance_interval);
    if (g.apg) kApg.of(*g.apg);
    if (g.cads) kCads.of(*g.cads);
    if (!g.bundle) throw Refused("bundle: name a bundle directory");
    if (g.index && !g.from) throw Refused("--index: names an image of a manifest; give that with --from");
    if (g.from && (g.scope || g.ledger)) throw Refused("--from: a replay draws nothing; leave out --scope and --ledger");
    // In the order of Python's `Request`, and refused as there: where the value is not the default.
    const auto other = [](const auto& given, const auto& value) { return given.has_value() && *given != value; };
    const std::tuple<const char*, bool, const char*> asked[] = {
        {"--prompt", !g.prompt.empty(), "prompts"},
        {"--negative-prompt", g.negative_prompt.has_value(), "prompts"},
        {"-n", other(g.n, 16), "settings"},
        {"--seed", other(g.seed, "0"), "settings"},
        {"--steps", g.steps.has_value(), "settings"},
        {"--sampler", g.sampler.has_value(), "settings"},
        {"--guidance-scale", g.guidance_scale.has_value(), "settings"},
        {"--indicator-guidance-scale", g.indicator_guidance_scale.has_value(), "settings"},
        {"--guidance-interval", g.guidance_interval.has_value(), "settings"},
        {"--apg", g.apg.has_value(), "settings"},
        {"--cads", g.cads.has_value(), "settings"},
        {"--height", g.height.has_value(), "settings"},
        {"--width", g.width.has_value(), "settings"},
        {"--target", other(g.target, "uniform"), "settings"},
        {"--balance", other(g.balance, "auto"), "settings"},
        {"--shuffle", g.shuffle, "settings"},
        {"--allow-stale", g.allow_stale, "settings"},
        {"--leave-alone", g.leave_alone.has_value(), "prompts"},
        {"--no-provenance", g.no_provenance, "settings"},
        {"--provenance-code", g.provenance_code, "settings"},
    };
    for (const auto& [name, there, what] : asked) {
        if (g.from && there) {
            throw Refused(ddm::concat("--from: a replay has the manifest's own ", what, "; leave out ", name));
        }
    }
    const int64_t n = g.n.value_or(16);
    if (static_cast<int64_t>(g.prompt.size()) > n && !g.prompt.empty()) {
        throw Refused(ddm::concat("--prompt: ", g.prompt.size(), " texts for ", n, " image", n == 1 ? "" : "s",
                                  "; expected -n to be no fewer"));
    }
    if (g.ledger && !g.scope) throw Refused("--ledger: keeps the counts of scopes; name one with --scope");
    if (g.fsync && !g.ledger) throw Refused("--fsync: is about the file of --ledger, which is not given");
}

uint64_t seed_of(const Text& text) {
    if (!text) return 0;
    const std::string digits = text->starts_with('+') ? text->substr(1) : *text;
    const bool negative = digits.starts_with('-');
    errno = 0;
    const uint64_t value = std::strtoull(digits.c_str(), nullptr, 10);
    if (errno == ERANGE || (negative && value != 0)) {
        throw Refused("seed is " + digits + "; expected 0 to 2**64 - 1");
    }
    return value;
}

void fill_leave_alone(ddm_rt_request* request, const std::string& given) {
    if (given.ends_with(".json")) {
        const std::string words = content(given, "words in JSON");
        const auto size = static_cast<int64_t>(words.size());
        check(ddm_rt_request_set_leave_alone_json(request, words.data(), size, given.c_str()));
        return;
    }
    for (const std::string& word : ddm::split(given, ',')) {
        check(ddm_rt_request_add_leave_alone(request, std::string(ddm::strip(word)).c_str()));
    }
}

void fill(ddm_rt_request* request, const Given& g) {
    check(ddm_rt_request_set_n(request, g.n.value_or(16)));
    check(ddm_rt_request_set_seed(request, seed_of(g.seed)));
    for (const std::string& prompt : g.prompt) check(ddm_rt_request_add_prompt(request, prompt.c_str()));
    const auto text = [&](const Text& value, ddm_rt_status (*set)(ddm_rt_request*, const char*)) {
        if (value) check(set(request, value->c_str()));
    };
    text(g.negative_prompt, ddm_rt_request_set_negative_prompt);
    text(g.target, ddm_rt_request_set_target);
    text(g.balance, ddm_rt_request_set_balance);
    text(g.scope, ddm_rt_request_set_scope);
    text(g.sampler, ddm_rt_request_set_sampler);
    if (g.guidance_scale) check(ddm_rt_request_set_guidance_scale(request, *g.guidance_scale));
    if (g.indicator_guidance_scale) {
        check(ddm_rt_request_set_indicator_guidance_scale(request, *g.indicator_guidance_scale));
    }
    if (g.guidance_interval) {
        const auto interval = kInterval.of(*g.guidance_interval);
        check(ddm_rt_request_set_guidance_interval(request, interval[0], interval[1]));
    }
    if (g.apg) {
        const auto apg = kApg.of(*g.apg);
        check(ddm_rt_request_set_apg(request, apg[0], apg[1]));
    }
    if (g.cads) {
        const auto cads = kCads.of(*g.cads);
        check(ddm_rt_request_set_cads(request, cads[0], cads[1], cads[2]));
    }
    if (g.steps) check(ddm_rt_request_set_num_steps(request, *g.steps));
    if (g.height) check(ddm_rt_request_set_height(request, *g.height));
    if (g.width) check(ddm_rt_request_set_width(request, *g.width));
    check(ddm_rt_request_set_allow_stale(request, g.allow_stale));
    check(ddm_rt_request_set_shuffle(request, g.shuffle));
    check(ddm_rt_request_set_provenance(request, !g.no_provenance));
    check(ddm_rt_request_set_provenance_code(request, g.provenance_code));
}

void warn(void*, const char* message) { std::fprintf(stderr, "%s\n", message); }

void show_step(void*, int64_t done, int64_t total) {
    std::fprintf(stderr, "\rsampling %lld/%lld%s", static_cast<long long>(done), static_cast<long long>(total),
                 done == total ? "\n" : "");
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

void sample(const std::vector<std::string>& arguments) {
    Given g;
    const std::vector<Option> known = options_of(g);
    parse(arguments, known, g.bundle);
    if (g.help) {
        std::printf("Usage: ddm-cli sample BUNDLE --out DIR [OPTIONS]\n\n%s", help(known).c_str());
        return;
    }
    check_options(g);
    const auto request = created(ddm_rt_request_create, ddm_rt_request_destroy);
    if (g.leave_alone) fill_leave_alone(request.get(), *g.leave_alone);
    if (!g.out) throw Refused("--out: name a directory for the images");
    Delivery delivery{fs::path(ddm::clean_path(*g.out)), false, nullptr};
    check_free(delivery.out);

    const auto options = created(ddm_rt_options_create, ddm_rt_options_destroy);
    if (g.backend) check(ddm_rt_options_set_backend(options.get(), g.backend->c_str()));
    if (g.threads) check(ddm_rt_options_set_threads(options.get(), static_cast<int32_t>(*g.threads)));
    if (g.ledger) check(ddm_rt_options_set_ledger(options.get(), g.ledger->c_str(), g.fsync));
    if (g.onnxruntime) check(ddm_rt_options_set_onnxruntime(options.get(), g.onnxruntime->c_str()));
    check(ddm_rt_options_set_warn(options.get(), warn, nullptr));
    ddm_rt_pipeline* opened = nullptr;
    check(ddm_rt_pipeline_open(g.bundle->c_str(), options.get(), &opened));
    const Owned<ddm_rt_pipeline> pipeline{opened, ddm_rt_pipeline_close};

    if (!g.from) fill(request.get(), g);  // a replay takes none of it
    if (isatty(STDERR_FILENO)) check(ddm_rt_request_set_on_step(request.get(), show_step, nullptr));
    check(ddm_rt_request_set_deliver(request.get(), Delivery::deliver, &delivery));
    ddm_rt_images* made = nullptr;
    ddm_rt_status status = DDM_RT_OK;
    if (g.from) {
        const std::string manifest = content(*g.from, "a manifest.json");
        status = ddm_rt_replay(pipeline.get(), manifest.data(), static_cast<int64_t>(manifest.size()),
                               g.from->c_str(), g.index.value_or(DDM_RT_ALL), request.get(), &made);
    } else {
        status = ddm_rt_generate(pipeline.get(), request.get(), &made);
    }
    const Owned<ddm_rt_images> images{made, ddm_rt_images_destroy};
    if (delivery.failure) std::rethrow_exception(delivery.failure);
    if (status != DDM_RT_OK) {
        const std::string message = ddm_rt_last_error();
        std::error_code ignored;
        if (delivery.written) fs::remove_all(delivery.out, ignored);
        throw Refused(message);
    }
    if (g.scope && !g.ledger) std::printf("scope: its counts end with this command; --ledger keeps them\n");
    std::printf("%lld images: %s\nlook at: %s\n", static_cast<long long>(ddm_rt_images_count(images.get())),
                delivery.out.c_str(), (delivery.out / "contact_sheet.png").c_str());
}

}  // namespace cli
