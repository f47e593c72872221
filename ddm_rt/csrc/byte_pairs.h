// Byte-pair encoding of one word, with CLIP's mark at its end (Sennrich et al. 2016, arXiv 1508.07909).
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace ddm {

class Field;

class BytePairs {
public:
    BytePairs() = default;

    // From the member `model` of a tokenizer.json. Throws Error saying which of its fields doesn't fit.
    explicit BytePairs(const Field& model);

    // Appends the word's ids.
    void encode(std::string_view word, std::vector<int64_t>& out) const;

    bool knows(int64_t id) const;

private:
    struct Merge {
        int64_t rank, id;
    };

    int64_t id_of(const std::string& token) const;
    void add_merge(const std::string& left, const std::string& right);

    std::unordered_map<std::string, int64_t> vocabulary_;
    std::unordered_map<uint64_t, Merge> merges_;  // by the ids of both, 32 bits each
    std::array<int64_t, 256> inside_{}, last_{};  // ids of the single bytes, within a word and at its end
};

}  // namespace ddm
