#include "config_shape.h"

namespace ddm::shape {

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

}  // namespace ddm::shape
