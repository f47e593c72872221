// ddm-cli: the library from a shell. A user's mistake is one line on stderr and exit code 2.
#include <CLI/CLI.hpp>

#include <malloc.h>

#include <cstdio>
#include <exception>
#include <limits>
#include <memory>
#include <string>

#include "ddm_rt.h"
#include "output.h"
#include "sample.h"

namespace {

template <typename Whole>
constexpr Whole kMost = std::numeric_limits<Whole>::max();

constexpr const char* kExamples = R"(Examples:
  ddm-cli sample bundles/digits -n 64 --seed 0 --out out/
  ddm-cli sample bundles/digits -n 64 --target code:0=.3,code:1=.7 --out out30/
  ddm-cli sample bundles/digits -n 10 --scope campaign --ledger campaign.ledger --seed 7 --out out7/
  ddm-cli sample bundles/digits -n 64 --guidance-interval .2,.8 --apg 15 --out projected/
  ddm-cli sample bundles/digits --from out/manifest.json --index 5 --out again/)";

const CLI::Validator kNumber([](std::string& text) { return text.empty() ? "expected a number" : ""; }, "");

// An option's help without what it needs and excludes: the words say that.
struct Plain : CLI::Formatter {
    std::string make_option_opts(const CLI::Option* option) const override {
        const std::string& form = option->get_option_text();
        return option->get_type_size() == 0 ? "" : " " + (form.empty() ? option->get_type_name() : form);
    }
};

// An option whose value may be empty text, and isn't an empty number: to CLI11 either is as good as none.
template <typename Value>
CLI::Option* add_option(CLI::App& app, const char* name, Value& value, const char* help) {
    return app.add_option(name, value, help)->check(kNumber);
}

template <typename Value>
CLI::Option* add_option(CLI::App& app, const char* name, std::optional<Value>& value, const char* help) {
    CLI::Option* option = app.add_option_function<Value>(name, [&](const Value& given) { value = given; }, help);
    return std::is_same_v<Value, std::string> ? option : option->check(kNumber);
}

void add_sample(CLI::App& app, cli::Sample& s) {
    app.footer(kExamples);
    app.add_option("bundle", s.bundle, "Directory of a bundle.")->required();
    app.add_option("--out", s.out, "Directory to write: a new one, or an empty one. Required.")
        ->required()
        ->option_text("DIR");
    add_option(app, "--backend", s.backend, "auto, or one of `ddm-cli backends`.");
    add_option(app, "--threads", s.threads, "CPU threads; by default all.")
        ->check(CLI::Range(1, kMost<int32_t>))
        ->option_text("N");
    add_option(app, "--onnxruntime", s.onnxruntime, "ONNX Runtime's shared library.");
    auto* from = add_option(app, "--from", s.from, "Replay this manifest.json, which has a request of its own.");
    add_option(app, "--index", s.index, "With --from: this image alone.")->needs(from);

    // A replay draws nothing, and has the manifest's own settings.
    app.option_defaults()->group("The request");
    const auto add = [&](const char* name, auto& value, const char* help) {
        return add_option(app, name, value, help)->excludes(from);
    };
    const auto add_list = [&](const char* name, auto& values, const char* form, const char* help) {
        return add(name, values, help)->delimiter(',')->allow_extra_args(false)->option_text(form);
    };
    const auto add_flag = [&](const char* name, bool& value, const char* help) {
        return app.add_flag(name, value, help)->excludes(from);
    };
    add("-n", s.n, "Number of images; by default 16.")->check(CLI::Range(int64_t{1}, kMost<int64_t>))->option_text("N");
    add("--seed", s.seed, "Image i has the seed derive(seed, i); by default 0.");
    app.add_option("--prompt", s.prompts, "Text; given several times, the images take them in turn.")
        ->allow_extra_args(false)
        ->excludes(from);
    add("--negative-prompt", s.negative_prompt, "Text to stay away from.");
    add("--guidance-scale", s.guidance_scale, "Guidance on the prompt.");
    add("--indicator-guidance-scale", s.indicator_guidance_scale, "Guidance on the code.");
    add_list("--guidance-interval", s.guidance_interval, "A,B", "Guide the steps from A to B alone, fractions of all.");
    add_list("--apg", s.apg, "NORM[,ETA]",
             "Projected guidance: the largest norm, and what is kept along the output (0).");
    add_list("--cads", s.cads, "SCALE[,END,BEGIN]",
             "Noise on the prompt's tokens, so that images of one prompt differ more.");
    add("--cache", s.cache, "Steps that call the model, by a cache of the bundle: a number, auto or off.")
        ->option_text("N|auto|off");
    add("--steps", s.steps, "Sampling steps.");
    add("--sampler", s.sampler, "One of: ddpm, ddim, euler, dpm++2m, lcm.");
    add("--height", s.height, "Pixels.");
    add("--width", s.width, "Pixels.");
    add("--target", s.target, "uniform, shares of top codes: code:0=.3,code:1=.7, or of groups: a=.5,b=.5.");
    add_flag("--allow-stale", s.allow_stale, "Use a calibration that was made for other settings.");
    add("--balance", s.balance, "on: codes by quota. off: the null code. auto: on where there are codes.");
    app.add_option("--leave-alone", s.leave_alone,
                   "woman,man: such prompts get the null code. Or a .json: scope -> words.")
        ->delimiter(',')
        ->allow_extra_args(false)
        ->option_text("WORDS|FILE")
        ->excludes(from);
    auto* scope = add("--scope", s.scope, "Go on with the codes where the last request of this scope stopped.");
    auto* ledger = add("--ledger", s.ledger, "File that keeps the counts of scopes; made where there is none.");
    add_flag("--fsync", s.fsync, "The ledger also survives a power loss; slower.")->needs(ledger->needs(scope));
    add_flag("--shuffle", s.shuffle, "Permute the codes by the seed.");
    add_flag("--no-provenance", s.no_provenance, "Files don't say that a model made them, which one, and the seed.");
    add_flag("--provenance-code", s.provenance_code, "Files say the code, too.");
}

