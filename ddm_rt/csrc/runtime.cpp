#include "runtime.h"

#include <algorithm>
#include <set>

#include "config_shape.h"
#include "error.h"
#include "text.h"

namespace ddm {
namespace {

using json::Value;

constexpr size_t NAME_LENGTH = 64;  // of a factor or a value

shape::Check axis() { return shape::either("int", shape::integer(), "str", shape::text()); }

shape::Check tensor_spec() {
    return shape::open_object({
        {"name", shape::text()},
        {"shape", shape::list(axis())},
        {"dtype", shape::one_of({"float32", "float16", "int64"}), "\"float32\""},
    });
}

shape::Check text_spec() {
    return shape::open_object({
        {"tokenizer", shape::text()},
        {"input", shape::text()},
        {"max_length", shape::positive()},
        {"pad_id", shape::integer({.ge = 0})},
    });
}

shape::Check leaf() {
    return shape::open_object({
        {"code", shape::integer({.ge = 0})},
        {"top_code", shape::integer({.ge = 0})},
        {"size", shape::integer({.ge = 0})},
        {"share_in_top", shape::fraction()},
    });
}

shape::Check factor() {
    return shape::open_object({
        {"name", shape::text()},
        {"values", shape::list(shape::text())},
        {"value_of", shape::list(shape::integer({.ge = 0}))},
    });
}

// An object that begins as config.json and runtime.json both do.
shape::Check described(std::vector<shape::Field> rest) {
    using namespace shape;
    std::vector<Field> fields{
        {"name", shape::text()},
        {"family", one_of({"pixel", "sd", "sdxl"}), "\"pixel\""},
        {"precision", one_of({"fp32", "fp16", "bf16", "int8", "fp8"}), "\"fp32\""},
        {"latent_shape", fixed({positive(), positive(), positive()})},
        {"image_size", positive()},
        {"channels", one_of(std::vector<int64_t>{1, 3})},
        {"size_multiple", positive()},
        {"context_shape", fixed({axis(), integer()})},
        {"prompt_free", boolean()},
        {"takes_negative_prompt", boolean(), "true"},
        {"text", list(text_spec()), "[]"},
        {"added", list(tensor_spec()), "[]"},
        {"empty_negative_is_zero", boolean(), "false"},
        {"cond", list(tensor_spec())},
        {"sampling", sampling()},
        {"codes", list(leaf()), "[]"},
        {"factors", list(factor()), "[]"},
    };
    for (Field& field : rest) fields.push_back(std::move(field));
    return open_object(std::move(fields));
}

shape::Field version() { return {"schema_version", shape::one_of(std::vector<int64_t>{1}), "1"}; }

// What is read of runtime.json before anything else: later versions may change everything else.
const shape::Check& runtime_head() {
    static const shape::Check check = shape::open_object({version(), {"requires", shape::list(shape::text()), "[]"}});
    return check;
}

const shape::Check& runtime_file() {
    using namespace shape;
    static const Check check = [] {
        std::vector<Field> schedule = schedule_fields();
        schedule.push_back({"alphas_cumprod", anything(), "null"});
        return described({{"schedule", open_object(std::move(schedule))}});
    }();
    return check;
}

const shape::Check& config_file() {
    using namespace shape;
    static const Check check = described({
        version(),
        {"num_codes", integer({.ge = 0})},
        {"model", mapping(anything())},
        {"run", mapping(anything())},
    });
    return check;
}

const shape::Check& codes_file() {
    using namespace shape;
    static const Check check = open_object({
        {"leaves", list(leaf()), "[]"},
        {"factors", list(factor()), "[]"},
        {"schema_version", integer(), "1"},
        {"origin", shape::text()},
        {"tree", list(fixed({integer(), integer(), number()})), "[]"},
        {"exemplars", list(list(integer())), "[]"},
        {"stability_ari", list(number()), "[]"},
        {"rule", mapping(anything()), "{}"},
    });
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

RuntimeConfig config_of(const Value& tree) {
    const std::string& family = tree["family"].text();
    const Value &latent = tree["latent_shape"], &context = tree["context_shape"];
    RuntimeConfig out{
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
        .takes_negative_prompt = tree["takes_negative_prompt"].boolean(),
        .text = {},
        .added = tensors(tree["added"]),
        .empty_negative_is_zero = tree["empty_negative_is_zero"].boolean(),
        .cond = tensors(tree["cond"]),
        .sampling = Sampling::of(tree["sampling"]),
    };
    for (const Value& spec : tree["text"].list()) {
        out.text.push_back({spec["tokenizer"].text(), spec["input"].text(), spec["max_length"].integer(),
                            spec["pad_id"].integer()});
    }
    return out;
}

std::vector<Factor> factors_of(const Value& list) {
    std::vector<Factor> out;
    for (const Value& each : list.list()) {
        Factor factor{each["name"].text(), {}, {}};
        for (const Value& value : each["values"].list()) factor.values.push_back(value.text());
        for (const Value& value : each["value_of"].list()) {
            factor.value_of.push_back(static_cast<size_t>(value.integer()));
        }
        out.push_back(std::move(factor));
    }
    return out;
}

Codes codes_of(const Value& leaves) {
    Codes out;
    for (const Value& leaf : leaves.list()) {
        out.leaves.push_back({leaf["code"].integer(), leaf["top_code"].integer(), leaf["size"].integer(),
                              leaf["share_in_top"].number()});
    }
    return out;
}

void check_codes(const Codes& codes, int64_t num_codes, const std::string& where, const char* source = "") {
    bool in_order = static_cast<int64_t>(codes.num_codes()) == num_codes, gaps = false;
    for (size_t i = 0; i < codes.num_codes(); ++i) {
        in_order = in_order && codes.leaves[i].code == static_cast<int64_t>(i);
        gaps = gaps || codes.leaves[i].top_code >= static_cast<int64_t>(codes.num_top_codes());
    }
    if (!in_order) {
        throw Error(Status::bundle, concat(where, ": expected codes 0 to ", num_codes - 1, " in order", source));
    }
    if (gaps) throw Error(Status::bundle, where + ": top codes must be numbered from 0 without gaps");
}

bool all_different(std::vector<std::string> names) {
    std::sort(names.begin(), names.end());
    return std::adjacent_find(names.begin(), names.end()) == names.end();
}

bool names_well(const std::string& text) {
    const size_t length = code_points(text);
    return length > 0 && length <= NAME_LENGTH && is_printable(text) && strip(text) == text &&
           text.find_first_of(":=,") == text.npos;
}

void check_factor(const Factor& factor, size_t num_codes, const std::string& where) {
    std::vector<std::string> names{factor.name};
    names.insert(names.end(), factor.values.begin(), factor.values.end());
    for (const std::string& name : names) {
        if (names_well(name)) continue;
        throw Error(Status::bundle, concat(where, ": ", repr(name), " is no name that a target can have; expected 1 to ",
                                           NAME_LENGTH, " printable characters without : = , and without space at either "
                                           "end"));
    }
    if (factor.values.size() < 2 || !all_different(factor.values)) {
        throw Error(Status::bundle, concat(where, ": ", factor.name, ": the values are ", join(", ", factor.values),
                                           "; expected two or more, each once"));
    }
    const std::set<size_t> used(factor.value_of.begin(), factor.value_of.end());
    if (factor.value_of.size() != num_codes || used.size() != factor.values.size() || *used.rbegin() >= used.size()) {
        throw Error(Status::bundle, concat(where, ": ", factor.name, ": field value_of: expected one of ",
                                           factor.values.size(), " values for each of ", num_codes,
                                           " codes, each used"));
    }
}

void check_factors(const Codes& codes, const std::string& where) {
    std::vector<std::string> names;
    for (const Factor& factor : codes.factors) names.push_back(factor.name);
    if (std::find(names.begin(), names.end(), "code") != names.end()) {
        throw Error(Status::bundle,
                    where + ": a factor is named code, which targets call codes by; choose another name");
    }
    if (!all_different(names)) {
        throw Error(Status::bundle, concat(where, ": two factors have the same name; the names are ", join(", ", names)));
    }
    for (const Factor& factor : codes.factors) check_factor(factor, codes.num_codes(), where);
    std::set<std::vector<size_t>> cells;
    for (size_t code = 0; code < codes.num_codes() && !names.empty(); ++code) {
        if (codes.factors[0].value_of[code] != static_cast<size_t>(codes.leaves[code].top_code)) {
            throw Error(Status::bundle, concat(where, ": the top code of each code must be its value of ", names[0],
                                               ", the first factor"));
        }
        std::vector<size_t> cell;
        for (const Factor& factor : codes.factors) cell.push_back(factor.value_of[code]);
        cells.insert(std::move(cell));
    }
    if (!names.empty() && cells.size() != codes.num_codes()) {
        throw Error(Status::bundle, where + ": two codes have the same value of every factor");
    }
}

}  // namespace

size_t Codes::num_top_codes() const {
    std::set<int64_t> tops;
    for (const Leaf& leaf : leaves) tops.insert(leaf.top_code);
    return tops.size();
}

Runtime Runtime::of_format_2(std::string_view content, const std::string& path) {
    const Value whole = shape::parse(shape::anything(), content, path);
    const Value head = shape::parse_tree(runtime_head(), whole, path);
    for (const Value& name : head["requires"].list()) {  // this version knows none
        throw Error(Status::bundle, concat(path, ": field requires: the bundle needs ", repr(name.text()),
                                           ", which this version doesn't know; a newer ddm_rt reads it"));
    }
    const Value tree = shape::parse_tree(runtime_file(), whole, path);
    const Value& schedule = tree["schedule"];
    Runtime out{config_of(tree), codes_of(tree["codes"]),
                Schedule::stored(schedule, &schedule["alphas_cumprod"], path, "schedule.alphas_cumprod")};
    check_codes(out.codes, static_cast<int64_t>(out.codes.num_codes()), path + ": field codes");
    out.codes.factors = factors_of(tree["factors"]);
    check_factors(out.codes, path + ": field factors");
    return out;
}

Runtime Runtime::of_format_1(const std::array<std::string, 3>& contents, const std::array<std::string, 3>& paths) {
    const Value config = shape::parse(config_file(), contents[0], paths[0]);
    const Value codes = shape::parse(codes_file(), contents[2], paths[2]);
    Runtime out{config_of(config), codes_of(codes["leaves"]), Schedule::from_json(contents[1], paths[1])};
    check_codes(out.codes, config["num_codes"].integer(), paths[2] + ": field leaves", ", as config.json says");
    const Value* distill = config["run"].find("distill");
    out.config.takes_negative_prompt = !distill || distill->is_null();
    return out;
}

}  // namespace ddm
