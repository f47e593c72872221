// Noise levels and the file that holds them.
#include "schedule.h"

#include <algorithm>
#include <cmath>

#include "config_shape.h"
#include "error.h"
#include "numpy.h"
#include "text.h"

namespace ddm {
namespace {

using json::Value;

constexpr const char* SAMPLERS[] = {"ddpm", "ddim", "euler", "dpm++2m", "lcm"};
constexpr const char* SPACINGS[] = {"leading", "linspace", "trailing", "karras"};
constexpr const char* BETA_SCHEDULES[] = {"linear", "scaled_linear", "squaredcos_cap_v2"};
constexpr const char* PREDICTIONS[] = {"epsilon", "v_prediction", "sample"};

// The place of a name that is known to be there.
template <typename Kind, size_t N>
Kind place(const char* const (&names)[N], std::string_view name) {
    return static_cast<Kind>(std::find(names, names + N, name) - names);
}

template <typename Kind, size_t N>
Kind choice(const char* const (&names)[N], std::string_view name, const char* field) {
    if (std::find(names, names + N, name) != names + N) return place<Kind>(names, name);
    throw Error(concat(field, " is ", repr(name), "; expected one of: ", join(", ", {names, names + N})));
}

// torch.linspace in float32, to the bit: each half counts from its own end.
std::vector<float> torch_linspace(double start, double end, int64_t n) {
    const float first = static_cast<float>(start), last = static_cast<float>(end);
    const double step = (last - first) / static_cast<float>(n - 1);
    std::vector<float> out;
    for (int64_t i = 0; i < n; ++i) {
        const double value = i < n / 2 ? first + step * static_cast<double>(i) : last - step * static_cast<double>(n - 1 - i);
        out.push_back(static_cast<float>(value));
    }
    return out;
}

// β of every training timestep, float32 as diffusers makes them.
std::vector<float> betas(const ScheduleConfig& config) {
    const int64_t n = config.num_train_timesteps;
    if (config.beta_schedule == BetaSchedule::linear) return torch_linspace(config.beta_start, config.beta_end, n);
    if (config.beta_schedule == BetaSchedule::scaled_linear) {
        auto out = torch_linspace(numpy::power(config.beta_start, 0.5), numpy::power(config.beta_end, 0.5), n);
        for (float& value : out) value *= value;
        return out;
    }
    // Nichol and Dhariwal 2021 (arXiv 2102.09672), eq. 17.
    const auto bar = [n](int64_t i) {
        const double part = static_cast<double>(i) / static_cast<double>(n);
        return numpy::power(std::cos((part + 0.008) / 1.008 * M_PI / 2), 2);
    };
    std::vector<float> out;
    for (int64_t i = 0; i < n; ++i) out.push_back(static_cast<float>(std::min(1 - bar(i + 1) / bar(i), 0.999)));
    return out;
}

const char* problem(const std::vector<double>& levels) {
    for (const double level : levels) {
        if (!std::isfinite(level)) return "alphas_cumprod must be finite";
    }
    bool falls = levels.front() < 1 && levels.back() > 0;
    for (size_t i = 1; i < levels.size(); ++i) falls = falls && levels[i] < levels[i - 1];
    return falls ? nullptr : "alphas_cumprod must decrease strictly within (0, 1)";
}

std::vector<double> levels_of(const Value* values, const std::string& where) {
    const auto* list = values ? values->as<json::List>() : nullptr;
    const auto is_number = [](const Value& value) { return value.as<json::Integer>() || value.as<double>(); };
    if (!list || list->empty() || !std::all_of(list->begin(), list->end(), is_number)) {
        refuse_bundle(where + ": expected a list of numbers");
    }
    std::vector<double> levels;
    for (const Value& value : *list) {
        levels.push_back(value.number());
        if (value.as<json::Integer>() && std::isinf(levels.back())) refuse_bundle(where + ": a number is too large");
    }
    return levels;
}

ScheduleConfig schedule_config(const Value& tree) {
    ScheduleConfig config;
    config.num_train_timesteps = tree["num_train_timesteps"].integer();
    config.beta_schedule = place<BetaSchedule>(BETA_SCHEDULES, tree["beta_schedule"].text());
    config.beta_start = tree["beta_start"].number();
    config.beta_end = tree["beta_end"].number();
    config.prediction_type = place<PredictionType>(PREDICTIONS, tree["prediction_type"].text());
    const Value& spacing = tree["timestep_spacing"];
    if (!spacing.is_null()) config.timestep_spacing = place<Spacing>(SPACINGS, spacing.text());
    config.steps_offset = tree["steps_offset"].integer();
    config.set_alpha_to_one = tree["set_alpha_to_one"].boolean();
    return config;
}

}  // namespace

const char* name_of(SamplerName sampler) { return SAMPLERS[static_cast<size_t>(sampler)]; }

SamplerName sampler_named(std::string_view name) { return choice<SamplerName>(SAMPLERS, name, "sampler"); }

Schedule Schedule::from_config(const ScheduleConfig& config) {
    std::vector<double> levels;
    double product = 1;
    for (const float beta : betas(config)) {
        product *= static_cast<double>(1 - beta);
        levels.push_back(static_cast<float>(product));
    }
    if (const char* found = problem(levels)) {
        throw Error(concat("schedule: ", found, "; change num_train_timesteps, beta_start or beta_end"));
    }
    return {config, std::move(levels)};
}

Schedule Schedule::from_json(std::string_view content, const std::string& path) {
    Value tree;
    try {
        tree = json::read(content, json::Dialect::python);
    } catch (const Error& error) {
        refuse_bundle(concat(path, ": not JSON (", error.what(), ")"));
    }
    const Value* version = tree.as<json::Object>() ? tree.find("schema_version") : nullptr;
    const auto* truth = version ? version->as<bool>() : nullptr;
    const bool number = version && (version->as<json::Integer>() || version->as<double>());
    if (!(truth && *truth) && !(number && version->number() == 1)) {
        refuse_bundle(path + ": field schema_version: expected 1");
    }
    json::Object fields;
    std::vector<Value> values;
    for (auto& [name, value] : std::get<json::Object>(tree)) {
        if (name == "alphas_cumprod") values.push_back(std::move(value));
        else if (name != "schema_version") fields.emplace_back(name, std::move(value));
    }
    static const shape::Check check = shape::open_object(shape::schedule_fields());
    return stored(shape::parse_tree(check, Value(std::move(fields)), path), values.empty() ? nullptr : &values[0], path,
                  "alphas_cumprod");
}

Schedule Schedule::stored(const Value& fields, const Value* values, const std::string& path, const std::string& field) {
    const ScheduleConfig config = schedule_config(fields);
    const std::string where = concat(path, ": field ", field);
    std::vector<double> levels = levels_of(values, where);
    if (static_cast<int64_t>(levels.size()) != config.num_train_timesteps) {
        refuse_bundle(concat(where, ": ", levels.size(), " values; num_train_timesteps is ", config.num_train_timesteps));
    }
    if (const char* found = problem(levels)) refuse_bundle(concat(where, ": ", found));
    std::vector<double> expected;
    try {
        expected = from_config(config).alphas_cumprod;
    } catch (const Error& error) {
        refuse_bundle(concat(path, ": ", error.what()));
    }
    // Machines may differ in the last place of a cosine; anything beyond that is another schedule.
    for (size_t i = 0; i < levels.size(); ++i) {
        if (!(std::abs(levels[i] - expected[i]) <= 1e-5 * std::abs(expected[i]))) {
            refuse_bundle(where + ": differs from what the beta fields give");
        }
    }
    return {config, std::move(levels)};
}

}  // namespace ddm
