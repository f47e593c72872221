#include "config_shape.h"

namespace ddm::shape {
namespace {

Check axis() { return either("int", integer(), "str", text()); }

Check tensor_spec() {
    return open_object({
        {"name", text()},
        {"shape", list(axis())},
        {"dtype", one_of({"float32", "float16", "int64"}), "\"float32\""},
    });
}

Check text_spec() {
    return open_object({
        {"tokenizer", text()},
        {"input", text()},
        {"max_length", positive()},
        {"pad_id", integer({.ge = 0})},
    });
}

}  // namespace

Check positive() { return integer({.ge = 1}); }
Check scale() { return number({.ge = 0}); }
Check fraction() { return number({.ge = 0, .le = 1}); }
Check sampler() { return one_of({"ddpm", "ddim", "euler", "dpm++2m", "lcm"}); }
Check clip() { return nullable(fixed({number(), number()})); }

Check sampling() {
    return open_object({
        {"sampler", sampler(), "\"ddim\""},
        {"num_steps", positive(), "25"},
        {"eta", fraction(), "0.0"},
        {"guidance_scale", scale(), "1.0"},
        {"indicator_guidance_scale", nullable(scale()), "1.5"},
        {"indicator_scale", scale(), "1.0"},
        {"clip", clip(), "[-1.0, 1.0]"},
    });
}

Check version_1() { return one_of(std::vector<int64_t>{1}); }

Check leaf() {
    return open_object({
        {"code", integer({.ge = 0})},
        {"top_code", integer({.ge = 0})},
        {"size", integer({.ge = 0})},
        {"share_in_top", fraction()},
    });
}

std::vector<Field> schedule_fields() {
    const Check beta = number({.gt = 0, .lt = 1});
    return {
        {"num_train_timesteps", integer({.ge = 2, .le = 100000}), "1000"},
        {"beta_schedule", one_of({"linear", "scaled_linear", "squaredcos_cap_v2"}), "\"linear\""},
        {"beta_start", beta, "1e-4"},
        {"beta_end", beta, "0.02"},
        {"prediction_type", one_of({"epsilon", "v_prediction", "sample"}), "\"epsilon\""},
        {"timestep_spacing", nullable(one_of({"leading", "linspace", "trailing", "karras"})), "null"},
        {"steps_offset", integer({.ge = 0, .le = 1}), "0"},
        {"set_alpha_to_one", boolean(), "true"},
    };
}

std::vector<Field> bundle_fields() {
    return {
        {"family", one_of({"pixel", "sd", "sdxl"}), "\"pixel\""},
        {"name", text()},
        {"precision", one_of({"fp32", "fp16", "bf16", "int8", "fp8"}), "\"fp32\""},
        {"latent_shape", fixed({positive(), positive(), positive()})},
        {"image_size", positive()},
        {"channels", one_of(std::vector<int64_t>{1, 3})},
        {"size_multiple", positive()},
        {"context_shape", fixed({axis(), integer()})},
        {"prompt_free", boolean()},
        {"text", list(text_spec()), "[]"},
        {"added", list(tensor_spec()), "[]"},
        {"empty_negative_is_zero", boolean(), "false"},
        {"cond", list(tensor_spec())},
    };
}

}  // namespace ddm::shape
