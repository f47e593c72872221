#include "runtime.h"

#include <algorithm>
#include <set>

#include "error.h"
#include "fields.h"
#include "text.h"
#include "unicode.h"

namespace ddm {
namespace {

constexpr size_t NAME_LENGTH = 64;        // of a factor or a value
constexpr int64_t MOST_TOKENS = 1 << 16;  // of a prompt: no text encoder reads so many

Axis axis_of(const Field& field) {
    if (field.value().is_string()) return field.text();
    return field.whole();
}

TensorSpec tensor_of(const Field& tree) {
    TensorSpec out{tree["name"].text(), {}, tree.get("dtype", "float32").one_of({"float32", "float16", "int64"})};
    tree["shape"].each([&](const Field& side) { out.shape.push_back(axis_of(side)); });
    return out;
}

TextSpec text_spec(const Field& tree) {
    return {tree["tokenizer"].text(), tree["input"].text(), tree["max_length"].whole(1, MOST_TOKENS),
            tree["pad_id"].whole(0)};
}

Leaf leaf_of(const Field& tree) {
    return {tree["code"].whole(0), tree["top_code"].whole(0), tree["size"].whole(0), tree["share_in_top"].number(0, 1)};
}

Factor factor_of(const Field& tree) {
    Factor out{tree["name"].text(), tree["values"].texts(), {}};
    tree["value_of"].each([&](const Field& value) { out.value_of.push_back(static_cast<size_t>(value.whole(0))); });
    return out;
}

template <typename Make>
auto all(const Field& list, Make make) -> std::vector<decltype(make(list))> {
    std::vector<decltype(make(list))> out;
    list.each([&](const Field& item) { out.push_back(make(item)); });
    return out;
}

// As config.json and runtime.json both say it.
RuntimeConfig config_of(const Field& tree) {
    const std::string name = tree["name"].text();
    const auto latent = tree["latent_shape"].list_of(3), context = tree["context_shape"].list_of(2);
    const int64_t channels = tree["channels"].whole(1, 3);
    if (channels == 2) tree["channels"].refuse("1 or 3");
    return {
        .family = static_cast<Family>(tree.get("family", "pixel").choice({"pixel", "sd", "sdxl"})),
        .name = name,
        .precision = tree.get("precision", "fp32").one_of({"fp32", "fp16", "bf16", "int8", "fp8", "int8-weights"}),
        .latent_shape = {latent[0].whole(1), latent[1].whole(1), latent[2].whole(1)},
        .image_size = tree["image_size"].whole(1),
        .channels = channels,
        .size_multiple = tree["size_multiple"].whole(1),
        .context_tokens = axis_of(context[0]),
        .context_dim = context[1].whole(),
        .prompt_free = tree["prompt_free"].boolean(),
        .takes_negative_prompt = tree.get("takes_negative_prompt", true).boolean(),
        .text = all(tree.get("text", json::Value::array()), text_spec),
        .added = all(tree.get("added", json::Value::array()), tensor_of),
        .empty_negative_is_zero = tree.get("empty_negative_is_zero", false).boolean(),
        .cond = all(tree["cond"], tensor_of),
        .sampling = Sampling::of(tree.get("sampling", json::Value::object())),
    };
}

void check_version(const Field& file) { file.get("schema_version", 1).whole(1, 1); }

void check_codes(const Codes& codes, int64_t num_codes, const Field& where) {
    bool in_order = static_cast<int64_t>(codes.num_codes()) == num_codes, gaps = false;
    for (size_t i = 0; i < codes.num_codes(); ++i) {
        in_order = in_order && codes.leaves[i].code == static_cast<int64_t>(i);
        gaps = gaps || codes.leaves[i].top_code >= static_cast<int64_t>(codes.num_top_codes());
    }
    if (!in_order) where.fail(Status::bundle, concat(": expected the codes 0 to ", num_codes - 1, " in order"));
    if (gaps) where.fail(Status::bundle, ": expected top codes that are numbered from 0 without gaps");
}

bool all_different(const std::vector<std::string>& names) {
    return std::set<std::string>(names.begin(), names.end()).size() == names.size();
}

bool names_well(const std::string& text) {
    const size_t length = code_points(text);
    return length > 0 && length <= NAME_LENGTH && is_printable(text) && strip(text) == text &&
           text.find_first_of(":=,") == text.npos;
}

void check_factor(const Factor& factor, size_t num_codes, const Field& where) {
    std::vector<std::string> names{factor.name};
    names.insert(names.end(), factor.values.begin(), factor.values.end());
    for (const std::string& name : names) {
        if (names_well(name)) continue;
        where.fail(Status::bundle, concat(": ", repr(name), " can't be named by a target; expected 1 to ", NAME_LENGTH,
                                          " printable characters without : = , and without space at either end"));
    }
    if (factor.values.size() < 2 || !all_different(factor.values)) {
        where.fail(Status::bundle, concat(": the values of ", factor.name, " are ", join(", ", factor.values),
                                          "; expected two or more, each once"));
    }
    const std::set<size_t> used(factor.value_of.begin(), factor.value_of.end());
    if (factor.value_of.size() != num_codes || used.size() != factor.values.size() || *used.rbegin() >= used.size()) {
        where.fail(Status::bundle, concat(": value_of of ", factor.name, ": expected one of ", factor.values.size(),
                                          " values for each of ", num_codes, " codes, each used"));
    }
}

void check_factors(const Codes& codes, const Field& where) {
    std::vector<std::string> names;
    for (const Factor& factor : codes.factors) names.push_back(factor.name);
    if (std::find(names.begin(), names.end(), "code") != names.end() || !all_different(names)) {
        where.fail(Status::bundle, concat(": the names are ", join(", ", names),
                                          "; expected different ones, and none that is \"code\""));
    }
    for (const Factor& factor : codes.factors) check_factor(factor, codes.num_codes(), where);
    std::set<std::vector<size_t>> cells;
    for (size_t code = 0; code < codes.num_codes() && !names.empty(); ++code) {
        if (codes.factors[0].value_of[code] != static_cast<size_t>(codes.leaves[code].top_code)) {
            where.fail(Status::bundle,
                       concat(": expected the top code of each code as its value of ", names[0], ", the first factor"));
        }
        std::vector<size_t> cell;
        for (const Factor& factor : codes.factors) cell.push_back(factor.value_of[code]);
        cells.insert(std::move(cell));
    }
    if (!names.empty() && cells.size() != codes.num_codes()) {
        where.fail(Status::bundle, ": two codes have the same value of every factor; expected different ones");
    }
}

}  // namespace

size_t Codes::num_top_codes() const {
    std::set<int64_t> tops;
    for (const Leaf& leaf : leaves) tops.insert(leaf.top_code);
    return tops.size();
}

Runtime Runtime::of_format_2(const Field& file) {
    check_version(file);
    const Field needed = file.get("requires", json::Value::array());
    for (const std::string& name : needed.texts()) {  // this version knows none
        needed.fail(Status::bundle, concat(": the bundle needs ", repr(name), ", which a newer ddm_rt knows"));
    }
    const Field codes = file.get("codes", json::Value::array()), factors = file.get("factors", json::Value::array());
    Runtime out{config_of(file), {all(codes, leaf_of), all(factors, factor_of)}, Schedule::of(file["schedule"])};
    check_codes(out.codes, static_cast<int64_t>(out.codes.num_codes()), codes);
    check_factors(out.codes, factors);
    return out;
}

Runtime Runtime::of_format_1(const Field& config, const Field& schedule, const Field& codes) {
    check_version(config);
    schedule["schema_version"].whole(1, 1);
    codes.get("schema_version", 1).whole();
    const Field leaves = codes.get("leaves", json::Value::array());
    Runtime out{config_of(config), {all(leaves, leaf_of)}, Schedule::of(schedule)};
    check_codes(out.codes, config["num_codes"].whole(0), leaves);
    out.config.takes_negative_prompt = !config.get("run", json::Value::object()).find("distill");
    return out;
}

const char* name_of(Family family) { return family == Family::pixel ? "pixel" : family == Family::sd ? "sd" : "sdxl"; }

const char* name_of(Balance balance) {
    return balance == Balance::on ? "on" : balance == Balance::off ? "off" : "auto";
}

Balance balance_named(std::string_view name) {
    for (const Balance balance : {Balance::on, Balance::off, Balance::automatic}) {
        if (name == name_of(balance)) return balance;
    }
    throw about("balance", concat(" is ", repr(name), "; expected one of: on, off, auto"));
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
