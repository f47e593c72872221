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
#include "json.h"
#include "leave_alone.h"

namespace {

using ddm::json::Out;
using ddm::json::Value;

std::optional<std::string> text_or_none(const Value& value) {
    return value.is_null() ? std::nullopt : std::optional(value.get<std::string>());
}

// {"tokenizer", "max_length", "pad_id", "texts"} -> [[ids, warning]]
Out tokens(const Value& asked) {
    const ddm::ClipTokenizer tokenizer(asked["tokenizer"], {"", "", asked["max_length"], asked["pad_id"]});
    Out found = Out::array();
    for (const std::string text : asked["texts"]) {
        std::string loss;
        const auto ids = tokenizer.ids(text, loss);
        found.push_back(Out::array({ids, loss}));
    }
    return found;
}

// [{"text", "code", "null", "text_scale", "code_scale"}] -> [[[[text, code]], [scale]]]
Out branches(const Value& asked) {
    Out found = Out::array();
    for (const Value& each : asked["cases"]) {
        const Value& scale = each["text_scale"];
        const ddm::Branches made =
            ddm::branches({text_or_none(each["text"]), each["code"]}, text_or_none(each["null"]),
                          scale.is_null() ? std::nullopt : std::optional(scale.get<double>()), each["code_scale"]);
        Out conditions = Out::array();
        for (const ddm::Condition& condition : made.conditions) {
            conditions.push_back(Out::array({condition.text ? Out(*condition.text) : Out(), condition.code}));
        }
        found.push_back(Out::array({conditions, made.scales}));
    }
    return found;
}

// [[rows, [bucket]]] -> [[[row]]]
Out splits(const Value& asked) {
    Out found = Out::array();
    for (const Value& each : asked["cases"]) found.push_back(ddm::split(each[0], each[1]));
    return found;
}

std::vector<float> floats(const Value& list) { return list.get<std::vector<float>>(); }

std::vector<double> doubles(const std::vector<float>& values) { return {values.begin(), values.end()}; }

// One image's {"outputs", "scales", "apg"} -> the combined output
Out project(const Value& asked) {
    const std::vector<std::vector<float>> outputs = asked["outputs"];
    std::vector<const float*> pointers;
    for (const auto& output : outputs) pointers.push_back(output.data());
    const std::vector<float> limits = floats(asked["apg"]);
    std::vector<float> combined(outputs[0].size());
    ddm::projected_guidance(pointers, floats(asked["scales"]), {limits[0], limits[1]}, combined.data(),
                            combined.size());
    return doubles(combined);
}

// One image's {"outputs", "scales", "row", "x", "x0", "seed", "counter"} -> [x', x0]
Out step(const Value& asked) {
    const std::vector<std::vector<float>> outputs = asked["outputs"];
    std::vector<const float*> pointers;
    for (const auto& output : outputs) pointers.push_back(output.data());
    const ddm::StepTable::Row coefficients = asked["row"];
    std::vector<float> x = floats(asked["x"]), x0 = floats(asked["x0"]), noise;
    ddm::guided_step(pointers, floats(asked["scales"]), coefficients, x.data(), x0.data(), x.size(), asked["seed"],
                     asked["counter"], noise);
    return Out::array({doubles(x), doubles(x0)});
}

// {"bits", "dtype"}: numbers by their bits in float32 -> their bits as another dtype
Out cast(const Value& asked) {
    std::vector<float> values;
    for (const uint32_t bits : asked["bits"]) values.push_back(std::bit_cast<float>(bits));
    const ddm::DType dtype = ddm::dtype_named(asked["dtype"]);
    const ddm::Array found = ddm::cast(ddm::Array::of({static_cast<int64_t>(values.size())}, values), dtype);
    Out list = Out::array();
    for (size_t i = 0; i < found.size(); i++) {
        int64_t bits = 0;
        std::memcpy(&bits, found.bytes.data() + i * size_of(dtype), size_of(dtype));
        list.push_back(bits);
    }
    return list;
}

// {"content", "scope"} -> words
Out words(const Value& asked) {
    return ddm::words_for(ddm::words_by_scope(asked["content"].get<std::string>(), "words.json"),
                          text_or_none(asked["scope"]));
}

}  // namespace

int main() {
    const std::string input{std::istreambuf_iterator<char>(std::cin), std::istreambuf_iterator<char>()};
    try {
        const Value asked = ddm::json::read(input, SIZE_MAX);
        const std::string op = asked["op"];
        const Out found = op == "tokens"     ? tokens(asked)
                          : op == "branches" ? branches(asked)
                          : op == "splits"   ? splits(asked)
                          : op == "step"     ? step(asked)
                          : op == "project"  ? project(asked)
                          : op == "cast"     ? cast(asked)
                                             : words(asked);
        std::cout << ddm::json::write(found) << '\n';
        return 0;
    } catch (const ddm::Error& error) {
        std::cout << ddm::json::write({{"error", error.what()}}) << '\n';
        return 2;
    }
}
