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
#include "files.h"
#include "groups.h"
#include "json.h"
#include "leave_alone.h"
#include "ledger.h"
#include "manifest.h"
#include "noise.h"
#include "posterior.h"
#include "quota.h"
#include "text.h"

namespace {

using namespace ddm;
using json::List;
using json::Object;
using json::Value;

Value number(double value) { return std::isfinite(value) ? Value(value) : Value(repr(value)); }

template <typename T>
Value list_of(const T& values) {
    List list;
    for (const auto& value : values) {
        if constexpr (std::is_floating_point_v<std::decay_t<decltype(value)>>) list.push_back(number(value));
        else list.push_back(Value(value));
    }
    return list;
}

std::vector<double> numbers(const Value& value) {
    std::vector<double> out;
    for (const Value& each : value.list()) {
        const auto* text = each.as<std::string>();
        out.push_back(text ? *parse_float(*text) : each.number());
    }
    return out;
}

std::vector<int64_t> integers(const Value& value) {
    std::vector<int64_t> out;
    for (const Value& each : value.list()) out.push_back(each.integer());
    return out;
}

std::vector<std::string> texts(const Value& value) {
    std::vector<std::string> out;
    for (const Value& each : value.list()) out.push_back(each.text());
    return out;
}

template <typename Get>
auto maybe(const Value& tree, const char* name, Get get) -> std::optional<decltype(get(tree))> {
    const Value* found = tree.find(name);
    if (!found || found->is_null()) return std::nullopt;
    return get(*found);
}

std::optional<std::string> maybe_text(const Value& tree, const char* name) {
    return maybe(tree, name, [](const Value& value) { return value.text(); });
}

std::optional<double> maybe_number(const Value& tree, const char* name) {
    return maybe(tree, name, [](const Value& value) { return *parse_float(value.text()); });
}

// What a line of JSON can't hold: bytes, two digits each.
std::string bytes_of(const Value& value) {
    const std::string& hex = value.text();
    std::string out;
    for (size_t i = 0; i < hex.size(); i += 2) out += static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16));
    return out;
}

bool flag(const Value& tree, const char* name) {
    const Value* found = tree.find(name);
    return found && found->boolean();
}

template <typename T>
void append(std::string& out, const T& values) {
    out.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof values[0]);
}

Value table(const Schedule& schedule, const Value& asked) {
    const auto pair = [](const Value& value) { return std::pair(numbers(value)[0], numbers(value)[1]); };
    const auto clip = maybe(asked, "clip", pair), interval = maybe(asked, "guidance_interval", pair);
    const auto times = maybe(asked, "noise_times", pair);
    const StepTable made = step_table(schedule, sampler_named(asked["sampler"].text()), asked["num_steps"].integer(),
                                      maybe_number(asked, "eta").value_or(0), clip, interval, times);
    std::string bytes;
    for (const auto* column : {&made.t, &made.a, &made.b, &made.c, &made.d, &made.e, &made.g, &made.f, &made.clip_min, &made.clip_max}) {
        append(bytes, *column);
    }
    for (const bool guided : made.guided) bytes.push_back(guided ? 1 : 0);
    append(bytes, made.kept);
    append(bytes, made.timesteps());
    for (const StepTable::Row& row : made.rows()) append(bytes, row);
    return Object{{"init_scale", made.init_scale}, {"sha256", sha256_of(bytes)}};
}

// `answer`, or the error that it throws.
template <typename Answer>
Value told(Answer answer) {
    try {
        return answer();
    } catch (const Error& error) {
        return Object{{"error", std::string(error.what())}, {"status", static_cast<int>(error.status)}};
    }
}

Value tables(const Value& asked) {
    const Schedule schedule = Schedule::from_json(asked["schedule"].text(), "schedule");
    List out;
    for (const Value& each : asked["tables"].list()) out.push_back(told([&] { return table(schedule, each); }));
    return out;
}

Value noise(const Value& asked) {
    std::vector<float> out(asked["size"].natural());
    normal(asked["seed"].natural(), static_cast<uint32_t>(asked["row"].natural()),
           static_cast<uint32_t>(asked["stream"].natural()), out.data(), out.size());
    return list_of(out);
}

