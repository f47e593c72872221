#include "config.h"

#include <algorithm>
#include <set>

#include "config_shape.h"
#include "error.h"
#include "text.h"

namespace ddm {
namespace {

using json::Value;

const shape::Check& config_file() {
    using namespace shape;
    static const Check check = [] {
        std::vector<Field> fields{{"schema_version", version_1(), "1"}};
        for (Field& field : bundle_fields()) fields.push_back(std::move(field));
        fields.push_back({"num_codes", integer({.ge = 0})});
        fields.push_back({"num_top_codes", integer({.ge = 0})});
        fields.push_back({"sampling", sampling()});
        fields.push_back({"run", anything(), "null"});  // what was trained, of which one word decides about images
        return open_object(std::move(fields));
    }();
    return check;
}

const shape::Check& codes_file() {
    static const shape::Check check = shape::open_object({{"leaves", shape::list(shape::leaf()), "[]"}});
    return check;
}

Axis axis_of(const Value& value) {
    if (const auto* name = value.as<std::string>()) return *name;
    return value.integer();
}

std::vector<TensorSpec> tensors(const Value& list) {
    std::vector<TensorSpec> out;
    for (const Value& each : list.list()) {
        TensorSpec spec{each["name"].text(), {}, each["dtype"].text()};
        for (const Value& size : each["shape"].list()) spec.shape.push_back(axis_of(size));
        out.push_back(std::move(spec));
    }
    return out;
}

Sampling sampling_of(const Value& tree) {
    Sampling out{sampler_named(tree["sampler"].text()), tree["num_steps"].integer(), tree["eta"].number(),
                 tree["guidance_scale"].number(),       std::nullopt,                tree["indicator_scale"].number(),
                 std::nullopt};
    const Value &scale = tree["indicator_guidance_scale"], &clip = tree["clip"];
    if (!scale.is_null()) out.indicator_guidance_scale = scale.number();
    if (!clip.is_null()) out.clip = {clip.list()[0].number(), clip.list()[1].number()};
    return out;
}

}  // namespace

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

BundleConfig BundleConfig::from_json(std::string_view content, const std::string& path) {
    const Value tree = shape::parse(config_file(), content, path);
    BundleConfig out = of(tree);
    out.num_codes = tree["num_codes"].integer();
    out.num_top_codes = tree["num_top_codes"].integer();
    const Value* distill = tree["run"].as<json::Object>() ? tree["run"].find("distill") : nullptr;
    out.takes_negative_prompt = !distill || distill->is_null();
    return out;
}

BundleConfig BundleConfig::of(const Value& tree) {
    const std::string& family = tree["family"].text();
    const Value &latent = tree["latent_shape"], &context = tree["context_shape"];
    BundleConfig out{
        .family = family == "pixel" ? Family::pixel : family == "sd" ? Family::sd : Family::sdxl,
        .name = tree["name"].text(),
        .precision = tree["precision"].text(),
        .latent_shape = {latent.list()[0].integer(), latent.list()[1].integer(), latent.list()[2].integer()},
        .image_size = tree["image_size"].integer(),
        .channels = tree["channels"].integer(),
        .size_multiple = tree["size_multiple"].integer(),
        .context_tokens = axis_of(context.list()[0]),
        .context_dim = context.list()[1].integer(),
        .prompt_free = tree["prompt_free"].boolean(),
        .text = {},
        .added = tensors(tree["added"]),
        .empty_negative_is_zero = tree["empty_negative_is_zero"].boolean(),
        .cond = tensors(tree["cond"]),
        .num_codes = 0,
        .num_top_codes = 0,
        .sampling = sampling_of(tree["sampling"]),
        .takes_negative_prompt = true,
    };
    for (const Value& spec : tree["text"].list()) {
        out.text.push_back({spec["tokenizer"].text(), spec["input"].text(), spec["max_length"].integer(),
                            spec["pad_id"].integer()});
    }
    return out;
}

size_t Codes::num_top_codes() const {
    std::set<int64_t> tops;
    for (const Leaf& leaf : leaves) tops.insert(leaf.top_code);
    return tops.size();
}

Codes Codes::from_json(std::string_view content, const std::string& path) {
    return of(shape::parse(codes_file(), content, path)["leaves"]);
}

Codes Codes::of(const Value& leaves) {
    Codes out;
    for (const Value& leaf : leaves.list()) {
        out.leaves.push_back({leaf["code"].integer(), leaf["top_code"].integer(), leaf["size"].integer(),
                              leaf["share_in_top"].number()});
    }
    return out;
}

}  // namespace ddm
