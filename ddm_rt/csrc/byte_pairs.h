// Byte-pair encoding of one word, with CLIP's mark at its end (Sennrich et al. 2016, arXiv 1508.07909).
#ifndef DDM_RT_BYTE_PAIRS_H
#define DDM_RT_BYTE_PAIRS_H

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "json.h"

namespace ddm {

class BytePairs {
public:
    BytePairs() = default;

    // From the member `model` of a tokenizer.json. Throws Error saying which of its fields doesn't fit.
    explicit BytePairs(const json::Value& model);

    // Ids with the number of the byte that each ends before.
    std::vector<std::pair<int64_t, size_t>> encode(std::string_view word) const;

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

#endif
