#include "prepare.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "assignment.h"
#include "cache.h"
#include "calibration.h"
#include "factors.h"
#include "leave_alone.h"
#include "text.h"
#include "unicode.h"

namespace ddm {
namespace {

constexpr int64_t MOST_IMAGES = int64_t{1} << 32;
constexpr int64_t MOST_VALUES = int64_t{1} << 31;  // of one image's latents
constexpr int64_t MOST_PIXELS = int64_t{1} << 30;  // of one image: bytes of MOST_IMAGES such ones still have a number

// The text of a request, checked.
struct Prompting {
    std::vector<std::string> prompts;  // none for bundles that take none
    std::vector<std::string> words;    // prompts that name one are left alone
    std::vector<int64_t> left_alone;   // numbers of the images whose prompt names one
};

void check_text(const char* field, const std::string& text) {
    if (invalid_utf8(text) == text.npos) return;
    throw about(field, concat(" is ", repr(text), "; expected Unicode text (surrogates not allowed)"));
}

void check_no_prompt(const RuntimeConfig& config, const Wanted& wanted) {
    const std::string bundle = concat("bundle ", repr(config.name), " is prompt-free");
    for (const std::string& prompt : wanted.prompt.value_or(std::vector<std::string>())) {
        if (!prompt.empty()) throw about("prompt", concat(" is given; ", bundle, " and takes none"));
    }
    if (wanted.negative_prompt && !wanted.negative_prompt->empty()) {
        throw about("negative_prompt", concat(" is given; ", bundle, " and takes none"));
    }
    if (wanted.guidance_scale) {
        throw about("guidance_scale",
                    concat(" is ", repr(*wanted.guidance_scale), "; ", bundle, ": use indicator_guidance_scale"));
    }
    if (wanted.leave_alone) throw about("leave_alone", concat(" is given; ", bundle, " and takes no prompts"));
}

Prompting prompting(const Bundle& bundle, const Wanted& wanted, Balance balance) {
    const RuntimeConfig& config = bundle.config;
    if (config.prompt_free) {
        check_no_prompt(config, wanted);
        return {};
    }
    Prompting out;
    if (wanted.prompt) out.prompts = *wanted.prompt;
    if (out.prompts.empty()) out.prompts = {""};
    for (const std::string& text : out.prompts) check_text("prompt", text);
    if (wanted.negative_prompt) check_text("negative_prompt", *wanted.negative_prompt);
    if (wanted.negative_prompt && !wanted.negative_prompt->empty() && !config.takes_negative_prompt) {
        throw about("negative_prompt",
                    concat(" is given; bundle ", repr(config.name), " is a student: it has no branch for one"));
    }
    if (wanted.leave_alone) {
        out.words = checked_words(*wanted.leave_alone);
        if (balance == Balance::on || wanted.codes) {
            throw about("leave_alone", concat(" is given, but ", wanted.codes ? "codes are given" : "balance is \"on\"",
                                              "; it goes with balance \"auto\""));
        }
    }
    std::vector<bool> named;
    for (const std::string& text : out.prompts) named.push_back(names_one(text, out.words));
    for (int64_t i = 0; i < wanted.n; ++i) {
        if (named[static_cast<size_t>(i) % named.size()]) out.left_alone.push_back(i);
    }
    const std::set<std::string> different(out.prompts.begin(), out.prompts.end());
    if (different.size() == 1) out.prompts.resize(1);
    return out;
}

double scale(const char* field, std::optional<double> value, double preset) {
    if (!value) return preset;
    if (std::isfinite(*value) && *value >= 0) return *value;
    throw about(field, concat(" is ", repr(*value), "; expected a finite number, not negative"));
}

// The scale on the code; where neither request nor bundle has one, the text's: joint guidance.
double indicator_guidance(const RuntimeConfig& config, std::optional<double> value, std::optional<double> text_scale) {
    const auto preset =
        config.sampling.indicator_guidance_scale ? config.sampling.indicator_guidance_scale : text_scale;
    if (!preset) {
        throw Error(
            Status::bundle,
            concat("bundle ", repr(config.name), ": field sampling.indicator_guidance_scale: expected a number"),
            "sampling.indicator_guidance_scale");
    }
    return scale("indicator_guidance_scale", value, *preset);
}

constexpr double kLeastNumber = 1e-6,
                 kMostNumber = 1e6;  // beyond them, float32 has no room for what is computed with a number

template <typename Numbers>
[[noreturn]] void refuse(const char* field, const Numbers& found, const char* expected) {
    throw about(field, concat(" is ", repr(found), "; expected ", expected));
}

// Start and stop of guidance; `guided_steps` says what they may be.
std::optional<Pair> interval(const std::optional<Pair>& wanted) {
    if (wanted && (!std::isfinite(wanted->first) || !std::isfinite(wanted->second))) {
        refuse("guidance_interval", *wanted, "2 finite numbers: start, stop");
    }
    return wanted;
}

// Norm and η of adaptive projected guidance.
std::optional<Pair> projection(const std::optional<Pair>& wanted) {
    if (!wanted) return wanted;
    const auto [norm, eta] = *wanted;
    if (!std::isfinite(norm) || !std::isfinite(eta)) refuse("apg", *wanted, "2 finite numbers: norm, eta");
    if (!(kLeastNumber <= norm && norm <= kMostNumber && 0 <= eta && eta <= kMostNumber)) {
        refuse("apg", *wanted, "a norm of 1e-06 to 1e+06, and an eta of 0 to 1e+06");
    }
    return wanted;
}

// Scale, end and begin of CADS.
std::optional<Triple> token_noise(const RuntimeConfig& config, const std::optional<Triple>& wanted) {
    if (!wanted) return wanted;
    const auto [scale, end, begin] = *wanted;
    if (!std::isfinite(scale) || !std::isfinite(end) || !std::isfinite(begin)) {
        refuse("cads", *wanted, "3 finite numbers: scale, end, begin");
    }
    if (config.prompt_free) {
        throw about("cads", concat(" is given; bundle ", repr(config.name),
                                   " is prompt-free: there are no tokens of a prompt"));
    }
    if (!(kLeastNumber <= scale && scale <= kMostNumber && 0 <= end && end < begin && begin <= 1)) {
        refuse("cads", *wanted, "a scale of 1e-06 to 1e+06, and an end below a begin, both within 0 and 1");
    }
    return wanted;
}

// Height or width in pixels.
int64_t side(const RuntimeConfig& config, const std::string& field, std::optional<int64_t> pixels) {
    if (!pixels) return config.image_size;
    if (*pixels >= config.size_multiple && *pixels % config.size_multiple == 0) return *pixels;
    throw about(field, concat(" is ", *pixels, "; expected a multiple of ", config.size_multiple));
}

std::array<int64_t, 3> latent_shape(const RuntimeConfig& config, int64_t height, int64_t width) {
    __extension__ typedef __int128 Wide;
    const auto [channels, rows, columns] = config.latent_shape;
    if (Wide{height} * width > MOST_PIXELS) {
        throw about("height", concat(" is ", height, ", width is ", width, "; more than ", MOST_PIXELS, " pixels"));
    }
    const Wide down = Wide{height} * rows / config.image_size, across = Wide{width} * columns / config.image_size;
    if (down > MOST_VALUES || across > MOST_VALUES || channels > MOST_VALUES ||
        down * across * channels > MOST_VALUES) {
        throw about("height", concat(" is ", height, ", width is ", width, "; latents of this size have more than ",
                                     MOST_VALUES, " values"));
    }
    return {channels, static_cast<int64_t>(down), static_cast<int64_t>(across)};
}

// The prompt of each image of a manifest. Throws Error where request and bundle don't go together.
std::vector<Job> jobs_of(const Bundle& bundle, const Manifest& manifest) {
    const bool prompt_free = bundle.config.prompt_free;
    const Request& request = manifest.request;
    const auto check = [&](const char* field, bool missing) {
        if (missing == prompt_free) return;
        throw Error(Status::input,
                    concat("manifest: field request.", field, ": expected ",
                           prompt_free ? "none: the bundle is prompt-free" : "one: the bundle takes prompts"),
                    concat("request.", field));
    };
    check("prompt", request.one_prompt && request.prompts.empty());
    check("guidance_scale", !request.guidance_scale);
    std::vector<Job> jobs;
    for (size_t i = 0; i < manifest.images.size(); ++i) {
        const ImageRecord& image = manifest.images[i];
        Job job{image.seed, image.prompt, image.code};
        if (!job.text && request.one_prompt && !request.prompts.empty()) job.text = request.prompts[0];
        if (job.text.has_value() == prompt_free) {
            const std::string field = concat("images.", i, ".prompt");
            throw Error(Status::input, concat("manifest: field ", field, ": expected ", prompt_free ? "none" : "text"),
                        field);
        }
        jobs.push_back(std::move(job));
    }
    return jobs;
}

// The coefficients of each step that calls the model.
StepTable table_of(const Bundle& bundle, const Manifest& manifest) {
    const Request& asked = manifest.request;
    StepTable table = step_table(bundle.schedule, manifest.sampler, manifest.num_steps, asked.eta, asked.clip,
                                 asked.guidance_interval, asked.noise_times());
    return asked.cache ? asked.cache->of(table) : table;
}

Prepared prepared(const Bundle& bundle, Manifest manifest, StepTable table, std::optional<Lease> lease) {
    const RuntimeConfig& config = bundle.config;
    std::optional<std::string> null_text = manifest.request.negative_prompt;
    if (!null_text && !config.prompt_free && !config.empty_negative_is_zero) null_text = "";
    std::vector<Job> jobs = jobs_of(bundle, manifest);
    const auto shape = latent_shape(config, manifest.request.height, manifest.request.width);
    return {std::move(manifest), std::move(table), shape, std::move(jobs), std::move(null_text), std::move(lease)};
}

Weights weights_for(const Bundle& bundle, const Tree& tree, const Wanted& wanted, const Manifest& manifest,
                    const Warn& warn) {
    if (const auto named = by_names(bundle, tree, wanted.target)) return *named;
    const Weighted found = [&] {
        try {
            return resolve(bundle, wanted.target, manifest, wanted.allow_stale, warn);
        } catch (const Error& error) {
            throw Error(error.status, error.what() + other_names(bundle, wanted.target), error.field);
        }
    }();
    return by_codes(tree, found.target, found.code_weights, found.calibration_id);
}

std::string versions_text(const MadeBy& made_by) {
    std::vector<std::string> parts;
    for (const auto& [name, version] : made_by.versions) parts.push_back(concat(repr(name), ": ", repr(version)));
    return "{" + join(", ", parts) + "}";
}

bool same_versions(MadeBy a, MadeBy b) {
    std::sort(a.versions.begin(), a.versions.end());
    std::sort(b.versions.begin(), b.versions.end());
    return a.versions == b.versions;
}

void tell_differences(const MadeBy& was, const MadeBy& now, const Warn& warn) {
    const auto tell = [&](const char* name, const std::string& before, const std::string& after) {
        if (warn) warn(concat("replay: ", name, " was ", before, ", is ", after, ": bytes may differ"));
    };
    if (was.backend != now.backend) tell("backend", was.backend, now.backend);
    if (was.precision != now.precision) tell("precision", was.precision, now.precision);
    if (was.threads != now.threads) tell("threads", std::to_string(was.threads), std::to_string(now.threads));
    if (!same_versions(was, now)) tell("versions", versions_text(was), versions_text(now));
}

}  // namespace

Prepared prepare(const Bundle& bundle, const Tree& tree, const Wanted& wanted, const MadeBy& made_by, Ledger& ledger,
                 const Warn& warn) {
    const RuntimeConfig& config = bundle.config;
    if (wanted.n < 1) throw about("n", concat(" is ", wanted.n, "; expected at least 1"));
    if (wanted.n > MOST_IMAGES) throw about("n", concat(" is ", wanted.n, "; expected at most 2**32"));
    const Balance balance = balance_named(wanted.balance);
    const SamplerName sampler = wanted.sampler ? sampler_named(*wanted.sampler) : config.sampling.sampler;
    if (wanted.provenance_code && !wanted.provenance) {
        throw about("provenance_code", " is given, but provenance is off; the code is a part of it");
    }
    const Prompting text = prompting(bundle, wanted, balance);
    const auto guidance =
        config.prompt_free
            ? std::nullopt
            : std::optional(scale("guidance_scale", wanted.guidance_scale, config.sampling.guidance_scale));
    const auto prompts = static_cast<int64_t>(std::max<size_t>(text.prompts.size(), 1));
    const CodePlan plan = plan_codes(bundle, wanted, balance, text.left_alone, prompts);
    Request request{
        .prompts = text.prompts,
        .negative_prompt = config.prompt_free ? std::nullopt : wanted.negative_prompt,
        .n = wanted.n,
        .seed = wanted.seed,
        .codes = wanted.codes ? plan.codes : std::nullopt,
        .balance = balance,
        .leave_alone = wanted.leave_alone ? std::optional(text.words) : std::nullopt,
        .scope = wanted.scope,
        .shuffle = wanted.shuffle,
        .height = side(config, "height", wanted.height),
        .width = side(config, "width", wanted.width),
        .guidance_scale = guidance,
        .indicator_guidance_scale = indicator_guidance(config, wanted.indicator_guidance_scale, guidance),
        .indicator_scale = config.sampling.indicator_scale,
        .eta = sampler == SamplerName::ddim ? config.sampling.eta : 0,
        .clip = config.sampling.clip,
        .guidance_interval = interval(wanted.guidance_interval),
        .apg = projection(wanted.apg),
        .cads = token_noise(config, wanted.cads),
        .cache = std::nullopt,
        .provenance = wanted.provenance,
        .provenance_code = wanted.provenance_code,
        .one_prompt = text.prompts.size() < 2,
    };
    const int64_t num_steps = wanted.num_steps.value_or(config.sampling.num_steps);
    Manifest manifest{
        bundle.bundle_id, std::nullopt, std::move(request), std::nullopt, sampler, num_steps, made_by, {}, {}};
    manifest.request.cache = find_cache(bundle, wanted.cache, manifest, warn);
    StepTable table = table_of(bundle, manifest);
    std::optional<Weights> weights;
    if (!plan.codes) weights = weights_for(bundle, tree, wanted, manifest, warn);
    latent_shape(config, manifest.request.height, manifest.request.width);
    Assigned assigned = draw_codes(plan, weights, bundle, wanted, ledger);
    if (weights) {
        manifest.calibration_id = weights->calibration_id;
        // Over factors there is one spelling, which the ledger has too.
        manifest.target = names_factors(wanted.target, bundle.codes.factors) ? weights->target : wanted.target;
    }
    manifest.images = image_records(manifest.request, bundle.codes, assigned.codes, assigned.positions);
    return prepared(bundle, std::move(manifest), std::move(table), std::move(assigned.lease));
}

Prepared replay(const Bundle& bundle, Manifest manifest, std::optional<int64_t> index, const MadeBy& made_by,
                const Warn& warn) {
    if (index) {
        if (*index < 0 || *index >= static_cast<int64_t>(manifest.images.size())) {
            throw about("index", concat(" is ", *index, "; the manifest has images 0 to ", manifest.images.size() - 1));
        }
        manifest.images = {manifest.images[static_cast<size_t>(*index)]};
    }
    tell_differences(manifest.made_by, made_by, warn);
    if (manifest.bucket && warn) {
        warn(concat("the manifest's bucket is ", *manifest.bucket,
                    "; batch sizes here are those that go with the largest: "
                    "bytes may differ"));
    }
    manifest.made_by = made_by;
    if (!bundle.is_of(manifest.bundle_id)) {
        throw about("manifest", concat(": bundle_id is ", manifest.bundle_id.substr(0, 12), "…; this bundle is ",
                                       bundle.bundle_id.substr(0, 12), "…"));
    }
    manifest.bundle_id = bundle.bundle_id;
    std::vector<int64_t> codes;
    for (const ImageRecord& image : manifest.images) codes.push_back(image.code);
    check_codes(bundle, codes, "manifest: field images");
    side(bundle.config, "manifest: field request.height", manifest.request.height);
    side(bundle.config, "manifest: field request.width", manifest.request.width);
    projection(manifest.request.apg);
    token_noise(bundle.config, manifest.request.cads);
    StepTable table = table_of(bundle, manifest);
    return prepared(bundle, std::move(manifest), std::move(table), std::nullopt);
}

}  // namespace ddm
