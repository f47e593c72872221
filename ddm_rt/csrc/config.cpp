#include "config.h"

#include "error.h"
#include "fields.h"
#include "text.h"

namespace ddm {

const char* name_of(Family family) {
    return family == Family::pixel ? "pixel" : family == Family::sd ? "sd" : "sdxl";
}

const char* name_of(Balance balance) {
    return balance == Balance::on ? "on" : balance == Balance::off ? "off" : "auto";
}

Balance balance_named(std::string_view name) {
    for (const Balance balance : {Balance::on, Balance::off, Balance::automatic}) {
        if (name == name_of(balance)) return balance;
    }
    throw Error(concat("balance is ", repr(name), "; expected one of: on, off, auto"));
}

Sampling Sampling::of(const Field& tree) {
    const auto code_scale = tree.get("indicator_guidance_scale", 1.5).or_null();
    const auto clip = tree.get("clip", {-1.0, 1.0}).or_null();
    return {
        .sampler = sampler_of(tree.get("sampler", "ddim")),
        .num_steps = tree.get("num_steps", 25).whole(1),
        .eta = tree.get("eta", 0.0).number(0, 1),
        .guidance_scale = tree.get("guidance_scale", 1.0).number(0),
        .indicator_guidance_scale = code_scale ? std::optional(code_scale->number(0)) : std::nullopt,
        .indicator_scale = tree.get("indicator_scale", 1.0).number(0),
        .clip = clip ? std::optional(clip->pair()) : std::nullopt,
    };
}

}  // namespace ddm
