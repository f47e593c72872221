#include "leave_alone.h"

#include <algorithm>
#include <unordered_map>

#include "error.h"
#include "folded_tables.h"
#include "text.h"
#include "unicode.h"

namespace ddm {
namespace {

using Characters = std::u32string;
using Folds = std::unordered_map<char32_t, Characters>;

// Of the characters that are compared as others: those.
const Folds& folds() {
    static const Folds known = [] {
        Folds out;
        char32_t end = 0;
        for (size_t i = 0; i < unicode::folded_to_one_size; i += 4) {
            const std::int32_t* row = unicode::folded_to_one + i;
            const char32_t first = end + static_cast<char32_t>(row[0]);
            end = first + static_cast<char32_t>(row[1]);
            for (char32_t c = first; c < end; c += static_cast<char32_t>(row[2])) {
                out.emplace(c, Characters(1, static_cast<char32_t>(static_cast<std::int32_t>(c) + row[3])));
            }
        }
        end = 0;
        for (size_t i = 0; i < unicode::folded_to_more_size;) {
            const char32_t c = end + static_cast<char32_t>(unicode::folded_to_more[i]);
            const auto count = static_cast<size_t>(unicode::folded_to_more[i + 1]);
            const std::int32_t* first = unicode::folded_to_more + i + 2;
            out.emplace(c, Characters(first, first + count));
            i += 2 + count;
            end = c + 1;
        }
        return out;
    }();
    return known;
}

// Without capitals, ligatures and other ways to write the same: NFKC of the case fold.
Characters folded(std::string_view text) {
    unicode::Letters letters;
    for (const unicode::Letter& letter : unicode::composed(unicode::decode(text))) {
        const auto found = folds().find(letter.character);
        if (found == folds().end()) {
            letters.push_back(letter);
            continue;
        }
        for (const char32_t character : found->second) letters.push_back({character, letter.first, letter.last});
    }
    Characters out;
    for (const unicode::Letter& letter : unicode::composed(letters)) out += letter.character;
    return out;
}

bool in_word(char32_t c) { return c == U'_' || unicode::is_letter(c) || unicode::is_number(c); }

std::vector<Characters> words_of(const Characters& phrase) {
    std::vector<Characters> out;
    for (size_t at = 0; at < phrase.size(); ++at) {
        if (is_white(phrase[at])) continue;
        if (at == 0 || is_white(phrase[at - 1])) out.emplace_back();
        out.back() += phrase[at];
    }
    return out;
}

// Whether the words stand at `at`, with white space between them and none of their letters going on.
bool stands_at(const Characters& text, size_t at, const std::vector<Characters>& words) {
    if (at > 0 && in_word(text[at - 1])) return false;
    for (size_t i = 0; i < words.size(); ++i) {
        const size_t before = at;
        if (i > 0) {
            while (at < text.size() && is_white(text[at])) ++at;
            if (at == before) return false;
        }
        if (text.compare(at, words[i].size(), words[i]) != 0) return false;
        at += words[i].size();
    }
    return at == text.size() || !in_word(text[at]);
}

}  // namespace

bool names_one(std::string_view prompt, const std::vector<std::string>& words) {
    if (words.empty()) return false;
    const Characters text = folded(prompt);
    for (const std::string& word : words) {
        const std::vector<Characters> phrase = words_of(folded(word));
        for (size_t at = 0; at <= text.size(); ++at) {
            if (stands_at(text, at, phrase)) return true;
        }
    }
    return false;
}

std::vector<std::string> checked_words(const std::vector<std::string>& words) {
    std::vector<std::string> out;
    for (const std::string& word : words) {
        if (strip(word).empty() || invalid_utf8(word) != word.npos) {
            std::vector<std::string> quoted;
            for (const std::string& each : words) quoted.push_back(repr(each));
            throw Error(concat("leave_alone is [", join(", ", quoted), "]; expected a list of words"));
        }
        if (std::find(out.begin(), out.end(), word) == out.end()) out.push_back(word);
    }
    return out;
}

}  // namespace ddm
