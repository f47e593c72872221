// What the engine's parts give, as JSON on stdout for a request in JSON on stdin: tests compare it with Python's.
#include <bit>
#include <cstdio>
#include <cstring>
#include <iostream>
#include <iterator>
#include <optional>
#include <string>

#include "array.h"
#include "buckets.h"
#include "clip_tokenizer.h"
#include "error.h"
#include "guidance.h"
#include "guided_step.h"
#include "json.h"
#include "projected_guidance.h"
#include "scoped_words.h"

namespace {

using ddm::json::List;
using ddm::json::Object;
using ddm::json::Value;

template <typename T>
Value list_of(const T& values) {
    List list;
    for (const auto& value : values) list.push_back(Value(value));
    return list;
}

std::optional<std::string> text_or_none(const Value& value) {
    return value.is_null() ? std::nullopt : std::optional(value.text());
}

// {"tokenizer", "max_length", "pad_id", "texts"} -> [[ids, warning]]
Value tokens(const Value& asked) {
    const ddm::TextSpec spec{"", "", asked["max_length"].integer(), asked["pad_id"].integer()};
    const ddm::ClipTokenizer tokenizer(asked["tokenizer"].text(), spec);
    List found;
    for (const Value& text : asked["texts"].list()) {
        std::string loss;
        const Value ids = list_of(tokenizer.ids(text.text(), loss));
        found.push_back(List{ids, loss});
    }
    return found;
}

// [{"text", "code", "null", "text_scale", "code_scale"}] -> [[[[text, code]], [scale]]]
Value branches(const Value& asked) {
    List found;
    for (const Value& each : asked["cases"].list()) {
        const Value& scale = each["text_scale"];
        const ddm::Branches made =
            ddm::branches({text_or_none(each["text"]), each["code"].integer()}, text_or_none(each["null"]),
                          scale.is_null() ? std::nullopt : std::optional(scale.number()), each["code_scale"].number());
        List conditions;
        for (const ddm::Condition& condition : made.conditions) {
            conditions.push_back(List{condition.text ? Value(*condition.text) : Value(), Value(condition.code)});
        }
        found.push_back(List{conditions, list_of(made.scales)});
    }
    return found;
}

// [[rows, [bucket]]] -> [[[row]]]
Value splits(const Value& asked) {
    List found;
    for (const Value& each : asked["cases"].list()) {
        std::vector<size_t> buckets;
        for (const Value& size : each.list()[1].list()) buckets.push_back(static_cast<size_t>(size.integer()));
        List calls;
        for (const auto& call : ddm::split(static_cast<size_t>(each.list()[0].integer()), buckets)) {
            List rows;
            for (const size_t row : call) rows.push_back(Value(static_cast<uint64_t>(row)));
            calls.push_back(rows);
        }
        found.push_back(calls);
    }
    return found;
}

std::vector<float> floats(const Value& list) {
    std::vector<float> found;
    for (const Value& value : list.list()) found.push_back(static_cast<float>(value.number()));
    return found;
}

// One image's {"outputs", "scales", "apg"} -> the combined output
Value project(const Value& asked) {
    std::vector<std::vector<float>> outputs;
    std::vector<const float*> pointers;
    for (const Value& output : asked["outputs"].list()) outputs.push_back(floats(output));
    for (const auto& output : outputs) pointers.push_back(output.data());
    const std::vector<float> limits = floats(asked["apg"]);
    std::vector<float> combined(outputs[0].size());
    ddm::projected_guidance(pointers, floats(asked["scales"]), {limits[0], limits[1]}, combined.data(), combined.size());
    return list_of(std::vector<double>(combined.begin(), combined.end()));
}

// One image's {"outputs", "scales", "row", "x", "x0", "seed", "counter"} -> [x', x0]
Value step(const Value& asked) {
    std::vector<std::vector<float>> outputs;
    std::vector<const float*> pointers;
    for (const Value& output : asked["outputs"].list()) outputs.push_back(floats(output));
    for (const auto& output : outputs) pointers.push_back(output.data());
    const std::vector<float> row = floats(asked["row"]);
    ddm::StepTable::Row coefficients{};
    std::copy_n(row.begin(), coefficients.size(), coefficients.begin());
    std::vector<float> x = floats(asked["x"]), x0 = floats(asked["x0"]), noise;
    ddm::guided_step(pointers, floats(asked["scales"]), coefficients, x.data(), x0.data(), x.size(),
                     asked["seed"].natural(), static_cast<uint32_t>(asked["counter"].natural()), noise);
    const std::vector<double> next(x.begin(), x.end()), now(x0.begin(), x0.end());
    return List{list_of(next), list_of(now)};
}

// {"bits", "dtype"}: numbers by their bits in float32 -> their bits as another dtype
Value cast(const Value& asked) {
    std::vector<float> values;
    for (const Value& bits : asked["bits"].list()) {
        values.push_back(std::bit_cast<float>(static_cast<uint32_t>(bits.natural())));
    }
    const ddm::DType dtype = ddm::dtype_named(asked["dtype"].text());
    const ddm::Array found = ddm::cast(ddm::Array::of({static_cast<int64_t>(values.size())}, values), dtype);
    List list;
    for (size_t i = 0; i < found.size(); i++) {
        int64_t bits = 0;
        std::memcpy(&bits, found.bytes.data() + i * size_of(dtype), size_of(dtype));
        list.push_back(Value(bits));
    }
    return list;
}

// {"content", "scope"} -> words
Value words(const Value& asked) {
    return list_of(ddm::words_for(ddm::words_by_scope(asked["content"].text(), "words.json"), text_or_none(asked["scope"])));
}

}  // namespace

int main() {
    const std::string input{std::istreambuf_iterator<char>(std::cin), std::istreambuf_iterator<char>()};
    try {
        const Value asked = ddm::json::read(input);
        const std::string& op = asked["op"].text();
        const Value found = op == "tokens"     ? tokens(asked)
                            : op == "branches" ? branches(asked)
                            : op == "splits"   ? splits(asked)
                            : op == "step"     ? step(asked)
                            : op == "project"  ? project(asked)
                            : op == "cast"     ? cast(asked)
                                               : words(asked);
        std::cout << ddm::json::write(found) << '\n';
        return 0;
    } catch (const ddm::Error& error) {
        std::cout << ddm::json::write(Object{{"error", std::string(error.what())}}) << '\n';
        return 2;
    }
}
