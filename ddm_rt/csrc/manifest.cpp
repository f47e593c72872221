#include "manifest.h"

#include "config_shape.h"
#include "error.h"
#include "noise.h"
#include "text.h"

namespace ddm {
namespace {

using json::Value;

const shape::Check& manifest_file() {
    using namespace shape;
    static const Check code = integer({.ge = -1});
    static const Check request = object({
        {"prompt", nullable(either("str", text(), "tuple[str, ...]", list(text()))), "null"},
        {"negative_prompt", nullable(text()), "null"},
        {"n", positive()},
        {"seed", seed()},
        {"codes", nullable(list(code)), "null"},
        {"balance", one_of({"on", "off", "auto"})},
        {"leave_alone", nullable(list(text())), "null"},
        {"scope", nullable(text()), "null"},
        {"shuffle", boolean(), "false"},
        {"height", positive()},
        {"width", positive()},
        {"guidance_scale", nullable(scale()), "null"},
        {"indicator_guidance_scale", scale()},
        {"indicator_scale", scale()},
        {"eta", fraction()},
        {"clip", clip()},
        {"guidance_interval", nullable(fixed({number(), number()})), "null"},
        {"apg", nullable(fixed({number({.gt = 0}), scale()})), "null"},
        {"cads", nullable(fixed({number({.gt = 0}), fraction(), fraction()})), "null"},
        {"provenance", boolean(), "false"},
        {"provenance_code", boolean(), "false"},
    });
    static const Check image = object({
        {"file", image_file()},
        {"seed", seed()},
        {"code", code},
        {"top_code", code},
        {"position", nullable(integer({.ge = 0})), "null"},
        {"prompt", nullable(text()), "null"},
    });
    static const Check check = object({
        {"schema", one_of(std::vector<int64_t>{1}), "1"},
        {"bundle_id", hash()},
        {"calibration_id", nullable(text()), "null"},
        {"request", request},
        {"target", nullable(text())},
        {"sampler", sampler()},
        {"num_steps", positive()},
        {"backend", text()},
        {"precision", text()},
        {"threads", integer()},
        {"versions", mapping(text())},
        {"bucket", nullable(positive()), "null"},
        {"images", list(image, 1)},
    });
    return check;
}

std::optional<std::string> optional_text(const Value& value) {
    return value.is_null() ? std::nullopt : std::optional(value.text());
}

std::vector<std::string> texts(const Value& value) {
    std::vector<std::string> out;
    for (const Value& each : value.list()) out.push_back(each.text());
    return out;
}

std::optional<Pair> optional_pair(const Value& value) {
    if (value.is_null()) return std::nullopt;
    return Pair(value.list()[0].number(), value.list()[1].number());
}

Request request_of(const Value& tree) {
    Request out;
    const Value& prompt = tree["prompt"];
    if (const auto* text = prompt.as<std::string>()) {
        out.prompts = {*text};
    } else if (!prompt.is_null()) {
        out.prompts = texts(prompt);
        out.one_prompt = false;
    }
    out.negative_prompt = optional_text(tree["negative_prompt"]);
    out.n = tree["n"].integer();
    out.seed = tree["seed"].natural();
    if (!tree["codes"].is_null()) {
        out.codes.emplace();
        for (const Value& code : tree["codes"].list()) out.codes->push_back(code.integer());
    }
    out.balance = balance_named(tree["balance"].text());
    if (!tree["leave_alone"].is_null()) out.leave_alone = texts(tree["leave_alone"]);
    out.scope = optional_text(tree["scope"]);
    out.shuffle = tree["shuffle"].boolean();
    out.height = tree["height"].integer();
    out.width = tree["width"].integer();
    if (!tree["guidance_scale"].is_null()) out.guidance_scale = tree["guidance_scale"].number();
    out.indicator_guidance_scale = tree["indicator_guidance_scale"].number();
    out.indicator_scale = tree["indicator_scale"].number();
    out.eta = tree["eta"].number();
    out.clip = optional_pair(tree["clip"]);
    out.guidance_interval = optional_pair(tree["guidance_interval"]);
    out.apg = optional_pair(tree["apg"]);
    if (const Value& cads = tree["cads"]; !cads.is_null()) {
        out.cads = Triple{cads.list()[0].number(), cads.list()[1].number(), cads.list()[2].number()};
    }
    out.provenance = tree["provenance"].boolean();
    out.provenance_code = tree["provenance_code"].boolean();
    return out;
}

template <typename T>
Value or_null(const std::optional<T>& value) {
    return value ? Value(*value) : Value();
}

template <typename T>
Value list_of(const std::vector<T>& values) {
    return Value(json::List(values.begin(), values.end()));
}

Value or_null(const std::optional<Pair>& pair) {
    return pair ? Value(json::List{pair->first, pair->second}) : Value();
}

Value tree_of(const Request& request) {
    Value prompt;
    if (!request.one_prompt) prompt = list_of(request.prompts);
    else if (!request.prompts.empty()) prompt = Value(request.prompts[0]);
    json::Object out{
        {"prompt", prompt},
        {"negative_prompt", or_null(request.negative_prompt)},
        {"n", request.n},
        {"seed", request.seed},
        {"codes", request.codes ? list_of(*request.codes) : Value()},
        {"balance", name_of(request.balance)},
    };
    if (request.leave_alone) out.emplace_back("leave_alone", list_of(*request.leave_alone));
    const json::Object rest{
        {"scope", or_null(request.scope)},
        {"shuffle", request.shuffle},
        {"height", request.height},
        {"width", request.width},
        {"guidance_scale", or_null(request.guidance_scale)},
        {"indicator_guidance_scale", request.indicator_guidance_scale},
        {"indicator_scale", request.indicator_scale},
        {"eta", request.eta},
        {"clip", or_null(request.clip)},
    };
    out.insert(out.end(), rest.begin(), rest.end());
    if (request.guidance_interval) out.emplace_back("guidance_interval", or_null(request.guidance_interval));
    if (request.apg) out.emplace_back("apg", or_null(request.apg));
    if (const auto& cads = request.cads) out.emplace_back("cads", Value(json::List(cads->begin(), cads->end())));
    if (request.provenance) out.emplace_back("provenance", true);
    if (request.provenance_code) out.emplace_back("provenance_code", true);
    return Value(std::move(out));
}

std::string file_name(size_t number) {
    const std::string digits = std::to_string(number);
    return std::string(digits.size() < 5 ? 5 - digits.size() : 0, '0') + digits + ".png";
}

}  // namespace

Manifest Manifest::parse(std::string_view content, const std::string& where) {
    const Value tree = shape::parse(manifest_file(), content, where);
    Manifest out{
        .bundle_id = tree["bundle_id"].text(),
        .calibration_id = optional_text(tree["calibration_id"]),
        .request = request_of(tree["request"]),
        .target = optional_text(tree["target"]),
        .sampler = sampler_named(tree["sampler"].text()),
        .num_steps = tree["num_steps"].integer(),
        .made_by = {tree["backend"].text(), tree["precision"].text(), tree["threads"].integer(), {}},
        .bucket = tree["bucket"].is_null() ? std::nullopt : std::optional(tree["bucket"].integer()),
        .images = {},
    };
    for (const auto& [name, version] : tree["versions"].object()) {
        out.made_by.versions.emplace_back(name, version.text());
    }
    for (const Value& image : tree["images"].list()) {
        const Value& position = image["position"];
        out.images.push_back({image["file"].text(), image["seed"].natural(), image["code"].integer(),
                              image["top_code"].integer(),
                              position.is_null() ? std::nullopt : std::optional(position.integer()),
                              optional_text(image["prompt"])});
    }
    return out;
}

Value Manifest::tree() const {
    json::Object versions;
    for (const auto& [name, version] : made_by.versions) versions.emplace_back(name, version);
    json::List records;
    for (const ImageRecord& image : images) {
        json::Object record{{"file", image.file},
                            {"seed", image.seed},
                            {"code", image.code},
                            {"top_code", image.top_code},
                            {"position", or_null(image.position)}};
        if (image.prompt) record.emplace_back("prompt", *image.prompt);
        records.emplace_back(std::move(record));
    }
    json::Object out{
        {"schema", 1},
        {"bundle_id", bundle_id},
        {"calibration_id", or_null(calibration_id)},
        {"request", tree_of(request)},
        {"target", or_null(target)},
        {"sampler", name_of(sampler)},
        {"num_steps", num_steps},
        {"backend", made_by.backend},
        {"precision", made_by.precision},
        {"threads", made_by.threads},
        {"versions", std::move(versions)},
    };
    if (bucket) out.emplace_back("bucket", *bucket);
    out.emplace_back("images", std::move(records));
    return Value(std::move(out));
}

std::string Manifest::write() const { return json::write(tree(), 1) + "\n"; }

std::vector<ImageRecord> image_records(const Request& request, const Codes& known, const std::vector<int64_t>& codes,
                                       const std::optional<std::vector<std::optional<int64_t>>>& positions) {
    std::vector<ImageRecord> out;
    for (size_t i = 0; i < codes.size(); ++i) {
        ImageRecord record{file_name(i), derive(request.seed, static_cast<uint32_t>(i)), codes[i], NULL_CODE, {}, {}};
        if (codes[i] != NULL_CODE) record.top_code = known.leaves[static_cast<size_t>(codes[i])].top_code;
        if (positions) record.position = (*positions)[i];
        if (!request.one_prompt) record.prompt = request.prompts[i % request.prompts.size()];
        out.push_back(std::move(record));
    }
    return out;
}

}  // namespace ddm
