// Text and code to rows of `cond`: each row is made once, alone, and kept while there is room.
#pragma once

#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "backend.h"
#include "clip_tokenizer.h"
#include "error.h"
#include "guidance.h"
#include "recent.h"

namespace ddm {

struct Size {
    int64_t height, width;  // of images, in pixels

    auto operator<=>(const Size&) const = default;
};

// Any number of threads may use it.
class Conditions {
public:
    // Keeps rows and texts of so many `bytes` each, and one at least; by default 256 MiB, and 48 at least.
    // Throws Error for a tokenizer that can't be read, and for sizes that no model has.
    Conditions(const Bundle& bundle, Backend& backend, std::optional<int64_t> bytes = std::nullopt);

    // `cond` of one row.
    std::shared_ptr<const Cond> row(const Condition& condition, double indicator_scale, Size size, const Warn& warn);

    // Rows of unlike texts and codes for `probe`.
    Cond probe_rows(double indicator_scale, Size size);

    void trim();  // forget what is kept

private:
    struct Key {
        Condition condition;
        double indicator_scale;
        std::optional<Size> size;  // where the conditioner takes it

        auto operator<=>(const Key&) const = default;
    };

    Cond make(const Condition& condition, double indicator_scale, Size size, const Warn& warn);
    Cond encode(const std::optional<std::string>& text, const Warn& warn);

    const RuntimeConfig config_;
    const int64_t num_codes_;
    const std::string path_;  // of the file that says what they are
    Backend& backend_;
    std::vector<ClipTokenizer> tokenizers_;  // one for each text encoder
    int64_t longest_;                        // tokens of a prompt
    Recent<Key, Cond> rows_;
    Recent<std::optional<std::string>, Cond> texts_;
};

}  // namespace ddm
