// What a program needs to know of a bundle, beside its graphs and tokenizers: runtime.json says it, or of format 1
// config.json, schedule.json and codes.json. How the model was trained stands elsewhere, and is never read.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "schedule.h"

namespace ddm {

constexpr int64_t NULL_CODE = -1;

enum class Family { pixel, sd, sdxl };
enum class Balance { on, off, automatic };  // "on", "off", "auto"

const char* name_of(Family family);
const char* name_of(Balance balance);
Balance balance_named(std::string_view name);  // throws Error with the choices

struct Sampling {
    SamplerName sampler;
    int64_t num_steps;
    double eta;
    double guidance_scale;
    std::optional<double> indicator_guidance_scale;
    double indicator_scale;
    Clip clip;

    static Sampling of(const Field& tree);
};

using Axis = std::variant<int64_t, std::string>;  // text: a free axis

struct TensorSpec {
    std::string name;
    std::vector<Axis> shape;  // after the batch axis
    std::string dtype;        // "float32", "float16" or "int64"
};

struct TextSpec {
    std::string tokenizer;  // path in the bundle
    std::string input;      // of text_encoder.onnx: int64 [B, max_length]
    int64_t max_length;
    int64_t pad_id;
};

struct RuntimeConfig {
    Family family;
    std::string name;
    std::string precision;                // "fp32", ...
    std::array<int64_t, 3> latent_shape;  // C, H, W at the training size
    int64_t image_size;
    int64_t channels;
    int64_t size_multiple;
    Axis context_tokens;  // T of the conditioner's context [B, T, D]
    int64_t context_dim;  // D
    bool prompt_free;
    bool takes_negative_prompt;  // students have no branch for one
    std::vector<TextSpec> text;
    std::vector<TensorSpec> added;
    bool empty_negative_is_zero;
    std::vector<TensorSpec> cond;
    Sampling sampling;
};

struct Leaf {
    int64_t code;
    int64_t top_code;
    int64_t size;
    double share_in_top;
};

// One way in which images differ, and each code's value of it.
struct Factor {
    std::string name;
    std::vector<std::string> values;
    std::vector<size_t> value_of;  // of each code: an index into `values`
};

struct Codes {
    std::vector<Leaf> leaves;          // of the codes 0, 1, ...; their top codes have no gaps
    std::vector<Factor> factors = {};  // what the codes are cells of, where somebody named it

    size_t num_codes() const { return leaves.size(); }
    size_t num_top_codes() const;
};

struct Runtime {
    RuntimeConfig config;
    Codes codes;
    Schedule schedule;

    // What runtime.json says. Throws Error naming the file and the field that is wrong, or that needs a newer version.
    // Fields that this version doesn't know are left alone, as "requires" names what it must know.
    static Runtime of_format_2(const Field& file);

    // What config.json, schedule.json and codes.json say. Of how the model was trained, no more is read than whether it
    // is a student.
    static Runtime of_format_1(const Field& config, const Field& schedule, const Field& codes);
};

class Field;

}  // namespace ddm
