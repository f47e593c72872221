#include "manifest.h"

#include <algorithm>

#include "error.h"
#include "fields.h"
#include "noise.h"
#include "text.h"

namespace ddm {
namespace {

constexpr size_t TREE_OF_TEXT = 10;  // bytes of a tree for one of a manifest's text, at most

using json::Out;

// An image's file: "00000.png", of five to ten digits.
std::string image_file(const Field& field) {
    const std::string found = field.text();
    const size_t digits = found.find_first_not_of("0123456789");
    if (digits < 5 || digits > 10 || found.substr(digits) != ".png") {
        field.refuse("a name such as 00000.png");
    }
    return found;
}

std::optional<Triple> triple_of(const std::optional<Field>& field) {
    if (!field) return std::nullopt;
    const auto numbers = field->list_of(3);
    return Triple{numbers[0].positive(), numbers[1].number(0, 1), numbers[2].number(0, 1)};
}

std::optional<Pair> apg_of(const std::optional<Field>& field) {
    if (!field) return std::nullopt;
    const auto numbers = field->list_of(2);
    return Pair(numbers[0].positive(), numbers[1].number(0));
}

Request request_of(const Field& tree) {
    const auto maybe = [&](const char* name, auto get) {
        const auto found = tree.find(name);
        return found ? std::optional(((*found).*get)()) : std::nullopt;
    };
    const auto prompt = tree.find("prompt"), codes = tree.find("codes"), scale = tree.find("guidance_scale"),
               cache = tree.find("cache");
    const bool one_prompt = !prompt || prompt->value().is_string();
    std::optional<std::vector<int64_t>> given;
    if (codes) given.emplace();
    if (codes) codes->each([&](const Field& code) { given->push_back(code.whole(NULL_CODE)); });
    Request out{
        .prompts = !prompt      ? std::vector<std::string>()
                   : one_prompt ? std::vector{prompt->text()}
                                : prompt->texts(),
        .negative_prompt = maybe("negative_prompt", &Field::text),
        .n = tree["n"].whole(1),
        .seed = tree["seed"].seed(),
        .codes = given,
        .balance = balance_named(tree["balance"].one_of({"on", "off", "auto"})),
        .leave_alone = maybe("leave_alone", &Field::texts),
        .scope = maybe("scope", &Field::text),
        .shuffle = tree.get("shuffle", false).boolean(),
        .height = tree["height"].whole(1),
        .width = tree["width"].whole(1),
        .guidance_scale = scale ? std::optional(scale->number(0)) : std::nullopt,
        .indicator_guidance_scale = tree["indicator_guidance_scale"].number(0),
        .indicator_scale = tree["indicator_scale"].number(0),
        .eta = tree["eta"].number(0, 1),
        .clip = tree["clip"].or_null() ? std::optional(tree["clip"].pair()) : std::nullopt,
        .guidance_interval = maybe("guidance_interval", &Field::pair),
        .apg = apg_of(tree.find("apg")),
        .cads = triple_of(tree.find("cads")),
        .cache = cache ? std::optional(Reuse::read(*cache)) : std::nullopt,
        .provenance = tree.get("provenance", false).boolean(),
        .provenance_code = tree.get("provenance_code", false).boolean(),
        .one_prompt = one_prompt,
    };
    tree.nothing_else();
    return out;
}

ImageRecord record_of(const Field& tree) {
    const auto position = tree.find("position"), prompt = tree.find("prompt");
    ImageRecord out{image_file(tree["file"]),
                    tree["seed"].seed(),
                    tree["code"].whole(NULL_CODE),
                    tree["top_code"].whole(NULL_CODE),
                    {},
                    {}};
    if (position) out.position = position->whole(0);
    if (prompt) out.prompt = prompt->text();
    tree.nothing_else();
    return out;
}

template <typename T>
Out or_null(const std::optional<T>& value) {
    return value ? Out(*value) : Out();
}

Out or_null(const std::optional<Pair>& pair) { return pair ? Out::array({pair->first, pair->second}) : Out(); }

Out tree_of(const Request& request) {
    Out prompt;
    if (!request.one_prompt) prompt = request.prompts;
    else if (!request.prompts.empty()) prompt = request.prompts[0];
    Out out{
        {"prompt", prompt},
        {"negative_prompt", or_null(request.negative_prompt)},
        {"n", request.n},
        {"seed", request.seed},
        {"codes", or_null(request.codes)},
        {"balance", name_of(request.balance)},
    };
    if (request.leave_alone) out["leave_alone"] = *request.leave_alone;
    out.update({
        {"scope", or_null(request.scope)},
        {"shuffle", request.shuffle},
        {"height", request.height},
        {"width", request.width},
        {"guidance_scale", or_null(request.guidance_scale)},
        {"indicator_guidance_scale", request.indicator_guidance_scale},
        {"indicator_scale", request.indicator_scale},
        {"eta", request.eta},
        {"clip", or_null(request.clip)},
    });
    if (request.guidance_interval) out["guidance_interval"] = or_null(request.guidance_interval);
    if (request.apg) out["apg"] = or_null(request.apg);
    if (request.cads) out["cads"] = *request.cads;
    if (request.cache) out["cache"] = request.cache->tree();
    if (request.provenance) out["provenance"] = true;
    if (request.provenance_code) out["provenance_code"] = true;
    return out;
}

std::string file_name(size_t number) {
    const std::string digits = std::to_string(number);
    return std::string(digits.size() < 5 ? 5 - digits.size() : 0, '0') + digits + ".png";
}

// It begins with U+FEFF, which says that it is in UTF-8.
constexpr const char* kBegin = R"(<?xpacket begin=")"
                               "\xEF\xBB\xBF"
                               R"(" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
   xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
   xmlns:ddm_rt="urn:ddm-rt:"
   Iptc4xmpExt:DigitalSourceType="http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
   Iptc4xmpExt:AISystemUsed="ddm-rt")";