Value seeds(const Value& asked) {
    List out;
    for (const int64_t index : integers(asked["indices"])) {
        out.push_back(Value(derive(asked["seed"].natural(), static_cast<uint32_t>(index))));
    }
    return out;
}

Value order(const Value& asked) {
    List out;
    for (const size_t i : shuffled(asked["seed"].natural(), asked["n"].natural())) out.push_back(Value(uint64_t{i}));
    return out;
}

Tree tree_of(const Value& value) {
    Tree tree;
    for (const Value& branch : value.list()) {
        tree.emplace_back();
        for (const Value& leaf : branch.list()) {
            tree.back().emplace_back(leaf.list()[0].integer(), numbers(List{leaf.list()[1]})[0]);
        }
    }
    return tree;
}

Value quota(const Value& asked) {
    Quota made(numbers(asked["weights"]), "weights");
    if (const Value* counts = asked.find("counts")) made.restore(integers(*counts));
    List draws;
    for (int64_t i = 0; i < asked["n"].integer(); ++i) draws.push_back(Value(uint64_t{made.draw()}));
    return Object{{"weights", list_of(made.weights())}, {"draws", draws}, {"counts", list_of(made.counts())}};
}

Value tree_quota(const Value& asked) {
    TreeQuota made(numbers(asked["tops"]), tree_of(asked["leaves"]));
    if (const Value* counts = asked.find("counts")) {
        CodeCounts given;
        for (const Value& pair : counts->list()) given.emplace_back(pair.list()[0].integer(), pair.list()[1].integer());
        made.restore(given);
    }
    List draws, counts;
    for (int64_t i = 0; i < asked["n"].integer(); ++i) draws.push_back(Value(made.draw()));
    for (const auto& [code, count] : made.counts()) counts.push_back(List{code, count});
    return Object{{"draws", draws}, {"counts", counts}};
}

Value bundle(const Value& asked) {
    const Bundle opened = Bundle::load(asked["path"].text());
    return Object{{"bundle_id", opened.bundle_id}, {"num_codes", uint64_t{opened.codes.num_codes()}}};
}

Value manifest(const Value& asked) { return Value(Manifest::parse(asked["content"].text(), "manifest").write()); }

Value weights(const Value& asked) {
    const Bundle opened = Bundle::load(asked["path"].text());
    const Manifest manifest = Manifest::parse(asked["manifest"].text(), "manifest");
    List out;
    for (const std::string& target : texts(asked["targets"])) {
        out.push_back(told([&] {
            List warnings;
            const Weighted found = resolve(opened, target, manifest, flag(asked, "allow_stale"),
                                           [&](const std::string& text) { warnings.push_back(Value(text)); });
            return Object{{"target", found.target},
                          {"calibration_id", found.calibration_id},
                          {"code_weights", list_of(found.code_weights)},
                          {"warnings", warnings}};
        }));
    }
    return out;
}

// Weights by the names of top codes and factors; null where a calibration has to be asked.
Value named_weights(const Value& asked) {
    const Bundle opened = Bundle::load(asked["path"].text());
    List out;
    for (const std::string& target : texts(asked["targets"])) {
        out.push_back(told([&]() -> Value {
            const auto found = by_names(opened, code_tree(opened), target);
            if (!found) return Value(nullptr);
            List shares;
            for (const Shares& branch : found->leaves) {
                for (const auto& [code, share] : branch) shares.push_back(List{code, number(share)});
            }
            return Object{{"target", found->target}, {"tops", list_of(found->tops)}, {"leaves", shares}};
        }));
    }
    return out;
}

Value nested(const Table& rows) {
    List out;
    for (const Row& row : rows) out.push_back(list_of(row));
    return out;
}

Value posterior(const Value& asked) {
    Table counts;
    for (const Value& row : asked["counts"].list()) counts.push_back(numbers(row));
    const double prior = fitted_prior(counts);
    return Object{{"mean", nested(posterior_mean(counts))},
                  {"fitted", prior},
                  {"fitted_mean", nested(posterior_mean(counts, prior))},
                  {"variance", nested(posterior_variance(counts))}};
}

