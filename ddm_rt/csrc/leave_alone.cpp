#include "leave_alone.h"

#include <set>

#include "error.h"
#include "fields.h"
#include "text.h"
#include "unicode.h"

namespace ddm {
namespace {

constexpr const char* ANY = "*";
constexpr size_t MOST_SCOPES = 10'000;

bool in_word(char32_t c) { return c == U'_' || is_letter(c) || is_number(c); }

std::vector<std::u32string> words_of(const std::u32string& phrase) {
    std::vector<std::u32string> out;
    for (size_t at = 0; at < phrase.size(); ++at) {
        if (is_blank(phrase[at])) continue;
        if (at == 0 || is_blank(phrase[at - 1])) out.emplace_back();
        out.back() += phrase[at];
    }
    return out;
}

// Whether the words stand at `at`, with white space between them and none of their letters going on.
bool stands_at(const std::u32string& text, size_t at, const std::vector<std::u32string>& words) {
    if (at > 0 && in_word(text[at - 1])) return false;
    for (size_t i = 0; i < words.size(); ++i) {
        const size_t before = at;
        while (i > 0 && at < text.size() && is_blank(text[at])) ++at;
        if ((i > 0 && at == before) || text.compare(at, words[i].size(), words[i]) != 0) return false;
        at += words[i].size();
    }
    return at == text.size() || !in_word(text[at]);
}

}  // namespace

bool names_one(std::string_view prompt, const std::vector<std::string>& words) {
    if (words.empty()) return false;
    const std::u32string text = decoded(folded(prompt));
    for (const std::string& word : words) {
        const std::vector<std::u32string> phrase = words_of(decoded(folded(word)));
        for (size_t at = 0; at <= text.size(); ++at) {
            if (stands_at(text, at, phrase)) return true;
        }
    }
    return false;
}

std::vector<std::string> checked_words(const std::vector<std::string>& words, const std::string& where) {
    std::vector<std::string> out;
    std::set<std::string_view> seen;
    for (const std::string& word : words) {
        if (strip(word).empty() || invalid_utf8(word) != word.npos) {
            throw about(where, concat(" has ", repr(word), "; expected words"));
        }
        if (seen.insert(word).second) out.push_back(word);
    }
    return out;
}

WordsByScope words_by_scope(std::string_view content, const std::string& where) {
    const json::Value tree = parse(content, where.empty() ? "leave_alone" : where);
    const Field file(tree, where.empty() ? "leave_alone" : where);
    if (!tree.is_object() && !tree.is_array()) file.refuse(R"(a list of words, or {"SCOPE": [words], "*": [words]})");
    if (tree.is_array()) return {{ANY, checked_words(file.texts(), file.place())}};
    // Lookups in an ordered tree go through all of it.
    if (tree.size() > MOST_SCOPES) file.refuse(concat("at most ", MOST_SCOPES, " scopes"));
    const auto in_order = json::Out::parse(content);  // a tree of fields has its members by name
    WordsByScope words;
    for (const auto& [scope, list] : in_order.items()) {
        words.emplace_back(scope, checked_words(file[scope].texts(), file[scope].place()));
    }
    return words;
}

std::vector<std::string> words_for(const WordsByScope& words, const std::optional<std::string>& scope) {
    std::vector<std::string> found;
    for (const auto& [name, list] : words) {
        if (name == ANY || name == scope) found.insert(found.end(), list.begin(), list.end());
    }
    return checked_words(found);
}

}  // namespace ddm
