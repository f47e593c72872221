// What the core of the library gives, as one line of JSON on stdout for each line of JSON on stdin: {"op": ..., ...}.
// Tests compare it with Python's. An error is {"error": its words, "status": its number}.
#include <cmath>
#include <iostream>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include <unistd.h>

#include "assignment.h"
#include "bundle.h"
#include "calibration.h"
#include "error.h"
#include "fields.h"
#include "files.h"
#include "groups.h"
#include "json.h"
#include "leave_alone.h"
#include "ledger.h"
#include "manifest.h"
#include "noise.h"
#include "posterior.h"
#include "quota.h"
#include "reuse.h"
#include "text.h"
#include "unicode.h"

namespace {

using namespace ddm;
using json::Out;
using json::Value;

Out number(double value) { return std::isfinite(value) ? Out(value) : Out(repr(value)); }

template <typename T>
Out list_of(const T& values) {
    Out list = Out::array();
    for (const auto& value : values) {
        if constexpr (std::is_floating_point_v<std::decay_t<decltype(value)>>) list.push_back(number(value));
        else list.push_back(value);
    }
    return list;
}

double number_in(const Value& value) {
    return value.is_string() ? *parse_float(value.get<std::string>()) : value.get<double>();
}

std::vector<double> numbers(const Value& value) {
    std::vector<double> out;
    for (const Value& each : value) out.push_back(number_in(each));
    return out;
}

template <typename T>
std::optional<T> maybe(const Value& tree, const char* name) {
    return tree.contains(name) && !tree[name].is_null() ? std::optional(tree[name].get<T>()) : std::nullopt;
}

std::optional<double> maybe_number(const Value& tree, const char* name) {
    return tree.contains(name) ? std::optional(number_in(tree[name])) : std::nullopt;
}

// What a line of JSON can't hold: bytes, two digits each.
std::string bytes_of(const std::string& hex) {
    std::string out;
    for (size_t i = 0; i < hex.size(); i += 2) out += static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16));
    return out;
}

template <typename T>
void append(std::string& out, const T& values) {
    out.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof values[0]);
}

Out table(const Schedule& schedule, const Value& asked) {
    const auto pair = [&](const char* name) -> std::optional<Pair> {
        if (!asked.contains(name) || asked[name].is_null()) return std::nullopt;
        return Pair(numbers(asked[name])[0], numbers(asked[name])[1]);
    };
    StepTable made = step_table(schedule, sampler_named(asked["sampler"].get<std::string>()), asked["num_steps"],
                                maybe_number(asked, "eta").value_or(0), pair("clip"), pair("guidance_interval"),
                                pair("noise_times"));
    if (const auto cache = maybe<Value>(asked, "cache")) made = Reuse::read(Field(*cache, "cache")).of(made);
    std::string bytes;
    for (const auto* column :
         {&made.t, &made.a, &made.b, &made.c, &made.d, &made.e, &made.g, &made.f, &made.clip_min, &made.clip_max}) {
        append(bytes, *column);
    }
    for (const bool guided : made.guided) bytes.push_back(guided ? 1 : 0);
    append(bytes, made.kept);
    append(bytes, made.timesteps());
    for (const StepTable::Row& row : made.rows()) append(bytes, row);
    return {{"init_scale", made.init_scale}, {"sha256", sha256_of(bytes)}};
}

// `answer`, or the error that it throws.
template <typename Answer>
Out told(Answer answer) {
    try {
        return answer();
    } catch (const Error& error) {
        return {{"error", error.what()}, {"status", static_cast<int>(error.status)}};
    }
}

Out tables(const Value& asked) {
    const Value stored = parse(asked["schedule"].get<std::string>(), "schedule");
    const Schedule schedule = Schedule::of(Field(stored, "schedule"));
    Out out = Out::array();
    for (const Value& each : asked["tables"]) out.push_back(told([&] { return table(schedule, each); }));
    return out;
}

Out noise(const Value& asked) {
    std::vector<float> out(asked["size"].get<size_t>());
    normal(asked["seed"], asked["row"], asked["stream"], out.data(), out.size());
    return list_of(out);
}

Out seeds(const Value& asked) {
    Out out = Out::array();
    for (const Value& index : asked["indices"]) out.push_back(derive(asked["seed"], index));
    return out;
}