// Ledgers and leases that stay open from one line to the next, by the names that the test gives them.
std::map<std::string, std::unique_ptr<Ledger>> ledgers;
std::map<std::string, Lease> leases;

Stream stream_of(const Value& asked) {
    return {asked["bundle_id"].text(), asked["scope"].text(), asked["target"].text(), maybe_text(asked, "calibration")};
}

Value ledger(const Value& asked) {
    const std::string &name = asked["name"].text(), &what = asked["do"].text();
    if (what == "open") {
        const double timeout_s = maybe_number(asked, "timeout_s").value_or(10);
        ledgers.insert_or_assign(name, std::make_unique<Ledger>(maybe_text(asked, "path"), flag(asked, "fsync"), timeout_s));
        return Value();
    }
    if (what == "lease") {
        const Tree tree = tree_of(asked["leaves"]);
        const std::vector<double> tops = numbers(asked["tops"]);
        Lease lease = ledgers.at(name)->lease(stream_of(asked), [&] { return TreeQuota(tops, tree); }, asked["n"].integer());
        List draws;
        for (const Draw& draw : lease.draws()) draws.push_back(List{draw.position, draw.code});
        leases.erase(asked["lease"].text());
        leases.emplace(asked["lease"].text(), std::move(lease));
        return draws;
    }
    if (what == "commit") leases.at(asked["lease"].text()).commit();
    if (what == "release") leases.erase(asked["lease"].text());
    if (what == "close") ledgers.at(name)->close();
    if (what == "check_bundle") {
        const Value* former = asked.find("former_ids");
        ledgers.at(name)->check_bundle(asked["bundle_id"].text(), former ? texts(*former) : std::vector<std::string>(),
                                       maybe_text(asked, "bundle_path").value_or(""));
    }
    return Value();
}

Value chdir_to(const Value& asked) {
    if (::chdir(asked["path"].text().c_str()) != 0) throw Error("no such directory");
    return Value();
}

// A copy of this process that goes on until it is killed; its number, once it runs.
Value copied(const Value&) {
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
        return Value(static_cast<int64_t>(child));
    }
    ::close(0), ::close(1), ::close(2);
    if (::write(ends[1], &runs, 1) != 1) ::_exit(1);
    while (true) ::pause();
}

Value group_target(const Value& asked) {
    std::vector<Attribute> attributes;
    for (const auto& [name, groups] : asked["attributes"].object()) attributes.push_back({name, texts(groups)});
    check_attributes(attributes, "attributes");
    List out;
    for (const Part& part : parse_group_target(asked["target"].text(), attributes)) {
        out.push_back(List{part.text(), list_of(part.shares)});
    }
    return out;
}

Value json_text(const Value& asked) {
    const auto dialect = asked["dialect"].text() == "python" ? json::Dialect::python : json::Dialect::pydantic;
    List out;
    for (const Value& each : asked["texts"].list()) {
        out.push_back(told([&] { return Value(json::write(json::read(bytes_of(each), dialect))); }));
    }
    return out;
}

Value words(const Value& asked) {
    List out;
    for (const std::string& value : texts(asked["floats"])) {
        const auto found = parse_float(value);
        out.push_back(found ? Value(repr(*found)) : Value());
    }
    List reprs;
    for (const std::string& value : texts(asked["texts"])) {
        reprs.push_back(List{repr(value), std::string(strip(value)), is_printable(value), clean_path(value)});
    }
    return Object{{"floats", out}, {"texts", reprs}};
}

Value answer(const Value& asked) {
    static const std::map<std::string, Value (*)(const Value&)> operations = {
        {"tables", tables},
        {"noise", noise},
        {"seeds", seeds},
        {"order", order},
        {"quota", quota},
        {"tree", tree_quota},
        {"target", [](const Value& it) { return list_of(parse_target(it["target"].text(), it["tops"].natural())); }},
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
         [](const Value& it) { return Value(names_one(it["prompt"].text(), checked_words(texts(it["words"])))); }},
    };
    return operations.at(asked["op"].text())(asked);
}

}  // namespace

int main() {
    for (std::string line; std::getline(std::cin, line);) {
        const Value out = told([&] { return Object{{"result", answer(json::read(line))}}; });
        std::cout << json::write(out) << std::endl;
    }
    return 0;
}
