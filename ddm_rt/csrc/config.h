// Names that files and requests have in common, and what a bundle samples with unless told otherwise.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "schedule.h"

namespace ddm {

class Field;

constexpr int64_t NULL_CODE = -1;

enum class Family { pixel, sd, sdxl };
enum class Balance { on, off, automatic };  // "on", "off", "auto"

const char* name_of(Family family);
const char* name_of(Balance balance);
Balance balance_named(std::string_view name);  // throws Error with the choices

struct Sampling {
    SamplerName sampler;
    int64_t num_steps;
    double eta;
    double guidance_scale;
    std::optional<double> indicator_guidance_scale;
    double indicator_scale;
    Clip clip;

    static Sampling of(const Field& tree);
};

}  // namespace ddm
