// Prompts that name what would be balanced are left alone: words, given by the user
// (ddm_rt/sample/balance/leave_alone.py).
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace ddm {

// Whether the prompt has one of the words (or phrases), whole and in any case.
bool names_one(std::string_view prompt, const std::vector<std::string>& words);

// The words without those that stood there before. Throws Error naming `where` where one is empty.
std::vector<std::string> checked_words(const std::vector<std::string>& words, const std::string& where = "leave_alone");

// Scope ("*": any) and its words.
using WordsByScope = std::vector<std::pair<std::string, std::vector<std::string>>>;

// From JSON: a list of words, or an object with a list for each scope. Throws Error naming the file `where`.
WordsByScope words_by_scope(std::string_view content, const std::string& where);

// Those that hold for a request, each once.
std::vector<std::string> words_for(const WordsByScope& words, const std::optional<std::string>& scope);

}  // namespace ddm
