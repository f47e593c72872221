#include "conditions.h"

#include <algorithm>
#include <array>
#include <limits>

#include "buckets.h"
#include "text.h"

namespace ddm {
namespace {

constexpr const char* kContext = "context";
constexpr const char* kSizes = "time_ids";  // SDXL: height, width, crop top, crop left, height and width, in pixels

constexpr int64_t kKept = int64_t{1} << 26;  // numbers: 256 MiB in float32
constexpr int64_t kLeastRows = 48;
constexpr size_t kProbeRows = 8;
constexpr std::array kProbeTexts{"", "a photograph of a person at work", "an oil painting, in many colours",
                                 "a street at night"};

constexpr int64_t kMost = std::numeric_limits<int64_t>::max();

// Where it isn't a number that memory could hold, the most that there is.
int64_t product(int64_t a, int64_t b) {
    int64_t found = 0;
    return a < 0 || b < 0 || __builtin_mul_overflow(a, b, &found) ? kMost : found;
}

// How many numbers a row has; free axes are taken for tokens.
int64_t numbers(const TensorSpec& spec, int64_t tokens) {
    int64_t found = 1;
    for (const Axis& side : spec.shape) {
        const int64_t* fixed = std::get_if<int64_t>(&side);
        found = product(found, fixed ? *fixed : tokens);
    }
    return found;
}

int64_t longest_of(const RuntimeConfig& config) {
    int64_t longest = 1;
    for (const TextSpec& spec : config.text) longest = std::max(longest, spec.max_length);
    return longest;
}

int64_t tokens_of(const RuntimeConfig& config) {
    const int64_t* fixed = std::get_if<int64_t>(&config.context_tokens);
    return fixed ? *fixed : longest_of(config);
}

size_t room_for(std::optional<int64_t> bytes, int64_t numbers_each) {
    const int64_t kept = bytes ? *bytes / 4 : kKept;
    return static_cast<size_t>(std::max(kept / std::max<int64_t>(numbers_each, 1), bytes ? 1 : kLeastRows));
}

int64_t row_numbers(const RuntimeConfig& config) {
    int64_t sum = 0;
    for (const TensorSpec& spec : config.cond) {
        if (__builtin_add_overflow(sum, numbers(spec, longest_of(config)), &sum)) return kMost;
    }
    return sum;
}

}  // namespace

Conditions::Conditions(const Bundle& bundle, Backend& backend, std::optional<int64_t> bytes)
    : config_(bundle.config), num_codes_(static_cast<int64_t>(bundle.codes.num_codes())), path_(bundle.runtime_path()),
      backend_(backend), longest_(tokens_of(config_)), rows_(room_for(bytes, row_numbers(config_))),
      texts_(room_for(bytes, product(tokens_of(config_), config_.context_dim))) {
    const auto refuse = [&](const char* field, int64_t found) {
        if (found <= kKept) return;
        throw Error(Status::bundle, concat(path_, ": field ", field, ": ", found, " numbers; expected at most ", kKept),
                    field);
    };
    refuse("context_shape", product(longest_, config_.context_dim));
    for (const TensorSpec& spec : config_.added) refuse("added", numbers(spec, longest_));
    if (config_.prompt_free) return;
    for (const TextSpec& spec : config_.text) tokenizers_.emplace_back(bundle.file(spec.tokenizer), spec);
}

void Conditions::trim() {
    rows_.clear();
    texts_.clear();
}

Cond Conditions::probe_rows(double indicator_scale, Size size) {
    std::vector<int64_t> codes{NULL_CODE};
    for (int64_t code = 0; code < std::min<int64_t>(num_codes_, kProbeRows - 1); code++) codes.push_back(code);
    std::vector<Condition> wanted;
    if (config_.prompt_free) {
        for (const int64_t code : codes) wanted.push_back({std::nullopt, code});
    } else {
        for (size_t i = 0; i < kProbeRows; i++) {
            wanted.push_back({kProbeTexts[i % kProbeTexts.size()], codes[i % codes.size()]});
        }
    }
    std::vector<std::shared_ptr<const Cond>> rows;
    std::vector<const Cond*> places;
    for (const Condition& condition : wanted) {
        rows.push_back(row(condition, indicator_scale, size, {}));
        places.push_back(rows.back().get());
    }
    return stacked(places);
}

std::shared_ptr<const Cond> Conditions::row(const Condition& condition, double indicator_scale, Size size,
                                            const Warn& warn) {
    const bool sized = std::any_of(config_.added.begin(), config_.added.end(),
                                   [](const TensorSpec& spec) { return spec.name == kSizes; });
    // No other image will ask for a row with this noise.
    if (condition.noise) return std::make_shared<const Cond>(make(condition, indicator_scale, size, warn));
    const Key key{condition, indicator_scale, sized ? std::optional(size) : std::nullopt};
    return rows_.get(key, [&] { return make(condition, indicator_scale, size, warn); });
}

Cond Conditions::make(const Condition& condition, double indicator_scale, Size size, const Warn& warn) {
    const auto text = texts_.get(condition.text, [&] { return encode(condition.text, warn); });
    std::map<std::string, Array> given(text->begin(), text->end());
    if (condition.noise) {
        Array& context = given.at(kContext);
        add_noise(context.floats(), context.size(), *condition.noise);
    }
    const auto height = static_cast<float>(size.height), width = static_cast<float>(size.width);
    given.emplace("code", Array::of({1}, std::vector<int64_t>{condition.code}));
    given.emplace("indicator_scale", Array::of({1}, std::vector{static_cast<float>(indicator_scale)}));
    given.emplace(kSizes, Array::of({1, 6}, std::vector<float>{height, width, 0, 0, height, width}));
    for (const TensorSpec& spec : config_.added) {
        const auto found = given.find(spec.name);
        if (found == given.end()) {
            throw about(Status::bundle, path_, concat(": field added: ", repr(spec.name), " is given by nothing"));
        }
        found->second = cast(found->second, dtype_named(spec.dtype));
    }
    return backend_.conditioner(given);
}

// Context [1, T, D] and, where the family has one, the pooled text [1, P]; zeros for no text.
Cond Conditions::encode(const std::optional<std::string>& text, const Warn& warn) {
    if (!text || tokenizers_.empty()) {
        Cond zeros{{kContext, Array(DType::float32, {1, longest_, config_.context_dim})}};
        for (const TensorSpec& spec : config_.added) {
            if (spec.name == kSizes) continue;
            std::vector<int64_t> shape{1};
            for (const Axis& side : spec.shape) {
                const int64_t* fixed = std::get_if<int64_t>(&side);
                if (!fixed) {
                    throw about(Status::bundle, path_,
                                concat(": field added: shape of ", repr(spec.name), ": expected numbers"));
                }
                shape.push_back(*fixed);
            }
            zeros.emplace_back(spec.name, Array(DType::float32, shape));
        }
        return zeros;
    }
    std::map<std::string, Array> ids;
    std::vector<std::string> said;
    for (size_t i = 0; i < tokenizers_.size(); i++) {
        const TextSpec& spec = config_.text[i];
        std::string loss;
        ids.emplace(spec.input, Array::of({1, spec.max_length}, tokenizers_[i].ids(*text, loss)));
        if (loss.empty() || std::find(said.begin(), said.end(), loss) != said.end()) continue;
        said.push_back(loss);
        if (warn) warn(loss);
    }
    return backend_.text_encoder(ids);
}

}  // namespace ddm
