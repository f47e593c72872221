#include "reuse.h"

#include <algorithm>
#include <functional>

#include "error.h"
#include "text.h"

namespace ddm {
namespace {

constexpr size_t LEAST = 2;          // calls: those of the first and of the last step
constexpr double MOST_FACTOR = 1e6;  // of a row

}  // namespace

Reuse Reuse::read(const Field& tree) {
    Reuse out;
    const Field steps = tree["steps"];
    steps.each([&](const Field& step) { out.steps.push_back(step.whole(0)); });
    const bool falls =
        std::adjacent_find(out.steps.begin(), out.steps.end(), std::greater_equal<>()) != out.steps.end();
    if (out.steps.size() < LEAST || out.steps[0] != 0 || falls) {
        steps.refuse("the numbers of two or more steps in ascending order, from 0 on");
    }
    tree["rows"].each([&](const Field& row) {
        auto& factors = out.rows.emplace_back();
        const std::vector<Field> given = row.list_of(factors.size());
        for (size_t k = 0; k < given.size(); ++k) factors[k] = given[k].number(-MOST_FACTOR, MOST_FACTOR);
    });
    tree.nothing_else();
    return out;
}

json::Out Reuse::tree() const { return {{"steps", steps}, {"rows", rows}}; }

StepTable Reuse::of(const StepTable& table) const {
    const size_t last = table.num_steps() - 1;
    if (rows.size() != steps.size() || static_cast<size_t>(steps.back()) != last) {
        throw about("cache", concat(": has ", rows.size(), " rows for the steps ", json::write(steps),
                                    "; expected one for each, up to step ", last));
    }
    if (std::any_of(table.f.begin(), table.f.end(), [](double f) { return f != 0; })) {
        throw about("cache",
                    concat(" is given, but the sampler ", name_of(table.sampler), " adds noise in its steps here"));
    }
    if (std::any_of(table.kept.begin(), table.kept.end(), [](double kept) { return kept < 1; })) {
        throw about("cache", " is given, but cads adds noise to the prompt's tokens in its steps");
    }
    StepTable out = table;
    const auto pick = [&](auto& column) {
        for (size_t i = 0; i < steps.size(); ++i) column[i] = column[static_cast<size_t>(steps[i])];
        column.resize(steps.size());
    };
    for (auto* column :
         {&out.t, &out.a, &out.b, &out.c, &out.d, &out.e, &out.g, &out.f, &out.clip_min, &out.clip_max, &out.kept}) {
        pick(*column);
    }
    pick(out.guided);
    for (size_t i = 0; i < rows.size(); ++i) {
        const auto [c, d, e, g] = rows[i];
        out.c[i] = c, out.d[i] = d, out.e[i] = e, out.g[i] = g;
    }
    return out;
}

}  // namespace ddm
