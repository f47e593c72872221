#include "config_shape.h"

#include "text.h"

namespace ddm::shape {
namespace {

using json::Value;

Check int_between(int64_t low, uint64_t high) { return integer({.ge = low, .le = high}); }
Check at_least(int64_t low) { return integer({.ge = low}); }
Check above_zero() { return number({.gt = 0}); }
Check strings() { return list(text()); }

bool filled(const Value& object) { return !object.object().empty(); }

Check data_config() {
    return object({
        {"source", text(), "\"digits:3,8@4:1\""},
        {"prompt", nullable(text()), "null"},
        {"image_size", int_between(8, 4096), "32"},
        {"channels", one_of({int64_t{1}, int64_t{3}}), "1"},
        {"min_side", positive(), "1"},
    });
}

std::optional<std::string> parts_fit(const Value& model) {
    const std::string& family = model["family"].text();
    const size_t wanted = family == "pixel" ? 0 : family == "sd" ? 1 : 2, given = model["text_encoders"].list().size();
    const bool vae = filled(model["vae"]);
    if (given == wanted && vae == (family != "pixel")) return std::nullopt;
    return concat("family ", family, " has ", wanted, " text encoders and ", wanted ? "a" : "no", " VAE; given: ",
                  given, " and ", vae ? "one" : "none");
}

Check base_config() {
    return object({
        {"path", path()},
        {"sha256", hash()},
        {"variant", nullable(text()), "null"},
    });
}

Check lora_config() {
    return object(
        {
            {"rank", int_between(0, 1024), "8"},
            {"alpha", above_zero(), "32.0"},
            {"targets", strings(), "[\"to_q\", \"to_v\"]"},
            {"text_encoder", boolean(), "false"},
        },
        [](const Value& lora) -> std::optional<std::string> {
            if (!lora["text_encoder"].boolean() || lora["rank"].integer()) return std::nullopt;
            return "text_encoder (--train-text-encoder) needs a rank (--lora-rank) of at least 1";
        });
}

Check feature_config() {
    return object({
        {"encoder", nullable(path()), "null"},
        {"steps", positive(), "500"},
        {"batch_size", at_least(8), "128"},
        {"learning_rate", above_zero(), "2e-3"},
        {"temperature", above_zero(), "0.2"},
        {"width", positive(), "16"},
        {"rotation", number({.ge = 0, .le = 180}), "20.0"},
        {"scale", fraction(), "0.2"},
        {"shear", fraction(), "0.35"},
        {"translate", fraction(), "0.12"},
        {"elastic", fraction(), "0.10"},
        {"thickness", boolean(), "true"},
        {"colour", fraction(), "0.0"},
        {"flip", boolean(), "false"},
    });
}

Check codes_config() {
    return object({
        {"source", nullable(path()), "null"},
        {"labels", nullable(path()), "null"},
        {"neighbours", at_least(2), "15"},
        {"eigenvectors", at_least(1), "8"},
        {"micro_codes", int_between(2, 4096), "16"},
        {"top_codes", int_between(2, 1024), "2"},
        {"halving", boolean(), "false"},
        {"min_share", number({.ge = 0, .le = 0.5}), "0.05"},
        {"bootstraps", int_between(0, 1000), "10"},
    });
}

Check train_config() {
    const char* trained = "<Precision.FP32: 'fp32'>, <Precision.FP16: 'fp16'> or <Precision.BF16: 'bf16'>";
    return object(
        {
            {"indicator", one_of({"none", "labels", "codes", "probe"}), "\"codes\""},
            {"indicator_weight", nullable(fraction()), "null"},
            {"steps", positive(), "1500"},
            {"batch_size", positive(), "64"},
            {"learning_rate", above_zero(), "1e-3"},
            {"warmup_steps", at_least(0), "50"},
            {"weight_decay", scale(), "1e-4"},
            {"ema_decay", number({.ge = 0, .lt = 1}), "0.995"},
            {"grad_clip", above_zero(), "1.0"},
            {"drop_both", fraction(), "0.08"},
            {"drop_code", fraction(), "0.05"},
            {"drop_text", fraction(), "0.05"},
            {"balance_minibatches", boolean(), "true"},
            {"seed", integer({.ge = 0, .lt = uint64_t{1} << 63}), "0"},
            {"threads", positive(), "1"},
            {"checkpoint_every", positive(), "250"},
            {"precision", one_of({"fp32", "fp16", "bf16"}, trained), "\"fp32\""},
            {"accumulate", positive(), "1"},
            {"gradient_checkpointing", boolean(), "false"},
        },
        [](const Value& train) -> std::optional<std::string> {
            const double sum = train["drop_both"].number() + train["drop_code"].number() + train["drop_text"].number();
            if (sum <= 1) return std::nullopt;
            return "drop_both + drop_code + drop_text must be at most 1";
        });
}

Check distill_config() {
    return object({
        {"teacher", hash()},
        {"guidance_scale", scale()},
        {"indicator_guidance_scale", scale()},
        {"clip", clip(), "null"},
        {"phases", at_least(1), "4"},
        {"paths", at_least(0), "0"},
        {"one_step_start", boolean(), "false"},
        {"huber", above_zero(), "1e-3"},
        {"lora", nullable(lora_config()), "null"},
    });
}

// What is wrong where the image size doesn't divide by the patch and the levels of the network.
std::optional<std::string> latent_problem(const Value& run) {
    const Value &model = run["model"], *blocks = model["unet"].find("block_out_channels");
    const auto* channels = blocks ? blocks->as<json::List>() : nullptr;
    const size_t levels = channels ? channels->size() : 0;
    const int64_t patch = model["patch"].integer(), side = run["data"]["image_size"].integer();
    if (levels > 32) return "model.unet.block_out_channels: expected at most 32 resolution levels";
    const int64_t multiple = patch << (levels ? levels - 1 : 0);
    if (side % multiple) {
        return concat("data.image_size is ", side, "; this model needs a multiple of ", multiple, " (patch ", patch,
                      ", ", levels, " resolution levels)");
    }
    const Value* in_channels = model["unet"].find("in_channels");
    if (model["family"].text() != "pixel" && !(in_channels && in_channels->as<json::Integer>())) {
        return "model.unet.in_channels: expected a whole number";
    }
    return std::nullopt;
}

std::optional<std::string> parts_of_run_fit(const Value& run) {
    if (auto problem = latent_problem(run)) return problem;
    const Value &data = run["data"], &codes = run["codes"], &model = run["model"];
    const bool base = !run["base"].is_null();
    if (!base && !data["prompt"].is_null()) {
        return "data.prompt (--prompt) needs a checkpoint (--base); this model takes no text";
    }
    static const std::string without_lora = json::write(parse(lora_config(), "{}", "lora"));
    if (!base && json::write(run["lora"]) != without_lora) {
        return "lora (--lora-rank and others) needs a checkpoint (--base)";
    }
    if (base && data["channels"].integer() != 3) return "data.channels is 1; a checkpoint's images have 3";
    if (base == (model["family"].text() == "pixel")) {
        return concat("model.family is ", model["family"].text(), ", base is ", base ? "" : "not ", "given");
    }
    const int64_t tops = codes["top_codes"].integer(), micro = codes["micro_codes"].integer();
    if (tops > micro) {
        return concat("codes.top_codes (", tops, ") must not exceed codes.micro_codes (", micro, ")");
    }
    const bool labels = !codes["labels"].is_null();
    if (labels != (run["train"]["indicator"].text() == "probe")) {
        return "codes.labels (--labels) and train.indicator probe need each other";
    }
    if (labels && !codes["source"].is_null()) return "codes.labels and codes.source exclude each other";
    return std::nullopt;
}

}  // namespace

Check positive() { return at_least(1); }
Check scale() { return number({.ge = 0}); }
Check fraction() { return number({.ge = 0, .le = 1}); }
Check sampler() { return one_of({"ddpm", "ddim", "euler", "dpm++2m", "lcm"}); }
Check precision() { return one_of({"fp32", "fp16", "bf16", "int8", "fp8"}); }
Check clip() { return nullable(fixed({number(), number()})); }
Check family() { return one_of({"pixel", "sd", "sdxl"}); }

Check sampling_config() {
    return object({
        {"sampler", sampler(), "\"ddim\""},
        {"num_steps", positive(), "25"},
        {"eta", fraction(), "0.0"},
        {"guidance_scale", scale(), "1.0"},
        {"indicator_guidance_scale", nullable(scale()), "1.5"},
        {"indicator_scale", scale(), "1.0"},
        {"clip", clip(), "[-1.0, 1.0]"},
    });
}

Check schedule_config() {
    const Check beta = number({.gt = 0, .lt = 1});
    return object({
        {"num_train_timesteps", int_between(2, 100000), "1000"},
        {"beta_schedule", one_of({"linear", "scaled_linear", "squaredcos_cap_v2"}), "\"linear\""},
        {"beta_start", beta, "1e-4"},
        {"beta_end", beta, "0.02"},
        {"prediction_type", one_of({"epsilon", "v_prediction", "sample"}), "\"epsilon\""},
        {"timestep_spacing", nullable(one_of({"leading", "linspace", "trailing", "karras"})), "null"},
        {"steps_offset", int_between(0, 1), "0"},
        {"set_alpha_to_one", boolean(), "true"},
    });
}

Check model_config() {
    return object(
        {
            {"family", family(), "\"pixel\""},
            {"patch", int_between(1, 16), "4"},
            {"unet", mapping(anything()), "{}"},
            {"vae", mapping(anything()), "{}"},
            {"text_encoders", list(mapping(anything())), "[]"},
            {"num_indicator_tokens", int_between(1, 16), "4"},
            {"code_embed_dim", positive(), "64"},
            {"head_hidden", fixed({positive(), positive()}), "[1024, 512]"},
        },
        parts_fit);
}

Check run_config() {
    return object(
        {
            {"preset", text(), "\"digits\""},
            {"data", data_config(), "{}"},
            {"model", model_config(), "{}"},
            {"schedule", schedule_config(), "{}"},
            {"features", feature_config(), "{}"},
            {"codes", codes_config(), "{}"},
            {"train", train_config(), "{}"},
            {"sampling", sampling_config(), "{}"},
            {"base", nullable(base_config()), "null"},
            {"lora", lora_config(), "{}"},
            {"distill", nullable(distill_config()), "null"},
        },
        parts_of_run_fit);
}

}  // namespace ddm::shape
