// Noise levels, as a bundle has them.
#include "schedule.h"

#include <algorithm>

#include "error.h"
#include "fields.h"
#include "text.h"

namespace ddm {
namespace {

constexpr std::initializer_list<std::string_view> SAMPLERS = {"ddpm", "ddim", "euler", "dpm++2m", "lcm"};

}  // namespace

const char* name_of(SamplerName sampler) { return SAMPLERS.begin()[static_cast<size_t>(sampler)].data(); }

SamplerName sampler_named(std::string_view name) {
    const auto found = std::find(SAMPLERS.begin(), SAMPLERS.end(), name);
    if (found != SAMPLERS.end()) return static_cast<SamplerName>(found - SAMPLERS.begin());
    throw about("sampler",
                concat(" is ", repr(name), "; expected one of: ", join(", ", {SAMPLERS.begin(), SAMPLERS.end()})));
}

SamplerName sampler_of(const Field& field) { return static_cast<SamplerName>(field.choice(SAMPLERS)); }

Schedule Schedule::of(const Field& tree) {
    Schedule out{
        .num_train_timesteps = tree.get("num_train_timesteps", 1000).whole(2, 100'000),
        .beta_schedule = static_cast<BetaSchedule>(
            tree.get("beta_schedule", "linear").choice({"linear", "scaled_linear", "squaredcos_cap_v2"})),
        .prediction_type = static_cast<PredictionType>(
            tree.get("prediction_type", "epsilon").choice({"epsilon", "v_prediction", "sample"})),
        .timestep_spacing = std::nullopt,
        .steps_offset = tree.get("steps_offset", 0).whole(0, 1),
        .set_alpha_to_one = tree.get("set_alpha_to_one", true).boolean(),
        .alphas_cumprod = tree["alphas_cumprod"].numbers(),
    };
    if (const auto spacing = tree.find("timestep_spacing")) {
        out.timestep_spacing = static_cast<Spacing>(spacing->choice({"leading", "linspace", "trailing", "karras"}));
    }
    const std::vector<double>& levels = out.alphas_cumprod;
    const bool falls = std::adjacent_find(levels.begin(), levels.end(), std::less_equal<>()) == levels.end();
    if (levels.size() != static_cast<size_t>(out.num_train_timesteps) || !falls || levels.front() >= 1 ||
        levels.back() <= 0) {
        tree["alphas_cumprod"].fail(Status::bundle, concat(": expected ", out.num_train_timesteps,
                                                           " numbers that decrease strictly within (0, 1)"));
    }
    return out;
}

}  // namespace ddm
