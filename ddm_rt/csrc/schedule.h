// Noise levels and step tables, as ddm_rt/schedule.py makes them: the same float64 operations in the same order.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace ddm {

class Field;

enum class SamplerName { ddpm, ddim, euler, dpmpp_2m, lcm };
enum class Spacing { leading, linspace, trailing, karras };
enum class BetaSchedule { linear, scaled_linear, squaredcos_cap_v2 };
enum class PredictionType { epsilon, v_prediction, sample };

const char* name_of(SamplerName sampler);          // "ddpm", "ddim", "euler", "dpm++2m", "lcm"
SamplerName sampler_named(std::string_view name);  // throws Error with the choices
SamplerName sampler_of(const Field& field);

using Pair = std::pair<double, double>;
using Clip = std::optional<Pair>;
using Triple = std::array<double, 3>;

struct Schedule {
    int64_t num_train_timesteps = 1000;
    BetaSchedule beta_schedule = BetaSchedule::linear;
    PredictionType prediction_type = PredictionType::epsilon;
    std::optional<Spacing> timestep_spacing;  // none: the sampler's own
    int64_t steps_offset = 0;
    bool set_alpha_to_one = true;
    std::vector<double> alphas_cumprod;  // [num_train_timesteps], strictly decreasing within (0, 1)

    // What runtime.json says at "schedule", or schedule.json. The hash of the file vouches for alphas_cumprod, so what
    // they were made from isn't read.
    static Schedule of(const Field& tree);
};

// One row per step:  x0 = clip(a·x + b·out);  x' = c·x + d·x0 + e·x0_prev + g·out + f·z.
struct StepTable {
    SamplerName sampler;
    double init_scale;
    std::vector<double> t, a, b, c, d, e, g, f, clip_min, clip_max;  // [num_steps]
    std::vector<bool> guided;  // [num_steps]; a step without guidance has an image's last branch alone
    std::vector<double> kept;  // [num_steps]; how much a step keeps of a prompt's tokens, the rest of which is noise

    using Row = std::array<float, 9>;  // a, b, c, d, e, g, f, clip_min, clip_max

    size_t num_steps() const { return t.size(); }
    std::vector<float> timesteps() const;
    std::vector<Row> rows() const;
};

// The timesteps are spaced as the schedule says where the sampler takes that, else as the sampler's default is. Throws
// Error naming the argument that doesn't fit. `guidance_interval` says which steps have guidance: fractions of them,
// from a start to a stop; by default all. `noise_times` says when noise on a prompt's tokens ends and begins; by
// default there is none.
StepTable step_table(const Schedule& schedule, SamplerName sampler, int64_t num_steps, double eta = 0,
                     const Clip& clip = std::nullopt, const std::optional<Pair>& guidance_interval = std::nullopt,
                     const std::optional<Pair>& noise_times = std::nullopt);

}  // namespace ddm
