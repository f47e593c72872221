#include "byte_pairs.h"

#include <algorithm>
#include <limits>
#include <queue>
#include <tuple>

#include "error.h"
#include "fields.h"
#include "text.h"
#include "unicode.h"

namespace ddm {
namespace {

constexpr const char* WORD_END = "</w>";

// The visible character that stands for a byte in a vocabulary (GPT-2's table).
char32_t visible(unsigned byte) {
    const auto is_own = [](unsigned b) { return (b >= 33 && b < 127) || (b >= 161 && b < 173) || b >= 174; };
    if (is_own(byte)) return byte;
    char32_t number = 256;
    for (unsigned b = 0; b < byte; b++) number += !is_own(b);
    return number;
}

uint64_t key_of(int64_t left, int64_t right) {
    return static_cast<uint64_t>(left) << 32 | static_cast<uint64_t>(right);
}

}  // namespace

BytePairs::BytePairs(const Field& model) {
    for (const char* name : {"dropout", "continuing_subword_prefix", "fuse_unk", "byte_fallback", "ignore_merges"}) {
        const auto field = model.find(name);
        if (field && field->value() != false && field->value() != "") field->refuse("none, as CLIP has it");
    }
    if (const auto type = model.find("type")) type->one_of({"BPE"});
    model["end_of_word_suffix"].one_of({WORD_END});
    model["vocab"].each_member([&](const std::string& token, const Field& id) {
        vocabulary_.emplace(token, id.whole(0, std::numeric_limits<uint32_t>::max()));
    });
    model["merges"].each([&](const Field& merge) {
        if (merge.value().is_array()) {
            const std::vector<Field> both = merge.list_of(2);
            add_merge(both[0].text(), both[1].text());
        } else {
            const std::string text = merge.text();
            if (text.find(' ') == text.npos) merge.refuse("a pair of tokens");
            add_merge(text.substr(0, text.find(' ')), text.substr(text.find(' ') + 1));
        }
    });
    for (unsigned byte = 0; byte < 256; byte++) {
        std::string token;
        append_utf8(token, visible(byte));
        inside_[byte] = id_of(token);
        last_[byte] = id_of(token + WORD_END);
    }
}

int64_t BytePairs::id_of(const std::string& token) const {
    const auto found = vocabulary_.find(token);
    if (found != vocabulary_.end()) return found->second;
    throw Error(Status::input, concat("field model.vocab: has no token ", repr(token)), "model.vocab");
}

void BytePairs::add_merge(const std::string& left, const std::string& right) {
    const Merge merge{static_cast<int64_t>(merges_.size()), id_of(left + right)};
    merges_.insert_or_assign(key_of(id_of(left), id_of(right)), merge);
}

bool BytePairs::knows(int64_t id) const {
    return std::any_of(vocabulary_.begin(), vocabulary_.end(), [&](const auto& entry) { return entry.second == id; });
}

// Of all neighbours that can be merged, the pair of the lowest rank goes first, of equal ones the leftmost.
void BytePairs::encode(std::string_view word, std::vector<int64_t>& out) const {
    constexpr size_t none = std::numeric_limits<size_t>::max();
    struct Symbol {
        int64_t id;
        size_t before, after;  // its neighbours
        bool gone;             // it was merged into the one before
    };
    std::vector<Symbol> symbols;
    symbols.reserve(word.size());
    for (size_t i = 0; i < word.size(); i++) {
        const auto byte = static_cast<unsigned char>(word[i]);
        const bool at_end = i + 1 == word.size();
        symbols.push_back({at_end ? last_[byte] : inside_[byte], i ? i - 1 : none, at_end ? none : i + 1, false});
    }
    using Candidate = std::tuple<int64_t, size_t, int64_t>;  // rank, place of the left one, what they become
    std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> waiting;
    const auto consider = [&](size_t left) {
        if (left == none || symbols[left].after == none) return;
        const auto found = merges_.find(key_of(symbols[left].id, symbols[symbols[left].after].id));
        if (found != merges_.end()) waiting.emplace(found->second.rank, left, found->second.id);
    };
    for (size_t i = 0; i + 1 < symbols.size(); i++) consider(i);
    while (!waiting.empty()) {
        const auto [rank, left, id] = waiting.top();
        waiting.pop();
        Symbol& symbol = symbols[left];
        if (symbol.gone || symbol.after == none) continue;
        Symbol& next = symbols[symbol.after];
        const auto found = merges_.find(key_of(symbol.id, next.id));  // its neighbours may be others by now
        if (found == merges_.end() || found->second.id != id) continue;
        next.gone = true;
        symbol.id = id;
        symbol.after = next.after;
        if (symbol.after != none) symbols[symbol.after].before = left;
        consider(symbol.before);
        consider(left);
    }
    for (const Symbol& symbol : symbols) {
        if (!symbol.gone) out.push_back(symbol.id);
    }
}

}  // namespace ddm
