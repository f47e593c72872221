#include "config.h"

#include "error.h"
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

Sampling Sampling::of(const json::Value& tree) {
    Sampling out{sampler_named(tree["sampler"].text()), tree["num_steps"].integer(), tree["eta"].number(),
                 tree["guidance_scale"].number(),       std::nullopt,                tree["indicator_scale"].number(),
                 std::nullopt};
    const json::Value &scale = tree["indicator_guidance_scale"], &clip = tree["clip"];
    if (!scale.is_null()) out.indicator_guidance_scale = scale.number();
    if (!clip.is_null()) out.clip = {clip.list()[0].number(), clip.list()[1].number()};
    return out;
}

}  // namespace ddm
