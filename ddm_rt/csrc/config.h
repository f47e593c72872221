// What a program needs to know of a bundle, from config.json and codes.json, or from runtime.json (runtime.h).
#ifndef DDM_RT_CONFIG_H
#define DDM_RT_CONFIG_H

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "json.h"
#include "schedule.h"

namespace ddm {

constexpr int64_t NULL_CODE = -1;

enum class Family { pixel, sd, sdxl };
enum class Balance { on, off, automatic };  // "on", "off", "auto"

const char* name_of(Family family);
const char* name_of(Balance balance);
Balance balance_named(std::string_view name);  // throws Error with the choices

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

struct Sampling {
    SamplerName sampler;
    int64_t num_steps;
    double eta;
    double guidance_scale;
    std::optional<double> indicator_guidance_scale;
    double indicator_scale;
    Clip clip;
};

struct BundleConfig {
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
    std::vector<TextSpec> text;
    std::vector<TensorSpec> added;
    bool empty_negative_is_zero;
    std::vector<TensorSpec> cond;
    int64_t num_codes;
    int64_t num_top_codes;
    Sampling sampling;
    bool takes_negative_prompt;  // students have no branch for one

    // What config.json says.
    static BundleConfig from_json(std::string_view content, const std::string& path);
    // The fields that config.json and runtime.json have in common, checked.
    static BundleConfig of(const json::Value& tree);
};

struct Leaf {
    int64_t code;
    int64_t top_code;
    int64_t size;
    double share_in_top;
};

struct Codes {
    std::vector<Leaf> leaves;

    size_t num_codes() const { return leaves.size(); }
    size_t num_top_codes() const;

    // What codes.json says.
    static Codes from_json(std::string_view content, const std::string& path);
    static Codes of(const json::Value& leaves);  // checked
};

}  // namespace ddm

#endif
