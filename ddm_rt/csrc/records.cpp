#include "records.h"

#include <filesystem>
#include <system_error>

#include "reuse.h"
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

struct Kind {
    bool required;
    void (*check)(const Field&);
};

const Kind& kind_of(const std::string& name) {
    const auto text = [](const Field& field) { field.text(); };
    const auto number = [](const Field& field) { field.number(); };
    const auto pair = [](const Field& field) { field.pair(); };
    const auto positive = [](const Field& field) { field.whole(1); };
    static const std::map<std::string, Kind> kinds{
        {"prompt", {false, [](const Field& it) { it.value().is_string() ? void(it.text()) : void(it.texts()); }}},
        {"negative_prompt", {false, text}},
        {"scope", {false, text}},
        {"sampler", {true, [](const Field& field) { sampler_of(field); }}},
        {"num_steps", {true, positive}},
        {"guidance_scale", {false, number}},
        {"indicator_guidance_scale", {true, number}},
        {"indicator_scale", {true, number}},
        {"eta", {true, number}},
        {"clip", {false, pair}},
        {"height", {true, positive}},
        {"width", {true, positive}},
        {"precision", {true, text}},
        {"guidance_interval", {false, pair}},
        {"apg", {false, pair}},
        {"cads", {false, [](const Field& field) { field.list_of(3), field.numbers(); }}},
        {"cache", {false, [](const Field& field) { Reuse::read(field); }}},
    };
    return kinds.at(name);
}

}  // namespace

Settings settings_of(const Field& tree, std::initializer_list<const char*> names) {
    Settings out;
    for (const char* name : names) {
        const auto [required, check] = kind_of(name);
        const auto field = required ? std::optional(tree[name]) : tree.find(name);
        if (field) check(*field);
        out.emplace_back(name, field ? field->value() : json::Value());
    }
    tree.nothing_else();
    return out;
}

std::vector<std::string> differences(const Bundle& bundle, const std::string& bundle_id, const Settings& settings,
                                     const json::Value& tree, const char* made) {
    std::vector<std::string> found;
    if (!bundle.is_of(bundle_id)) found.push_back("it is of another bundle, " + bundle_id.substr(0, 12));
    const json::Value& request = tree["request"];
    for (const auto& [name, was] : settings) {
        const json::Value& holder = request.contains(name) ? request : tree;
        const json::Value now = holder.value(name, json::Value());
        if (was != now) found.push_back(concat(name, " is ", told(now), " (", made, " ", told(was), ")"));
    }
    return found;
}

json::Value checked_record(const Bundle& bundle, const std::string& name) {
    bundle.check_directory(name.substr(0, name.rfind('/')));
    return parse(content_of(bundle.file(name)), bundle.file(name));
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