Tree tree_of(const Value& value) {
    Tree tree;
    for (const Value& branch : value) {
        tree.emplace_back();
        for (const Value& leaf : branch) tree.back().emplace_back(leaf[0].get<int64_t>(), number_in(leaf[1]));
    }
    return tree;
}

Out quota(const Value& asked) {
    Quota made(numbers(asked["weights"]), "weights");
    if (asked.contains("counts")) made.restore(asked["counts"]);
    Out draws = Out::array();
    for (int64_t i = 0; i < asked["n"].get<int64_t>(); ++i) draws.push_back(made.draw());
    return {{"weights", list_of(made.weights())}, {"draws", draws}, {"counts", list_of(made.counts())}};
}

Out pairs(const std::vector<std::pair<int64_t, int64_t>>& list) {
    Out out = Out::array();
    for (const auto& [code, count] : list) out.push_back(Out::array({code, count}));
    return out;
}

Out tree_quota(const Value& asked) {
    TreeQuota made(numbers(asked["tops"]), tree_of(asked["leaves"]));
    if (asked.contains("counts")) {
        CodeCounts given;
        for (const Value& pair : asked["counts"]) given.emplace_back(pair[0].get<int64_t>(), pair[1].get<int64_t>());
        made.restore(given);
    }
    Out draws = Out::array();
    for (int64_t i = 0; i < asked["n"].get<int64_t>(); ++i) draws.push_back(made.draw());
    return {{"draws", draws}, {"counts", pairs(made.counts())}};
}

Out bundle(const Value& asked) {
    const Bundle opened = Bundle::load(asked["path"]);
    return {{"bundle_id", opened.bundle_id}, {"num_codes", opened.codes.num_codes()}};
}

Out manifest(const Value& asked) { return Manifest::parse(asked["content"].get<std::string>(), "manifest").write(); }

Out weights(const Value& asked) {
    const Bundle opened = Bundle::load(asked["path"]);
    const Manifest manifest = Manifest::parse(asked["manifest"].get<std::string>(), "manifest");
    Out out = Out::array();
    for (const std::string target : asked["targets"]) {
        out.push_back(told([&]() -> Out {
            Out warnings = Out::array();
            const Weighted found = resolve(opened, target, manifest, asked.value("allow_stale", false),
                                           [&](const std::string& text) { warnings.push_back(text); });
            return {{"target", found.target},
                    {"calibration_id", found.calibration_id},
                    {"code_weights", list_of(found.code_weights)},
                    {"warnings", warnings}};
        }));
    }
    return out;
}

// Weights by the names of top codes and factors; null where a calibration has to be asked.
Out named_weights(const Value& asked) {
    const Bundle opened = Bundle::load(asked["path"]);
    Out out = Out::array();
    for (const std::string target : asked["targets"]) {
        out.push_back(told([&]() -> Out {
            const auto found = by_names(opened, code_tree(opened), target);
            if (!found) return nullptr;
            Out shares = Out::array();
            for (const Shares& branch : found->leaves) {
                for (const auto& [code, share] : branch) shares.push_back(Out::array({code, number(share)}));
            }
            return {{"target", found->target}, {"tops", list_of(found->tops)}, {"leaves", shares}};
        }));
    }
    return out;
}

Out nested(const Table& rows) {
    Out out = Out::array();
    for (const Row& row : rows) out.push_back(list_of(row));
    return out;
}

Out posterior(const Value& asked) {
    Table counts;
    for (const Value& row : asked["counts"]) counts.push_back(numbers(row));
    const double prior = fitted_prior(counts);
    return {{"mean", nested(posterior_mean(counts))},
            {"fitted", prior},
            {"fitted_mean", nested(posterior_mean(counts, prior))},
            {"variance", nested(posterior_variance(counts))}};
}

// Ledgers and leases that stay open from one line to the next, by the names that the test gives them.
std::map<std::string, std::unique_ptr<Ledger>> ledgers;
std::map<std::string, Lease> leases;

Stream stream_of(const Value& asked) {
    return {asked["bundle_id"], asked["scope"], asked["target"], maybe<std::string>(asked, "calibration")};
}

