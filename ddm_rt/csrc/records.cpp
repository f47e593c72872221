#include "records.h"

#include <filesystem>
#include <system_error>

#include "schedule.h"
#include "text.h"

namespace ddm {
namespace {

std::string told(const json::Value& value) {
    return value.is_null()     ? "not set"
           : value == ""       ? "empty"
           : value.is_string() ? value.get<std::string>()
                               : value.dump();
}

}  // namespace

void Settings::take_shared(const Field& tree) {
    const auto number = [](const Field& field) { field.number(); };
    const auto pair = [](const Field& field) { field.pair(); };
    const auto positive = [](const Field& field) { field.whole(1); };
    take("sampler", tree["sampler"], [](const Field& field) { sampler_of(field); });
    take("num_steps", tree["num_steps"], positive);
    take("guidance_scale", tree.find("guidance_scale"), number);
    for (const char* name : {"indicator_guidance_scale", "indicator_scale"}) take(name, tree[name], number);
    for (const char* name : {"height", "width"}) take(name, tree[name], positive);
    for (const char* name : {"clip", "guidance_interval", "apg"}) take(name, tree.find(name), pair);
    take("cads", tree.find("cads"), [](const Field& field) { field.list_of(3), field.numbers(); });
}

std::vector<std::string> Settings::differences(const json::Value& tree, const char* made) const {
    std::vector<std::string> found;
    const json::Value& request = tree["request"];
    for (const auto& [name, was] : *this) {
        const json::Value& holder = request.contains(name) ? request : tree;
        const json::Value now = holder.value(name, json::Value());
        if (was != now) found.push_back(concat(name, " is ", told(now), " (", made, " ", told(was), ")"));
    }
    return found;
}

std::vector<std::string> foreign(const Bundle& bundle, const std::string& bundle_id) {
    if (bundle.is_of(bundle_id)) return {};
    return {"it is of another bundle, " + bundle_id.substr(0, 12)};
}

std::string identity_of(const Bundle& bundle, const std::string& folder) {
    std::string found = std::to_string(bundle.codes.num_codes());  // by which it was checked
    for (const auto& [name, entry] : bundle.files) {
        if (!name.starts_with(folder + "/")) continue;
        std::error_code missing;  // then it is refused below
        if (!std::filesystem::is_regular_file(bundle.file(name), missing)) return {};
        const FileState now = state_of_file(bundle.file(name));
        found += concat(bundle.file(name), '\n', entry.sha256, ' ', now.device, ' ', now.inode, ' ', now.bytes, ' ',
                        now.seconds, ' ', now.nanoseconds, '\n');
    }
    return found;
}

}  // namespace ddm