constexpr const char* kEnd = R"(/>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="r"?>)";

template <typename T>
std::string own(const char* name, const T& value) {
    return concat("\n   ddm_rt:", name, "=\"", value, "\"");
}

}  // namespace

Manifest Manifest::parse(std::string_view content, const std::string& where) {
    const json::Value tree = ddm::parse(content, where, std::max(json::LARGEST_TREE, TREE_OF_TEXT * content.size()));
    const Field file(tree, where);
    file.get("schema", 1).whole(1, 1);
    const auto calibration = file.find("calibration_id"), target = file["target"].or_null(),
               bucket = file.find("bucket");
    Manifest out{
        .bundle_id = file["bundle_id"].hash(),
        .calibration_id = calibration ? std::optional(calibration->text()) : std::nullopt,
        .request = request_of(file["request"]),
        .target = target ? std::optional(target->text()) : std::nullopt,
        .sampler = sampler_of(file["sampler"]),
        .num_steps = file["num_steps"].whole(1),
        .made_by = {file["backend"].text(), file["precision"].text(), file["threads"].whole(), {}},
        .bucket = bucket ? std::optional(bucket->whole(1)) : std::nullopt,
        .images = {},
    };
    file["versions"].each_member([&](const std::string& name, const Field& version) {
        out.made_by.versions.emplace_back(name, version.text());
    });
    file["images"].each([&](const Field& image) { out.images.push_back(record_of(image)); });
    if (out.images.empty()) file["images"].refuse("at least one image");
    file.nothing_else();
    return out;
}

Out Manifest::tree() const {
    Out versions = Out::object(), records = Out::array();
    for (const auto& [name, version] : made_by.versions) versions[name] = version;
    for (const ImageRecord& image : images) {
        Out record{{"file", image.file},
                   {"seed", image.seed},
                   {"code", image.code},
                   {"top_code", image.top_code},
                   {"position", or_null(image.position)}};
        if (image.prompt) record["prompt"] = *image.prompt;
        records.push_back(std::move(record));
    }
    Out out{
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
    if (bucket) out["bucket"] = *bucket;
    out["images"] = std::move(records);
    return out;
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

std::vector<std::string> packets(const Manifest& manifest) {
    std::vector<std::string> out;
    if (!manifest.request.provenance) return out;
    const std::string bundle = own("bundle", manifest.bundle_id);
    for (const ImageRecord& image : manifest.images) {
        const std::string code = manifest.request.provenance_code ? own("code", image.code) : "";
        out.push_back(concat(kBegin, bundle, own("seed", image.seed), code, kEnd));
    }
    out.push_back(concat(kBegin, bundle, kEnd));
    return out;
}

}  // namespace ddm
