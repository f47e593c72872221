// Prompts to token ids: what the `tokenizers` library makes of them with a CLIP checkpoint's tokenizer.json.
#ifndef DDM_RT_CLIP_TOKENIZER_H
#define DDM_RT_CLIP_TOKENIZER_H

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "byte_pairs.h"
#include "runtime.h"
#include "json.h"
#include "unicode.h"

namespace ddm {

class ClipTokenizer {
public:
    // From the file `path`. Throws Error (Status::bundle) for what is no tokenizer of CLIP's kind, or lacks a token.
    ClipTokenizer(const std::string& path, const TextSpec& spec);
    ClipTokenizer(std::string_view content, const std::string& path, const TextSpec& spec);

    // `max_length` ids of text in UTF-8: begin, tokens, end, padding. Where it is too long, `loss` says what was cut.
    std::vector<int64_t> ids(std::string_view text, std::string& loss) const;

private:
    struct Token {
        int64_t id;
        size_t end;  // the number of the text's character that it ends before
    };
    using Tokens = std::vector<Token>;
    using Added = std::vector<std::pair<unicode::Letters, int64_t>>;  // tokens that are found as they are

    void read(const json::Value& tree);
    void read_ends(const json::Value& tree);
    void add_segment(const unicode::Letters& text, Tokens& out) const;
    void add_words(const unicode::Letters& text, Tokens& out) const;
    size_t literal_at(const unicode::Letters& text, size_t start) const;

    TextSpec spec_;
    BytePairs pairs_;
    Added added_, added_normalized_;  // found in the text as given, and in its normal form
    std::vector<unicode::Letters> literals_;  // what the pattern of words takes whole, besides words
    int64_t begin_ = 0, end_ = 0;
};

}  // namespace ddm

#endif