Out ledger(const Value& asked) {
    const std::string name = asked["name"], what = asked["do"], lease_name = asked.value("lease", "");
    if (what == "open") {
        const double timeout_s = maybe_number(asked, "timeout_s").value_or(10);
        ledgers.insert_or_assign(
            name, std::make_unique<Ledger>(maybe<std::string>(asked, "path"), asked.value("fsync", false), timeout_s));
    }
    if (what == "lease") {
        const Tree tree = tree_of(asked["leaves"]);
        const std::vector<double> tops = numbers(asked["tops"]);
        Lease lease = ledgers.at(name)->lease(stream_of(asked), [&] { return TreeQuota(tops, tree); }, asked["n"]);
        Out draws = Out::array();
        for (const Draw& draw : lease.draws()) draws.push_back(Out::array({draw.position, draw.code}));
        leases.erase(lease_name);
        leases.emplace(lease_name, std::move(lease));
        return draws;
    }
    if (what == "commit") leases.at(lease_name).commit();
    if (what == "release") leases.erase(lease_name);
    if (what == "close") ledgers.at(name)->close();
    if (what == "check_bundle") {
        ledgers.at(name)->check_bundle(
            asked["bundle_id"],
            maybe<std::vector<std::string>>(asked, "former_ids").value_or(std::vector<std::string>()),
            asked.value("bundle_path", ""));
    }
    return nullptr;
}

Out chdir_to(const Value& asked) {
    if (::chdir(asked["path"].get<std::string>().c_str()) != 0) throw Error("no such directory");
    return nullptr;
}

// A copy of this process that goes on until it is killed; its number, once it runs.
Out copied(const Value&) {
    std::cout.flush();
    int ends[2];
    char runs = 0;
    if (::pipe(ends) != 0) throw Error("no pipe");
    const pid_t child = ::fork();
    if (child != 0) {
        ::close(ends[1]);
        const bool told = ::read(ends[0], &runs, 1) == 1;
        ::close(ends[0]);
        if (!told) throw Error("the copy doesn't run");
        return child;
    }
    ::close(0), ::close(1), ::close(2);
    if (::write(ends[1], &runs, 1) != 1) ::_exit(1);
    while (true) ::pause();
}

Out group_target(const Value& asked) {
    std::vector<Attribute> attributes;
    for (const auto& [name, groups] : asked["attributes"].items()) attributes.push_back({name, groups});
    check_attributes(attributes, "attributes");
    Out out = Out::array();
    for (const Part& part : parse_group_target(asked["target"], attributes)) {
        out.push_back(Out::array({part.text(), list_of(part.shares)}));
    }
    return out;
}

// Of what Python says is JSON, what is written again.
Out json_text(const Value& asked) {
    Out out = Out::array();
    for (const std::string text : asked["texts"]) {
        out.push_back(told([&] { return Out(json::write(Out::parse(bytes_of(text)))); }));
    }
    return out;
}

Out words(const Value& asked) {
    Out floats = Out::array(), out = Out::array();
    for (const std::string value : asked["floats"]) {
        const auto found = parse_float(value);
        floats.push_back(found ? Out(repr(*found)) : Out());
    }
    for (const std::string value : asked["texts"]) {
        out.push_back(Out::array({std::string(strip(value)), is_printable(value), clean_path(value)}));
    }
    return {{"floats", floats}, {"texts", out}};
}

Out answer(const Value& asked) {
    static const std::map<std::string, Out (*)(const Value&)> operations = {
        {"tables", tables},
        {"noise", noise},
        {"seeds", seeds},
        {"order", [](const Value& it) { return list_of(shuffled(it["seed"], it["n"])); }},
        {"quota", quota},
        {"tree", tree_quota},
        {"target", [](const Value& it) { return list_of(parse_target(it["target"], it["tops"])); }},
        {"group_target", group_target},
        {"bundle", bundle},
        {"manifest", manifest},
        {"weights", weights},
        {"named_weights", named_weights},
        {"posterior", posterior},
        {"ledger", ledger},
        {"chdir", chdir_to},
        {"fork", copied},
        {"json", json_text},
        {"text", words},
        {"leave_alone",
         [](const Value& it) { return Out(names_one(it["prompt"].get<std::string>(), checked_words(it["words"]))); }},
    };
    return operations.at(asked["op"])(asked);
}

}  // namespace

int main() {
    for (std::string line; std::getline(std::cin, line);) {
        const Out out = told([&] { return Out{{"result", answer(json::read(line, SIZE_MAX))}}; });
        std::cout << json::write(out) << std::endl;
    }
    return 0;
}
