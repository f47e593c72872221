#include "cache.h"

#include "ddm_rt.h"
#include "records.h"
#include "text.h"

namespace ddm {
namespace {

constexpr int64_t LEAST_CALLS = 2, MOST_CALLS = 10'000;
constexpr double MOST_MARGIN = 0.03, MOST_RATIO = 1.15;  // of a verdict that `auto` goes by

struct Cache {
    std::string bundle_id;
    Settings settings;
    Reuse reuse;
    bool passed = false;      // judged to change nothing
    std::string broken = {};  // what is wrong with it, where nothing else is known

    int64_t calls() const { return static_cast<int64_t>(reuse.steps.size()); }
};

bool passed(const Field& judged) {
    for (const char* name : {"judge", "reference"}) judged[name].text();
    judged["groups"].texts();
    judged["n"].whole();
    judged["seed"].seed();
    bool all = judged["margin"].number() <= MOST_MARGIN;
    all = judged["frechet_ratio"].number() <= MOST_RATIO && all;
    all = judged["balance"].one_of({"equivalent", "drift", "undecided"}) == "equivalent" && all;
    for (const char* name : {"quality", "diversity"}) {
        const auto found = judged.find(name);
        all = (found && found->one_of({"equivalent", "changed", "undecided"}) == "equivalent") && all;
    }
    judged.nothing_else();
    return all;
}

Cache read_whole(const Bundle& bundle, const std::string& name) {
    const json::Value content = checked_record(bundle, name);
    const Field file(content, bundle.file(name));
    file.get("schema_version", 1).whole(1, 1);
    Cache out{file["bundle_id"].hash(),
              settings_of(file["settings"],
                          {"sampler", "num_steps", "height", "width", "guidance_scale", "indicator_guidance_scale",
                           "indicator_scale", "clip", "guidance_interval", "apg", "cads"}),
              Reuse::read(file["reuse"])};
    const Field fit = file["fit"];
    fit["n"].whole();
    fit["seed"].seed();
    for (const char* each : {"error", "spread"}) fit[each].number();
    fit.nothing_else();
    if (const auto judged = file.find("judged")) out.passed = passed(*judged);
    file.nothing_else();
    return out;
}

// One that is damaged, or was replaced since the bundle was opened, is in nobody's way but of who asks for it.
Cache read_cache(const Bundle& bundle, const std::string& name) {
    try {
        return read_whole(bundle, name);
    } catch (const Error& error) {
        Cache out;
        out.broken = error.what();
        return out;
    }
}

}  // namespace

std::optional<Reuse> find_cache(const Bundle& bundle, int64_t calls, const Manifest& manifest, const Warn& warn) {
    if (calls == DDM_RT_CACHE_OFF) return std::nullopt;
    if (calls != DDM_RT_CACHE_AUTO && (calls < LEAST_CALLS || calls > MOST_CALLS)) {
        throw about("cache", concat(" is ", calls, "; expected auto, off, or a number of calls, at least 2"));
    }
    const json::Value tree = manifest.tree();
    std::shared_ptr<const Cache> chosen;
    std::vector<std::string> others;
    for (const auto& [name, cache] : load_records<Cache>(bundle, "tables/", "/cache.json", read_cache)) {
        if (!cache->broken.empty()) {
            warn(concat("cache ", name, " is passed over: ", cache->broken));
            others.push_back(name + ": it can't be read");
            continue;
        }
        auto why = differences(bundle, cache->bundle_id, cache->settings, tree, "found for");
        if (why.empty() && calls == DDM_RT_CACHE_AUTO && !cache->passed) continue;
        if (why.empty() && calls != DDM_RT_CACHE_AUTO && calls != cache->calls()) {
            why.push_back(concat("it has ", cache->calls(), " calls"));
        }
        if (!why.empty()) others.push_back(concat(name, ": ", join(", ", why)));
        else if (!chosen || cache->calls() < chosen->calls()) chosen = cache;
    }
    if (chosen) return chosen->reuse;
    if (calls == DDM_RT_CACHE_AUTO) return std::nullopt;
    throw about("cache", concat(" is ", calls, ": no cache of so many calls for these settings (",
                                others.empty() ? "the bundle has none" : join("; ", others),
                                "); `ddm-rt cache BUNDLE --calls ", calls, "` finds one"));
}

}  // namespace ddm
