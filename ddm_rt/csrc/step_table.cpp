// Step tables: samplers as rows of coefficients.
#include <algorithm>
#include <cmath>
#include <limits>

#include "error.h"
#include "guidance.h"
#include "numpy.h"
#include "schedule.h"
#include "text.h"

namespace ddm {
namespace {

using numpy::Floats;

constexpr int64_t LCM_GRID = 50;
constexpr double INFINITE = std::numeric_limits<double>::infinity();

// The first is the sampler's default.
std::vector<Spacing> spacings_of(SamplerName sampler) {
    using enum Spacing;
    switch (sampler) {
        case SamplerName::ddpm:
        case SamplerName::ddim: return {leading, trailing};
        case SamplerName::lcm: return {trailing};
        default: return {linspace, leading, trailing, karras};
    }
}

template <typename Function>
Floats each(size_t n, Function function) {
    Floats out(n);
    for (size_t i = 0; i < n; ++i) out[i] = function(i);
    return out;
}

double square(double value) { return value * value; }

void check_arguments(const Schedule& schedule, SamplerName sampler, int64_t num_steps, double eta, const Clip& clip) {
    const int64_t most = schedule.num_train_timesteps;
    if (num_steps < 1 || num_steps > most) {
        throw about("num_steps",
                    concat(" is ", num_steps, "; expected 1 to ", most, ", the number of training timesteps"));
    }
    if (sampler == SamplerName::lcm && num_steps > LCM_GRID) {
        throw about("num_steps", concat(" is ", num_steps, "; ", name_of(sampler), " takes at most ", LCM_GRID));
    }
    if (!(0 <= eta && eta <= 1)) throw about("eta", concat(" is ", repr(eta), "; expected 0 to 1"));
    if (eta != 0 && sampler != SamplerName::ddim) {
        throw about("eta", concat(" is ", repr(eta), "; only ddim takes one, not ", name_of(sampler)));
    }
    if (clip && !(clip->first < clip->second)) {
        throw about("clip", concat(" is (", repr(clip->first), ", ", repr(clip->second),
                                   "); expected a lower and a higher limit for x0"));
    }
}

Spacing spacing_for(const Schedule& schedule, SamplerName sampler) {
    const std::vector<Spacing> choices = spacings_of(sampler);
    const auto own = schedule.timestep_spacing;
    return own && std::find(choices.begin(), choices.end(), *own) != choices.end() ? *own : choices[0];
}

Floats trailing(int64_t timesteps, int64_t num_steps) {
    const double stride = static_cast<double>(timesteps) / static_cast<double>(num_steps);
    return each(static_cast<size_t>(num_steps), [&](size_t i) {
        return std::nearbyint(static_cast<double>(timesteps) - static_cast<double>(i) * stride) - 1;
    });
}

// σ/α that the last step leads to: 0, the clean end; for DDIM `lowest`, that of t = 0, when configured so.
double end_of(const Schedule& schedule, SamplerName sampler, const Floats& t, Spacing spacing, double lowest) {
    if (sampler != SamplerName::ddim) return 0;
    const int64_t stride = schedule.num_train_timesteps / static_cast<int64_t>(t.size());
    const bool lands_on_first = spacing == Spacing::leading && t.back() == static_cast<double>(stride);
    return lands_on_first || !schedule.set_alpha_to_one ? lowest : 0;
}

Floats logs(const Floats& values) {
    return each(values.size(), [&](size_t i) { return std::log(values[i]); });
}

// σ/α [S] from `high` to `low`: Karras et al. 2022 (arXiv 2206.00364), eq. 5, ρ = 7.
Floats karras(double high, double low, size_t steps) {
    const Floats roots = numpy::linspace(numpy::power(high, 1.0 / 7), numpy::power(low, 1.0 / 7), steps);
    return each(steps, [&](size_t i) { return numpy::power(roots[i], 7); });
}

// Timesteps [S] of DPM-Solver++ at Karras's levels, which diffusers stores whole: rounded, or cut for the cosine. It
// looks them up among levels and logarithms that it holds in float32, and with the cosine that rounding decides which
// is the first.
Floats whole_timesteps(const Schedule& schedule, size_t steps) {
    const size_t n = schedule.alphas_cumprod.size();
    const Floats every = each(n, [&](size_t i) {
        const auto bar = static_cast<float>(schedule.alphas_cumprod[i]);
        return static_cast<double>(std::sqrt((1.0F - bar) / bar));
    });
    Floats known = logs(every);
    for (double& log : known) log = static_cast<double>(static_cast<float>(log));
    const Floats counted = each(n, [](size_t i) { return static_cast<double>(i); });
    Floats t = numpy::interp(logs(karras(every.back(), every.front(), steps)), known, counted);
    const bool cut = schedule.beta_schedule == BetaSchedule::squaredcos_cap_v2;
    for (double& each_t : t) each_t = cut ? std::floor(each_t) : std::nearbyint(each_t);
    return t;
}

// Timesteps [S] and noise-to-signal ratios σ/α [S + 1].
std::pair<Floats, Floats> noise_levels(const Schedule& schedule, SamplerName sampler, int64_t num_steps,
                                       Spacing spacing) {
    const auto steps = static_cast<size_t>(num_steps);
    const int64_t timesteps = schedule.num_train_timesteps;
    const auto last = static_cast<double>(timesteps - 1);
    const Floats& bar = schedule.alphas_cumprod;
    const Floats every = each(bar.size(), [&](size_t i) { return std::sqrt((1 - bar[i]) / bar[i]); });
    const Floats counted = each(bar.size(), [](size_t i) { return static_cast<double>(i); });
    const bool euler = sampler == SamplerName::euler;
    Floats t;
    if (sampler == SamplerName::lcm) {
        const Floats grid = trailing(timesteps, LCM_GRID);
        const Floats places = numpy::linspace(0, LCM_GRID, steps, false);
        t = each(steps, [&](size_t i) { return grid[static_cast<size_t>(std::floor(places[i]))]; });
    } else if (spacing == Spacing::leading) {
        // DPM-Solver++ leaves out t = 0 here too.
        const bool dpm = sampler == SamplerName::dpmpp_2m;
        const int64_t stride = timesteps / (dpm ? num_steps + 1 : num_steps);
        t = each(steps, [&](size_t i) {
            const auto place = static_cast<double>(steps - 1 - i) + (dpm ? 1 : 0);
            return place * static_cast<double>(stride) + static_cast<double>(schedule.steps_offset);
        });
    } else if (spacing == Spacing::trailing) {
        t = trailing(timesteps, num_steps);
    } else if (euler) {
        const Floats up = numpy::linspace(0, last, steps);
        t = each(steps, [&](size_t i) { return static_cast<double>(static_cast<float>(up[steps - 1 - i])); });
    } else {  // DPM-Solver++ leaves out t = 0 and uses whole timesteps
        const Floats up = numpy::linspace(0, last, steps + 1);
        t = each(steps, [&](size_t i) { return std::nearbyint(up[steps - i]); });
    }
    Floats levels = numpy::interp(t, counted, every);
    if (spacing == Spacing::karras) {
        const double high = euler ? levels.front() : every.back(), low = euler ? levels.back() : every.front();
        levels = karras(high, low, steps);
        t = euler ? numpy::interp(logs(levels), logs(every), counted) : whole_timesteps(schedule, steps);
    }
    levels.push_back(end_of(schedule, sampler, t, spacing, every[0]));
    return {t, levels};
}

// a, b, p, q with x0 = a·x + b·out and ε = p·x + q·out.
struct Prediction {
    Floats a, b, p, q;
};

Prediction prediction(PredictionType kind, const Floats& alpha, const Floats& sigma, size_t steps) {
    const Floats zero(steps, 0.0), one(steps, 1.0);
    const auto of = [&](auto function) { return each(steps, function); };
    const Floats alphas(alpha.begin(), alpha.begin() + static_cast<ptrdiff_t>(steps));
    const Floats sigmas(sigma.begin(), sigma.begin() + static_cast<ptrdiff_t>(steps));
    switch (kind) {
        case PredictionType::epsilon:
            return {of([&](size_t i) { return 1 / alpha[i]; }), of([&](size_t i) { return -sigma[i] / alpha[i]; }),
                    zero, one};
        case PredictionType::v_prediction: return {alphas, of([&](size_t i) { return -sigma[i]; }), sigmas, alphas};
        default:
            return {zero, one, of([&](size_t i) { return 1 / sigma[i]; }),
                    of([&](size_t i) { return -alpha[i] / sigma[i]; })};
    }
}

// Posterior mean and the smaller of its two variances: Ho et al. 2020 (arXiv 2006.11239), eq. 7.
void ddpm(StepTable& table, const Floats& alpha, const Floats& sigma) {
    for (size_t i = 0; i < table.num_steps(); ++i) {
        const double ratio = square(alpha[i] / alpha[i + 1]);  // product of (1 - β) over the step
        const double now = square(sigma[i]), next = square(sigma[i + 1]);
        table.c[i] = std::sqrt(ratio) * next / now;
        table.d[i] = alpha[i + 1] * (1 - ratio) / now;
        table.f[i] = std::sqrt(next / now * (1 - ratio));
    }
}

// Song et al. 2021 (arXiv 2010.02502), eq. 12 and 16; ε is the denoiser's own, not that of a clipped x0.
void ddim(StepTable& table, const Floats& alpha, const Floats& sigma, const Prediction& from, double eta) {
    for (size_t i = 0; i < table.num_steps(); ++i) {
        const double f = eta * sigma[i + 1] / sigma[i] * std::sqrt(1 - square(alpha[i] / alpha[i + 1]));
        const double direction = std::sqrt(std::max(square(sigma[i + 1]) - square(f), 0.0));
        table.c[i] = direction * from.p[i];
        table.d[i] = alpha[i + 1];
        table.g[i] = direction * from.q[i];
        table.f[i] = f;
    }
}

// Euler's step y' = y + (y - x0)·(s'/s - 1), s = σ/α (Karras et al. 2022, alg. 1), for x = α·y.
void euler(StepTable& table, const Floats& alpha, const Floats& sigma) {
    for (size_t i = 0; i < table.num_steps(); ++i) {
        table.c[i] = sigma[i + 1] / sigma[i];
        table.d[i] = alpha[i + 1] - alpha[i] * table.c[i];
    }
}

// DPM-Solver++(2M), Lu et al. 2022 (arXiv 2211.01095), alg. 2; first order in the first and the last step.
void dpmpp_2m(StepTable& table, const Floats& alpha, const Floats& sigma) {
    euler(table, alpha, sigma);
    const size_t steps = table.num_steps();
    const Floats lambda = each(steps, [&](size_t i) { return std::log(alpha[i] / sigma[i]); });
    for (size_t i = 1; i + 1 < steps; ++i) {
        const double h = lambda[i + 1] - lambda[i], before = lambda[i] - lambda[i - 1];
        const double extrapolation = table.d[i] * h / (2 * before);
        table.e[i] = -extrapolation;
        table.d[i] += extrapolation;
    }
}

// Luo et al. 2023 (arXiv 2310.04378), alg. 3 and eq. 9: x0, noised afresh to the next level, and next to the image's
// own timestep a little of x, with σ_data = .5 and timesteps times 10.
void lcm(StepTable& table, const Floats& alpha, const Floats& sigma) {
    for (size_t i = 0; i < table.num_steps(); ++i) {
        const double far = square(10 * table.t[i] / 0.5);
        table.c[i] = alpha[i + 1] * (1 / (far + 1));
        table.d[i] = alpha[i + 1] * std::sqrt(far / (far + 1));
        table.f[i] = sigma[i + 1];
    }
}

std::vector<bool> guided_steps(int64_t num_steps, const std::optional<Pair>& interval) {
    std::vector<bool> guided(static_cast<size_t>(num_steps), true);
    if (!interval) return guided;
    const auto [start, stop] = *interval;
    const std::string said = concat(" is ", repr(*interval), "; ");
    if (!(0 <= start && start < stop && stop <= 1)) {
        throw about("guidance_interval", concat(said, "expected a start below a stop, both within 0 and 1"));
    }
    const auto first = static_cast<int64_t>(start * static_cast<double>(num_steps));
    const auto end = static_cast<int64_t>(stop * static_cast<double>(num_steps));
    if (first >= end) throw about("guidance_interval", concat(said, "none of the ", num_steps, " steps is in it"));
    for (int64_t i = 0; i < num_steps; ++i) guided[static_cast<size_t>(i)] = first <= i && i < end;
    return guided;
}

}  // namespace

std::vector<float> StepTable::timesteps() const { return {t.begin(), t.end()}; }

std::vector<StepTable::Row> StepTable::rows() const {
    std::vector<Row> out(num_steps());
    const std::vector<double>* columns[] = {&a, &b, &c, &d, &e, &g, &f, &clip_min, &clip_max};
    for (size_t i = 0; i < out.size(); ++i) {
        for (size_t k = 0; k < out[i].size(); ++k) out[i][k] = static_cast<float>((*columns[k])[i]);
    }
    return out;
}

StepTable step_table(const Schedule& schedule, SamplerName sampler, int64_t num_steps, double eta, const Clip& clip,
                     const std::optional<Pair>& guidance_interval, const std::optional<Pair>& noise_times) {
    check_arguments(schedule, sampler, num_steps, eta, clip);
    const Spacing spacing = spacing_for(schedule, sampler);
    const auto [t, ratio] = noise_levels(schedule, sampler, num_steps, spacing);
    const size_t steps = t.size();
    for (size_t i = 1; i < steps; ++i) {
        if (ratio[i] - ratio[i - 1] >= 0) {
            throw about("num_steps",
                        concat(" is ", num_steps, "; too many for ", name_of(sampler), ": two steps share a timestep"));
        }
    }
    const Floats alpha = each(steps + 1, [&, &r = ratio](size_t i) { return 1 / std::sqrt(square(r[i]) + 1); });
    const Floats sigma = each(steps + 1, [&, &r = ratio](size_t i) { return r[i] * alpha[i]; });
    const Prediction from = prediction(schedule.prediction_type, alpha, sigma, steps);
    const Floats zero(steps, 0.0);
    const auto [low, high] = clip.value_or(std::pair(-INFINITE, INFINITE));
    // Euler starts from z·σ/α in its own units, where x is its state times α; with "leading", from z·√((σ/α)² + 1).
    const bool scaled = sampler == SamplerName::euler && spacing != Spacing::leading;
    StepTable table{sampler,
                    scaled ? sigma[0] : 1.0,
                    t,
                    from.a,
                    from.b,
                    zero,
                    zero,
                    zero,
                    zero,
                    zero,
                    Floats(steps, 0.0 + low),
                    Floats(steps, 0.0 + high),  // no -0.0, as in numpy
                    guided_steps(num_steps, guidance_interval),
                    kept_tokens(t, static_cast<double>(schedule.num_train_timesteps), noise_times)};
    switch (sampler) {
        case SamplerName::ddpm: ddpm(table, alpha, sigma); break;
        case SamplerName::ddim: ddim(table, alpha, sigma, from, eta); break;
        case SamplerName::euler: euler(table, alpha, sigma); break;
        case SamplerName::dpmpp_2m: dpmpp_2m(table, alpha, sigma); break;
        case SamplerName::lcm: lcm(table, alpha, sigma); break;
    }
    return table;
}

}  // namespace ddm
