#include "calibration.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>
#include <set>

#include "fields.h"
#include "groups.h"
#include "numpy.h"
#include "posterior.h"
#include "recent.h"
#include "text.h"

namespace ddm {
namespace {

constexpr double EDGE_TOLERANCE = 1e-3;  // of a share: what the eye can't tell apart isn't refused
constexpr const char* HELP =
    "More codes (train --micro-codes), more audits (calibrate --n) or retraining with more such images is needed";

// What decides the images beside code and seed, field by field.
using Settings = std::vector<std::pair<std::string, json::Value>>;

struct Calibration {
    std::string id, bundle_id;
    std::vector<Attribute> attributes;
    Table counts;  // for each code, over the combinations of groups
    Settings settings;
    std::vector<std::pair<std::string, std::vector<double>>> targets;  // with their weights of codes

    double audited() const {
        double sum = 0;
        for (const Row& row : counts) {
            for (const double n : row) sum += n;
        }
        return sum;
    }

    // Counts over the combinations of these of its attributes, summed over the others.
    Table table(const std::vector<Attribute>& kept) const {
        std::vector<size_t> column(1, 0);  // of each combination of all attributes
        size_t width = 1;
        for (const Attribute& attribute : attributes) {
            const bool counts_here = std::any_of(kept.begin(), kept.end(),
                                                 [&](const Attribute& each) { return each.name == attribute.name; });
            std::vector<size_t> longer;
            for (const size_t before : column) {
                for (size_t group = 0; group < attribute.groups.size(); ++group) {
                    longer.push_back(counts_here ? before * attribute.groups.size() + group : before);
                }
            }
            column = std::move(longer);
            if (counts_here) width *= attribute.groups.size();
        }
        Table out(counts.size(), Row(width));
        for (size_t k = 0; k < counts.size(); ++k) {
            for (size_t i = 0; i < column.size(); ++i) out[k][column[i]] += counts[k][i];
        }
        return out;
    }
};

// As many combinations of groups as there are, or more than `most`.
size_t combinations(const std::vector<Attribute>& attributes, size_t most) {
    size_t count = 1;
    for (const Attribute& attribute : attributes) {
        count *= attribute.groups.size();
        if (count > most) break;
    }
    return count;
}

void check(const Calibration& record, size_t num_codes, const std::string& where) {
    check_attributes(record.attributes, where);
    const size_t longest = record.counts.empty() ? 0 : record.counts[0].size();
    const size_t width = combinations(record.attributes, std::max<size_t>(longest, 1'000'000));
    const bool even =
        std::all_of(record.counts.begin(), record.counts.end(), [&](const Row& row) { return row.size() == width; });
    if (record.counts.size() != num_codes || !even) {
        refuse_bundle(where, concat(": field counts: expected ", num_codes, " codes with ", width, " counts each"));
    }
    for (const auto& [target, weights] : record.targets) {
        const bool negative = std::any_of(weights.begin(), weights.end(), [](double weight) { return weight < 0; });
        if (weights.size() != num_codes || negative || std::abs(numpy::sum(weights) - 1) > 1e-6) {
            refuse_bundle(where,
                          concat(": field targets: weights of ", target, ": expected ", num_codes, ", of sum 1"));
        }
    }
}

// The settings that a calibration was made at, checked and in the order in which differences are told.
Settings settings_of(const Field& tree) {
    Settings out;
    const auto take = [&](const char* name, const std::optional<Field>& field, auto check) {
        if (field) check(*field);
        out.emplace_back(name, field ? field->value() : json::Value());
    };
    const auto text = [](const Field& field) { field.text(); };
    const auto number = [](const Field& field) { field.number(); };
    const auto pair = [](const Field& field) { field.pair(); };
    const auto positive = [](const Field& field) { field.whole(1); };
    take("prompt", tree.find("prompt"),
         [](const Field& it) { it.value().is_string() ? void(it.text()) : void(it.texts()); });
    for (const char* name : {"negative_prompt", "scope"}) take(name, tree.find(name), text);
    take("sampler", tree["sampler"], [](const Field& field) { sampler_of(field); });
    take("num_steps", tree["num_steps"], positive);
    take("guidance_scale", tree.find("guidance_scale"), number);
    for (const char* name : {"indicator_guidance_scale", "indicator_scale", "eta"}) take(name, tree[name], number);
    take("clip", tree["clip"].or_null(), pair);
    for (const char* name : {"height", "width"}) take(name, tree[name], positive);
    take("precision", tree["precision"], text);
    for (const char* name : {"guidance_interval", "apg"}) take(name, tree.find(name), pair);
    take("cads", tree.find("cads"), [](const Field& field) { field.list_of(3), field.numbers(); });
    tree.nothing_else();
    return out;
}

Calibration read(const std::string& path, const std::string& id) {
    const json::Value content = parse(content_of(path), path);
    const Field file(content, path);
    file.get("schema_version", 1).whole(1, 1);
    Calibration out{id, file["bundle_id"].hash(), {}, {}, settings_of(file["settings"]), {}};
    file["attributes"].each([&](const Field& attribute) {
        out.attributes.push_back({attribute["name"].text(), attribute["groups"].texts()});
        attribute.nothing_else();
    });
    file["counts"].each([&](const Field& row) {
        out.counts.emplace_back();
        row.each([&](const Field& count) { out.counts.back().push_back(static_cast<double>(count.whole(0))); });
    });
    file["unsure"].each([](const Field& count) { count.whole(0); });
    file.get("targets", json::Value::array()).each([&](const Field& stored) {
        out.targets.emplace_back(stored["target"].text(), stored["code_weights"].numbers());
        stored.nothing_else();
    });
    file.find("provenance");
    file.nothing_else();
    return out;
}

// In the order of their paths.
struct ByPath {
    bool operator()(const std::string& a, const std::string& b) const { return a + "/" < b + "/"; }
};

template <typename T>
using ByName = std::map<std::string, T, ByPath>;

using Known = std::shared_ptr<const Calibration>;

// The files below a folder: their hashes in the index, and what shows that one was written anew.
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

ByName<Known> load_all(const Bundle& bundle) {
    static Recent<std::string, Calibration> known(
        64);  // read and checked once, as long as their files stay as they are
    const std::string above = "calibrations/", file = "/calibration.json";
    ByName<Known> found;
    for (const auto& [path, entry] : bundle.files) {
        const size_t end = path.find('/', above.size());
        if (!path.starts_with(above) || end == path.npos || path.substr(end) != file) continue;
        const std::string folder = path.substr(0, end);
        found.emplace(folder.substr(above.size()),
                      known.get(identity_of(bundle, folder), [&, &path = path, &entry = entry] {
                          bundle.check_directory(folder);
                          Calibration record = read(bundle.file(path), entry.sha256);
                          check(record, bundle.codes.num_codes(), bundle.file(path));
                          return record;
                      }));
    }
    return found;
}

std::string told(const json::Value& value) {
    return value.is_null()     ? "not set"
           : value == ""       ? "empty"
           : value.is_string() ? value.get<std::string>()
                               : value.dump();
}

// What a request asks for that isn't as calibrated. A calibration with a scope holds for that scope, whatever the
// prompts; one without, for its prompt in any scope.
std::vector<std::string> differences(const Calibration& record, const Bundle& bundle, const Manifest& manifest) {
    std::vector<std::string> found;
    if (!bundle.is_of(record.bundle_id)) {
        found.push_back("it is of another bundle, " + record.bundle_id.substr(0, 12));
    }
    const json::Value tree = manifest.tree(), &request = tree["request"];
    const auto has_scope = [](const auto& setting) { return setting.first == "scope" && !setting.second.is_null(); };
    const bool scoped = std::any_of(record.settings.begin(), record.settings.end(), has_scope);
    for (const auto& [name, was] : record.settings) {
        const bool prompt = name == "prompt" || name == "negative_prompt";
        if (scoped ? prompt : name == "scope") continue;
        const json::Value& holder = request.contains(name) ? request : tree;
        const json::Value now = holder.value(name, json::Value());
        if (was != now) found.push_back(concat(name, " is ", told(now), " (calibrated at ", told(was), ")"));
    }
    return found;
}

void check_reach(const Calibration& record, const Part& part, const Row& base) {
    const Table counts = record.table(part.attributes);
    const Table p = posterior_mean(counts), spread = posterior_variance(counts);
    const std::vector<std::string> names = cells(part.attributes);
    const auto column = [](const Table& table, size_t i) {
        Row out;
        for (const Row& row : table) out.push_back(row[i]);
        return out;
    };
    for (size_t i = 0; i < names.size(); ++i) {
        const auto [low, high] = extremes(column(p, i), column(spread, i), base);
        const double share = part.shares[i];
        if (low - EDGE_TOLERANCE <= share && share <= high + EDGE_TOLERANCE) continue;
        throw about("target", concat(" ", names[i], "=", general(share, 6), " is out of reach: with ",
                                     static_cast<int64_t>(record.audited()), " audited images the codes surely give ",
                                     fixed(low, 3), " to ", fixed(high, 3), " (90 % bounds). ", HELP));
    }
}

std::string text_of(const std::vector<Part>& parts) {
    std::vector<std::string> texts;
    for (const Part& part : parts) texts.push_back(part.text());
    return join(";", texts);
}

// The weights for a target that isn't stored.
std::vector<double> solve(const Calibration& record, const std::vector<Part>& parts, const Codes& codes) {
    Row base;
    for (const Leaf& leaf : codes.leaves) {
        base.push_back(leaf.share_in_top / static_cast<double>(codes.num_top_codes()));
    }
    for (const Part& part : parts) check_reach(record, part, base);
    Table columns(codes.num_codes());
    Row wanted;
    std::vector<std::string> names;
    for (const Part& part : parts) {
        const Table counts = record.table(part.attributes);
        const Table means = posterior_mean(counts, fitted_prior(counts));
        for (size_t k = 0; k < means.size(); ++k) columns[k].insert(columns[k].end(), means[k].begin(), means[k].end());
        wanted.insert(wanted.end(), part.shares.begin(), part.shares.end());
        const std::vector<std::string> own = cells(part.attributes);
        names.insert(names.end(), own.begin(), own.end());
    }
    const Tilt result = tilt(columns, wanted, base);
    if (!result.reached) {
        std::vector<std::string> at;
        for (size_t i = 0; i < names.size(); ++i) at.push_back(concat(names[i], "=", fixed(result.shares[i], 3)));
        throw about("target",
                    concat(" ", text_of(parts), ": each share is in reach, but not all at once; the nearest is ",
                           join(", ", at), ". ", HELP));
    }
    Row rounded;  // so that machines agree on them
    for (const double weight : result.weights) rounded.push_back(std::nearbyint(weight * 1e9) / 1e9);
    const double total = numpy::sum(rounded);
    for (double& weight : rounded) weight /= total;
    return rounded;
}

}  // namespace

Weighted resolve(const Bundle& bundle, const std::string& target, const Manifest& manifest, bool allow_stale,
                 const Warn& warn) {
    const ByName<Known> every = load_all(bundle);
    if (every.empty()) {
        throw about("target",
                    concat(" ", repr(target),
                           ": this bundle has no calibration that knows groups; `ddm-rt calibrate` adds one"));
    }
    ByName<std::vector<Part>> knowing;
    std::vector<std::string> reasons;
    for (const auto& [name, record] : every) {
        try {
            knowing.emplace(name, parse_group_target(target, record->attributes));
        } catch (const Error& error) {
            if (std::find(reasons.begin(), reasons.end(), error.what()) == reasons.end())
                reasons.emplace_back(error.what());
        }
    }
    if (knowing.empty()) throw Error(Status::input, join("; ", reasons), "target");
    ByName<std::vector<std::string>> stale;
    std::vector<std::string> told;
    bool fits = false;
    for (const auto& [name, parts] : knowing) {
        stale[name] = differences(*every.at(name), bundle, manifest);
        told.push_back(concat(name, ": ", join(", ", stale[name])));
        fits = fits || stale[name].empty();
    }
    if (!fits && !allow_stale) {
        throw about("target", concat(" ", repr(target), ": no calibration holds for these settings: ", join("; ", told),
                                     "; calibrate for them, or --allow-stale"));
    }
    std::string chosen;
    for (const auto& [name, parts] : knowing) {
        if (fits && !stale[name].empty()) continue;
        const auto rank = [&](const std::string& key) { return std::pair(every.at(key)->audited(), key); };
        if (chosen.empty() || rank(name) > rank(chosen)) chosen = name;
    }
    if (!stale[chosen].empty() && warn) {
        warn(concat("calibration ", chosen, " is used for what it wasn't made for: ", join(", ", stale[chosen])));
    }
    const Calibration& record = *every.at(chosen);
    const std::string text = text_of(knowing.at(chosen));
    for (auto stored = record.targets.rbegin(); stored != record.targets.rend(); ++stored) {
        if (stored->first == text) return {stored->second, text, record.id};
    }
    return {solve(record, knowing.at(chosen), bundle.codes), text, record.id};
}

}  // namespace ddm
