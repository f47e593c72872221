#include "byte_pairs.h"

#include <algorithm>
#include <limits>
#include <queue>
#include <tuple>

#include "error.h"
#include "text.h"
#include "unicode.h"

namespace ddm {
namespace {

constexpr const char* kWordEnd = "</w>";

[[noreturn]] void refuse_model(const std::string& field, const std::string& expected) {
    throw Error(concat("field model.", field, ": expected ", expected));
}

// The visible character that stands for a byte in a vocabulary (GPT-2's table).
char32_t visible(unsigned byte) {
    const auto is_own = [](unsigned b) { return (b >= 33 && b < 127) || (b >= 161 && b < 173) || b >= 174; };
    if (is_own(byte)) return byte;
    char32_t number = 256;
    for (unsigned b = 0; b < byte; b++) number += !is_own(b);
    return number;
}

uint64_t key_of(int64_t left, int64_t right) { return static_cast<uint64_t>(left) << 32 | static_cast<uint64_t>(right); }

bool is_off(const json::Value& model, std::string_view name) {
    const json::Value* value = model.find(name);
    if (!value || value->is_null()) return true;
    if (const bool* flag = value->as<bool>()) return !*flag;
    const std::string* text = value->as<std::string>();
    return text && text->empty();
}

const json::Value& model_member(const json::Value& tree, std::string_view name, const char* expected) {
    const json::Value* value = tree.find(name);
    if (!value) refuse_model(std::string(name), expected);
    return *value;
}

}  // namespace

BytePairs::BytePairs(const json::Value& model) {
    if (!model.as<json::Object>()) throw Error("field model: expected an object");
    for (const char* name : {"dropout", "continuing_subword_prefix", "fuse_unk", "byte_fallback", "ignore_merges"}) {
        if (!is_off(model, name)) refuse_model(name, "none, as CLIP has it");
    }
    if (const json::Value* type = model.find("type")) {
        const std::string* name = type->as<std::string>();
        if (!name || *name != "BPE") refuse_model("type", "BPE");
    }
    const std::string* suffix = model_member(model, "end_of_word_suffix", kWordEnd).as<std::string>();
    if (!suffix || *suffix != kWordEnd) refuse_model("end_of_word_suffix", kWordEnd);
    const json::Object* vocabulary = model_member(model, "vocab", "tokens with their ids").as<json::Object>();
    if (!vocabulary) refuse_model("vocab", "tokens with their ids");
    for (const auto& [token, id] : *vocabulary) {
        const json::Integer* number = id.as<json::Integer>();
        if (!number || number->negative || number->wide || number->magnitude > std::numeric_limits<uint32_t>::max()) {
            refuse_model("vocab", "ids from 0 to 2**32 - 1");
        }
        vocabulary_.emplace(token, static_cast<int64_t>(number->magnitude));
    }
    const json::List* merges = model_member(model, "merges", "pairs of tokens").as<json::List>();
    if (!merges) refuse_model("merges", "pairs of tokens");
    for (const json::Value& merge : *merges) {
        if (const json::List* both = merge.as<json::List>()) {
            if (both->size() != 2 || !(*both)[0].as<std::string>() || !(*both)[1].as<std::string>()) {
                refuse_model("merges", "pairs of tokens");
            }
            add_merge((*both)[0].text(), (*both)[1].text());
        } else {
            const std::string* text = merge.as<std::string>();
            const size_t blank = text ? text->find(' ') : std::string::npos;
            if (blank == std::string::npos) refuse_model("merges", "pairs of tokens");
            add_merge(text->substr(0, blank), text->substr(blank + 1));
        }
    }
    for (unsigned byte = 0; byte < 256; byte++) {
        std::string token;
        unicode::append_utf8(token, visible(byte));
        inside_[byte] = id_of(token);
        last_[byte] = id_of(token + kWordEnd);
    }
}

int64_t BytePairs::id_of(const std::string& token) const {
    const auto found = vocabulary_.find(token);
    if (found == vocabulary_.end()) throw Error(concat("field model.vocab: has no token ", repr(token)));
    return found->second;
}

void BytePairs::add_merge(const std::string& left, const std::string& right) {
    const Merge merge{static_cast<int64_t>(merges_.size()), id_of(left + right)};
    merges_.insert_or_assign(key_of(id_of(left), id_of(right)), merge);
}

bool BytePairs::knows(int64_t id) const {
    return std::any_of(vocabulary_.begin(), vocabulary_.end(), [&](const auto& entry) { return entry.second == id; });
}

// Of all neighbours that can be merged, the pair of the lowest rank goes first, of equal ones the leftmost.
std::vector<std::pair<int64_t, size_t>> BytePairs::encode(std::string_view word) const {
    constexpr size_t none = std::numeric_limits<size_t>::max();
    struct Symbol {
        int64_t id;
        size_t before, after;  // its neighbours
        size_t end;            // byte that it ends before
        bool gone;             // it was merged into the one before
    };
    std::vector<Symbol> symbols;
    symbols.reserve(word.size());
    for (size_t i = 0; i < word.size(); i++) {
        const auto byte = static_cast<unsigned char>(word[i]);
        const bool at_end = i + 1 == word.size();
        symbols.push_back({at_end ? last_[byte] : inside_[byte], i ? i - 1 : none, at_end ? none : i + 1, i + 1, false});
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
        symbol.end = next.end;
        symbol.after = next.after;
        if (symbol.after != none) symbols[symbol.after].before = left;
        consider(symbol.before);
        consider(left);
    }
    std::vector<std::pair<int64_t, size_t>> ids;
    for (const Symbol& symbol : symbols) {
        if (!symbol.gone) ids.emplace_back(symbol.id, symbol.end);
    }
    return ids;
}

}  // namespace ddm
