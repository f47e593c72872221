#include "calibration.h"

#include <algorithm>
#include <cmath>

#include "fields.h"
#include "groups.h"
#include "numpy.h"
#include "posterior.h"
#include "records.h"
#include "text.h"

namespace ddm {
namespace {

constexpr double EDGE_TOLERANCE = 1e-3;  // of a share: what the eye can't tell apart isn't refused
constexpr const char* HELP =
    "More codes (train --micro-codes), more audits (calibrate --n) or retraining with more such images is needed";

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

Calibration read_calibration(const Bundle& bundle, const std::string& name) {
    const json::Value content = checked_record(bundle, name);
    const Field file(content, bundle.file(name));
    file.get("schema_version", 1).whole(1, 1);
    Calibration out{bundle.find(name)->sha256, file["bundle_id"].hash(), {}, {}, {}, {}};
    const Field settings = file["settings"];
    settings["clip"];  // null, if there is none
    out.settings =
        settings_of(settings, {"prompt", "negative_prompt", "scope", "sampler", "num_steps", "guidance_scale",
                               "indicator_guidance_scale", "indicator_scale", "eta", "clip", "height", "width",
                               "precision", "guidance_interval", "apg", "cads", "cache"});
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
    check(out, bundle.codes.num_codes(), bundle.file(name));
    return out;
}

// A calibration with a scope holds for that scope, whatever the prompts; one without, for its prompt in any scope.
Settings that_count(Settings settings) {
    const auto has_scope = [](const auto& setting) { return setting.first == "scope" && !setting.second.is_null(); };
    const bool scoped = std::any_of(settings.begin(), settings.end(), has_scope);
    std::erase_if(settings, [&](const auto& setting) {
        const bool prompt = setting.first == "prompt" || setting.first == "negative_prompt";
        return scoped ? prompt : setting.first == "scope";
    });
    return settings;
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
    const auto every = load_records<Calibration>(bundle, "calibrations/", "/calibration.json", read_calibration);
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
    const json::Value tree = manifest.tree();
    for (const auto& [name, parts] : knowing) {
        const Calibration& record = *every.at(name);
        stale[name] = differences(bundle, record.bundle_id, that_count(record.settings), tree, "calibrated at");
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
