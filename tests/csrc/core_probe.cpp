// What the core of the library gives, as one line of JSON on stdout for each line of JSON on stdin: {"op": ..., ...}.
// Tests compare it with Python's. An error is {"error": its words, "status": its number}.
#include <cmath>
#include <iostream>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "assignment.h"
#include "error.h"
#include "files.h"
#include "groups.h"
#include "json.h"
#include "leave_alone.h"
#include "noise.h"
#include "prepare.h"
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

std::optional<int64_t> maybe_integer(const Value& tree, const char* name) {
    return maybe(tree, name, [](const Value& value) { return value.integer(); });
}

bool flag(const Value& tree, const char* name) {
    const Value* found = tree.find(name);
    return found && found->boolean();
}

Value schedule(const Value& asked) {
    return list_of(Schedule::from_json(read_file(asked["path"].text()), asked["path"].text()).alphas_cumprod);
}

Value table(const Value& asked) {
    const std::string path = asked["path"].text();
    const Schedule schedule = Schedule::from_json(read_file(path), path);
    const auto spacing = maybe_text(asked, "spacing");
    const auto clip = maybe(asked, "clip", [](const Value& value) {
        return std::pair(numbers(value)[0], numbers(value)[1]);
    });
    const StepTable made =
        step_table(schedule, sampler_named(asked["sampler"].text()), asked["num_steps"].integer(),
                   maybe_number(asked, "eta").value_or(0), clip, spacing ? std::optional(spacing_named(*spacing)) : std::nullopt);
    List rows;
    for (const StepTable::Row& row : made.rows()) rows.push_back(list_of(row));
    Object columns;
    const std::pair<const char*, const std::vector<double>*> named[] = {
        {"t", &made.t}, {"a", &made.a}, {"b", &made.b}, {"c", &made.c}, {"d", &made.d},
        {"e", &made.e}, {"g", &made.g}, {"f", &made.f}, {"clip_min", &made.clip_min}, {"clip_max", &made.clip_max}};
    for (const auto& [name, column] : named) columns.emplace_back(name, list_of(*column));
    return Object{{"init_scale", made.init_scale},
                  {"rows", rows},
                  {"timesteps", list_of(made.timesteps())},
                  {"columns", columns}};
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
    const Tree tree = code_tree(opened);
    return Object{{"bundle_id", opened.bundle_id},
                  {"num_codes", uint64_t{opened.codes.num_codes()}},
                  {"num_top_codes", uint64_t{tree.size()}},
                  {"latent_shape", list_of(opened.config.latent_shape)},
                  {"prompt_free", opened.config.prompt_free},
                  {"student", opened.config.student}};
}

Wanted wanted_of(const Value& asked) {
    Wanted out;
    const auto own_texts = [](const Value& value) { return texts(value); };
    out.prompt = maybe(asked, "prompt", own_texts);
    out.negative_prompt = maybe_text(asked, "negative_prompt");
    out.n = maybe_integer(asked, "n").value_or(1);
    if (const Value* seed = asked.find("seed")) out.seed = seed->natural();
    out.codes = maybe(asked, "codes", [](const Value& value) { return integers(value); });
    out.num_steps = maybe_integer(asked, "num_steps");
    out.sampler = maybe_text(asked, "sampler");
    out.guidance_scale = maybe_number(asked, "guidance_scale");
    out.indicator_guidance_scale = maybe_number(asked, "indicator_guidance_scale");
    out.height = maybe_integer(asked, "height");
    out.width = maybe_integer(asked, "width");
    out.target = maybe_text(asked, "target").value_or("uniform");
    out.balance = maybe_text(asked, "balance").value_or("auto");
    out.scope = maybe_text(asked, "scope");
    out.shuffle = flag(asked, "shuffle");
    out.allow_stale = flag(asked, "allow_stale");
    out.leave_alone = maybe(asked, "leave_alone", own_texts);
    return out;
}

const MadeBy MADE_BY{"test", "fp32", 1, {{"ddm_rt", "0"}}};

Value told(const Prepared& made, const List& warnings) {
    List texts;
    for (const Job& job : made.jobs) texts.push_back(job.text ? Value(*job.text) : Value());
    return Object{{"manifest", made.manifest.write()},
                  {"shape", list_of(made.shape)},
                  {"num_rows", uint64_t{made.table.num_steps()}},
                  {"texts", texts},
                  {"null_text", made.null_text ? Value(*made.null_text) : Value()},
                  {"warnings", warnings}};
}

Value prepare_one(const Value& asked) {
    const Bundle opened = Bundle::load(asked["path"].text());
    Ledger ledger(maybe_text(asked, "ledger"));
    ledger.check_bundle(opened.bundle_id);
    List warnings;
    Prepared made = prepare(opened, wanted_of(asked["request"]), MADE_BY, ledger,
                            [&](const std::string& text) { warnings.push_back(Value(text)); });
    if (made.lease && flag(asked, "commit")) made.lease->commit();
    return told(made, warnings);
}

Value replay_one(const Value& asked) {
    const Bundle opened = Bundle::load(asked["path"].text());
    List warnings;
    const Prepared made = replay(opened, Manifest::read(asked["manifest"].text()), maybe_integer(asked, "index"),
                                 MADE_BY, [&](const std::string& text) { warnings.push_back(Value(text)); });
    return told(made, warnings);
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
    if (what == "check_bundle") ledgers.at(name)->check_bundle(asked["bundle_id"].text());
    if (what != "counts") return Value();
    const LedgerCounts counts = ledgers.at(name)->counts(stream_of(asked));
    Object out;
    for (const auto& [label, part] : {std::pair("issued", &counts.issued), {"leased", &counts.leased}, {"pooled", &counts.pooled}}) {
        Object by_code;
        for (const auto& [code, n] : *part) by_code.emplace_back(std::to_string(code), n);
        out.emplace_back(label, by_code);
    }
    return out;
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

Value json_file(const Value& asked) {
    const auto dialect = asked["dialect"].text() == "python" ? json::Dialect::python : json::Dialect::pydantic;
    return json::read(read_file(asked["path"].text()), dialect);
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
        {"schedule", schedule},
        {"table", table},
        {"noise", noise},
        {"seeds", seeds},
        {"order", order},
        {"quota", quota},
        {"tree", tree_quota},
        {"target", [](const Value& it) { return list_of(parse_target(it["target"].text(), it["tops"].natural())); }},
        {"group_target", group_target},
        {"bundle", bundle},
        {"prepare", prepare_one},
        {"replay", replay_one},
        {"manifest", [](const Value& it) { return Value(Manifest::read(it["path"].text()).write()); }},
        {"ledger", ledger},
        {"json", json_file},
        {"text", words},
        {"leave_alone",
         [](const Value& it) { return Value(names_one(it["prompt"].text(), checked_words(texts(it["words"])))); }},
    };
    return operations.at(asked["op"].text())(asked);
}

}  // namespace

int main() {
    for (std::string line; std::getline(std::cin, line);) {
        Value out;
        try {
            out = Object{{"result", answer(json::read(line))}};
        } catch (const Error& error) {
            out = Object{{"error", std::string(error.what())}, {"status", static_cast<int>(error.status)}};
        }
        std::cout << json::write(out) << std::endl;
    }
    return 0;
}
