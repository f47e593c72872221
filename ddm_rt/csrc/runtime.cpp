#include "runtime.h"

#include "config_shape.h"
#include "error.h"
#include "text.h"

namespace ddm {
namespace {

using json::Value;

const shape::Check& runtime_file() {
    using namespace shape;
    static const Check check = [] {
        std::vector<Field> schedule = schedule_fields();
        schedule.push_back({"alphas_cumprod", anything(), "null"});
        std::vector<Field> fields{{"schema_version", version_1(), "1"}, {"requires", list(shape::text()), "[]"}};
        for (Field& field : bundle_fields()) fields.push_back(std::move(field));
        fields.push_back({"takes_negative_prompt", boolean(), "true"});
        fields.push_back({"sampling", sampling()});
        fields.push_back({"schedule", open_object(std::move(schedule))});
        fields.push_back({"codes", list(leaf()), "[]"});
        return open_object(std::move(fields));
    }();
    return check;
}

}  // namespace

Runtime Runtime::from_json(std::string_view content, const std::string& path) {
    const Value tree = shape::parse(runtime_file(), content, path);
    for (const Value& name : tree["requires"].list()) {  // this version knows none
        throw Error(Status::bundle, concat(path, ": field requires: the bundle needs ", repr(name.text()),
                                           ", which this version doesn't know; a newer ddm_rt reads it"));
    }
    const Value& schedule = tree["schedule"];
    Runtime out{BundleConfig::of(tree), Codes::of(tree["codes"]),
                Schedule::of(schedule, &schedule["alphas_cumprod"], path, "schedule.alphas_cumprod")};
    out.config.num_codes = static_cast<int64_t>(out.codes.num_codes());
    out.config.num_top_codes = static_cast<int64_t>(out.codes.num_top_codes());
    out.config.takes_negative_prompt = tree["takes_negative_prompt"].boolean();
    return out;
}

}  // namespace ddm
