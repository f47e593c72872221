#include "scoped_words.h"

#include <algorithm>

#include "error.h"
#include "json.h"
#include "text.h"

namespace ddm {
namespace {

constexpr const char* kAny = "*";

// As Python shows what JSON holds.
std::string shown(const json::Value& value) {
    if (value.is_null()) return "None";
    if (const bool* flag = value.as<bool>()) return *flag ? "True" : "False";
    if (const std::string* text = value.as<std::string>()) return repr(*text);
    if (const double* number = value.as<double>()) return repr(*number);
    std::vector<std::string> parts;
    if (const json::List* list = value.as<json::List>()) {
        for (const json::Value& each : *list) parts.push_back(shown(each));
        return concat("[", join(", ", parts), "]");
    }
    if (const json::Object* object = value.as<json::Object>()) {
        for (const auto& [name, each] : *object) parts.push_back(concat(repr(name), ": ", shown(each)));
        return concat("{", join(", ", parts), "}");
    }
    return json::write(value);  // a whole number
}

std::vector<std::string> words_of(const std::string& scope, const json::Value& value, const std::string& where) {
    std::vector<std::string> words;
    const json::List* list = value.as<json::List>();
    bool good = list != nullptr;
    for (size_t i = 0; good && i < list->size(); i++) {
        const std::string* word = (*list)[i].as<std::string>();
        good = word && !strip(*word).empty();
        if (good) words.push_back(*word);
    }
    if (!good) {
        const std::string place = scope == kAny ? "" : concat(" of scope ", repr(scope));
        throw Error(concat(where, where.empty() ? "" : ": ", "leave_alone", place, " is ", shown(value),
                           "; expected a list of words"));
    }
    return words;
}

}  // namespace

WordsByScope words_by_scope(std::string_view content, const std::string& where) {
    const std::string name = where.empty() ? "leave_alone" : where;
    json::Value found;
    try {
        found = json::read(content, json::Dialect::python);
    } catch (const Error& error) {
        throw Error(concat(name, ": not JSON (", std::string(error.what()), ")"));
    }
    if (found.as<json::List>()) return {{kAny, words_of(kAny, found, where)}};
    const json::Object* scopes = found.as<json::Object>();
    if (!scopes) {
        throw Error(concat(name, R"(: expected a list of words, or {"SCOPE": [words], "*": [words]})"));
    }
    WordsByScope words;
    for (const auto& [scope, value] : *scopes) words.emplace_back(scope, words_of(scope, value, where));
    return words;
}

std::vector<std::string> words_for(const WordsByScope& words, const std::optional<std::string>& scope) {
    std::vector<std::string> found;
    for (const auto& [name, list] : words) {
        if (name != kAny && name != scope) continue;
        for (const std::string& word : list) {
            if (std::find(found.begin(), found.end(), word) == found.end()) found.push_back(word);
        }
    }
    return found;
}

}  // namespace ddm
