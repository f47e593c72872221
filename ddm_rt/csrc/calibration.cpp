#include "calibration.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <system_error>

#include "config_shape.h"
#include "files.h"
#include "groups.h"
#include "numpy.h"
#include "posterior.h"
#include "text.h"

namespace ddm {
namespace {

using json::Value;

constexpr double EDGE_TOLERANCE = 1e-3;  // of a share: what the eye can't tell apart isn't refused
constexpr const char* HELP =
    "More codes (train --micro-codes), more audits (calibrate --n) or retraining with more such images is needed";

// What decides the images beside code and seed, field by field.
using Settings = json::Object;

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

const shape::Check& calibration_file() {
    using namespace shape;
    static const Check count = integer({.ge = 0});
    static const Check prompt = nullable(either("str", text(), "tuple[str, ...]", list(text())));
    static const Check settings = object({
        {"prompt", prompt, "null"},
        {"negative_prompt", nullable(text()), "null"},
        {"scope", nullable(text()), "null"},
        {"sampler", sampler()},
        {"num_steps", positive()},
        {"guidance_scale", nullable(number()), "null"},
        {"indicator_guidance_scale", number()},
        {"indicator_scale", number()},
        {"eta", number()},
        {"clip", clip()},
        {"height", positive()},
        {"width", positive()},
        {"precision", text()},
        {"guidance_interval", nullable(fixed({number(), number()})), "null"},
        {"apg", nullable(fixed({number(), number()})), "null"},
        {"cads", nullable(fixed({number(), number(), number()})), "null"},
    });
    static const Check check = object({
        {"schema_version", one_of(std::vector<int64_t>{1}), "1"},
        {"bundle_id", hash()},
        {"attributes", list(object({{"name", text()}, {"groups", list(text())}}))},
        {"counts", list(list(count))},
        {"unsure", list(count)},
        {"settings", settings},
        {"targets", list(object({{"target", text()}, {"code_weights", list(number())}})), "[]"},
        {"provenance", mapping(anything()), "{}"},
    });
    return check;
}

Row numbers(const Value& list) {
    Row out;
    for (const Value& value : list.list()) out.push_back(value.number());
    return out;
}

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
    const bool even = std::all_of(record.counts.begin(), record.counts.end(), [&](const Row& row) { return row.size() == width; });
    if (record.counts.size() != num_codes || !even) {
        refuse_bundle(concat(where, ": field counts: expected ", num_codes, " codes with ", width, " counts each"));
    }
    for (const auto& [target, weights] : record.targets) {
        const bool negative = std::any_of(weights.begin(), weights.end(), [](double weight) { return weight < 0; });
        if (weights.size() != num_codes || negative || std::abs(numpy::sum(weights) - 1) > 1e-6) {
            refuse_bundle(concat(where, ": field targets: weights of ", target, ": expected ", num_codes, ", of sum 1"));
        }
    }
}

Calibration read(const std::string& path, const std::string& id) {
    std::string content;
    try {
        content = read_file(path);
    } catch (const std::system_error& error) {
        refuse_bundle(concat(path, ": cannot be read (", error.code().message(), "); a bundle must have it"));
    }
    const Value tree = shape::parse(calibration_file(), content, path);
    Calibration out{id, tree["bundle_id"].text(), {}, {}, tree["settings"].object(), {}};
    for (const Value& attribute : tree["attributes"].list()) {
        out.attributes.push_back({attribute["name"].text(), {}});
        for (const Value& group : attribute["groups"].list()) out.attributes.back().groups.push_back(group.text());
    }
    for (const Value& row : tree["counts"].list()) out.counts.push_back(numbers(row));
    for (const Value& stored : tree["targets"].list()) {
        out.targets.emplace_back(stored["target"].text(), numbers(stored["code_weights"]));
    }
    return out;
}

// In the order of their paths.
struct ByPath {
    bool operator()(const std::string& a, const std::string& b) const { return a + "/" < b + "/"; }
};

template <typename T>
using ByName = std::map<std::string, T, ByPath>;

ByName<Calibration> load_all(const Bundle& bundle) {
    std::set<std::string> paths;
    for (const auto& [path, entry] : bundle.files) paths.insert(path);
    ByName<Calibration> found;
    for (const std::string& path : paths) {
        const size_t end = path.find('/', std::string("calibrations/").size());
        if (!path.starts_with("calibrations/") || end == path.npos || path.substr(end) != "/calibration.json") continue;
        const std::string folder = path.substr(0, end);
        bundle.check_directory(folder);
        Calibration record = read(bundle.file(path), bundle.find(path)->sha256);
        check(record, bundle.codes.num_codes(), bundle.file(path));
        found.emplace(folder.substr(std::string("calibrations/").size()), std::move(record));
    }
    return found;
}

bool same(const Value& a, const Value& b) {
    const auto is_number = [](const Value& value) { return value.as<json::Integer>() || value.as<double>(); };
    if (is_number(a) && is_number(b)) return a.number() == b.number();
    if (a.index() != b.index()) return false;
    if (const auto* list = a.as<json::List>()) {
        const json::List& other = b.list();
        return list->size() == other.size() && std::equal(list->begin(), list->end(), other.begin(), same);
    }
    return a.is_null() || a.text() == b.text();
}

// As str() has it; text in a list as repr() does.
std::string plain_text(const Value& value, bool quoted = false) {
    if (const auto* text = value.as<std::string>()) return quoted ? repr(*text) : text->empty() ? "empty" : *text;
    if (const auto* number = value.as<double>()) return repr(*number);
    if (value.as<json::Integer>()) return std::to_string(value.integer());
    if (value.is_null()) return "not set";
    std::vector<std::string> parts;
    for (const Value& each : value.list()) parts.push_back(plain_text(each, true));
    return concat("(", join(", ", parts), parts.size() == 1 ? ",)" : ")");
}

// What a request asks for that isn't as calibrated. A calibration with a scope holds for that scope, whatever the
// prompts; one without, for its prompt in any scope.
std::vector<std::string> differences(const Calibration& record, const Bundle& bundle, const Manifest& manifest) {
    std::vector<std::string> found;
    if (!bundle.is_of(record.bundle_id)) {
        found.push_back("it is of another bundle, " + record.bundle_id.substr(0, 12));
    }
    const Value tree = manifest.tree();
    const Value settings(record.settings), none;
    const bool scoped = !settings["scope"].is_null();
    for (const auto& [name, was] : record.settings) {
        const bool prompt = name == "prompt" || name == "negative_prompt";
        if (scoped ? prompt : name == "scope") continue;
        const Value* asked = tree["request"].find(name);
        if (!asked) asked = tree.find(name);
        const Value& now = asked ? *asked : none;
        if (!same(was, now)) {
            found.push_back(concat(name, " is ", plain_text(now), " (calibrated at ", plain_text(was), ")"));
        }
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
        throw Error(concat("target ", names[i], "=", general(share, 6), " is out of reach: with ",
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
        throw Error(concat("target ", text_of(parts), ": each share is in reach, but not all at once; the nearest is ",
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
    const ByName<Calibration> every = load_all(bundle);
    if (every.empty()) {
        throw Error(concat("target ", repr(target),
                           ": this bundle has no calibration that knows groups; `ddm-rt calibrate` adds one"));
    }
    ByName<std::vector<Part>> knowing;
    std::vector<std::string> reasons;
    for (const auto& [name, record] : every) {
        try {
            knowing.emplace(name, parse_group_target(target, record.attributes));
        } catch (const Error& error) {
            if (std::find(reasons.begin(), reasons.end(), error.what()) == reasons.end()) reasons.emplace_back(error.what());
        }
    }
    if (knowing.empty()) throw Error(join("; ", reasons));
    ByName<std::vector<std::string>> stale;
    std::vector<std::string> told;
    bool fits = false;
    for (const auto& [name, parts] : knowing) {
        stale[name] = differences(every.at(name), bundle, manifest);
        told.push_back(concat(name, ": ", join(", ", stale[name])));
        fits = fits || stale[name].empty();
    }
    if (!fits && !allow_stale) {
        throw Error(concat("target ", repr(target), ": no calibration holds for these settings: ", join("; ", told),
                           "; calibrate for them, or --allow-stale"));
    }
    std::string chosen;
    for (const auto& [name, parts] : knowing) {
        if (fits && !stale[name].empty()) continue;
        const auto rank = [&](const std::string& key) { return std::pair(every.at(key).audited(), key); };
        if (chosen.empty() || rank(name) > rank(chosen)) chosen = name;
    }
    if (!stale[chosen].empty() && warn) {
        warn(concat("calibration ", chosen, " is used for what it wasn't made for: ", join(", ", stale[chosen])));
    }
    const Calibration& record = every.at(chosen);
    const std::string text = text_of(knowing.at(chosen));
    for (auto stored = record.targets.rbegin(); stored != record.targets.rend(); ++stored) {
        if (stored->first == text) return {stored->second, text, record.id};
    }
    return {solve(record, knowing.at(chosen), bundle.codes), text, record.id};
}

}  // namespace ddm