// As one line: an error may quote what has several.
std::string unbroken(const std::string& text) {
    std::string line;
    for (const char letter : text) {
        const bool blank = letter == ' ' || (letter >= '\t' && letter <= '\r');
        if (!blank) line += letter;
        else if (!line.empty() && line.back() != ' ') line += ' ';
    }
    if (!line.empty() && line.back() == ' ') line.pop_back();
    return line;
}

int refused(const std::string& message, int code) {
    std::fprintf(stderr, "error: %s\n", unbroken(message).c_str());
    return code;
}

int run(int count, char** values) {
    CLI::App app{"Balanced images from a bundle.", "ddm-cli"};
    app.formatter(std::make_shared<Plain>());
    app.require_subcommand(0, 1);
    app.set_version_flag("--version", ddm_rt_version());
    cli::Sample asked;
    CLI::App* sample = app.add_subcommand("sample", "Make images.");
    add_sample(*sample, asked);
    CLI::App* backends = app.add_subcommand("backends", "List the backends, with the reasons why they can't run here.");
    CLI::App* version = app.add_subcommand("version", "Print the version.");
    app.footer(kExamples);
    try {
        app.parse(count, values);
    } catch (const CLI::ParseError& error) {
        return error.get_exit_code() == 0 ? app.exit(error) : refused(error.what(), 2);
    }
    if (*sample) {
        cli::sample(asked);
    } else if (*backends) {
        char* found = nullptr;
        cli::check(ddm_rt_backends(&found));
        std::printf("%s\n", found);
        ddm_rt_free(found);
    } else if (*version) {
        std::printf("%s\n", ddm_rt_version());
    } else {
        throw cli::Refused("name a command: sample, backends or version; --help shows them");
    }
    return 0;
}

}  // namespace

int main(int count, char** values) {
#ifdef __GLIBC__
    mallopt(M_TRIM_THRESHOLD, 128 << 10);  // its first value, kept: freed memory goes back to the system
#endif
    try {
        return run(count, values);
    } catch (const cli::Refused& error) {
        return refused(error.what(), 2);
    } catch (const std::exception& error) {
        return refused(error.what(), 1);
    }
}
