// Prompts to token ids: what the `tokenizers` library makes of them with a CLIP checkpoint's tokenizer.json.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "byte_pairs.h"
#include "runtime.h"

namespace ddm {

class ClipTokenizer {
public:
    // From the file `path`. Throws Error (Status::bundle) for what is no tokenizer of CLIP's kind, or lacks a token.
    ClipTokenizer(const std::string& path, const TextSpec& spec);
    ClipTokenizer(std::string_view content, const std::string& path, const TextSpec& spec);

    // `max_length` ids of text in UTF-8: begin, tokens, end, padding. Where it is too long, `loss` says so.
    std::vector<int64_t> ids(std::string_view text, std::string& loss) const;

private:
    using Ids = std::vector<int64_t>;
    using Added = std::vector<std::pair<std::u32string, int64_t>>;  // tokens that are found as they are

    void read(const Field& file);
    void read_ends(const Field& tree);
    void add_words(const std::u32string& text, Ids& out) const;
    size_t literal_at(std::u32string_view text) const;

    TextSpec spec_;
    BytePairs pairs_;
    Added added_, added_normalized_;        // found in the text as given, and in its normal form
    std::vector<std::u32string> literals_;  // what the pattern of words takes whole, besides words
    int64_t begin_ = 0, end_ = 0;
};

}  // namespace ddm
