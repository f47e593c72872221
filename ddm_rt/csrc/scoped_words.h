// Words to leave alone by scope, from JSON; what they do to a prompt is the request's business.
#ifndef DDM_RT_SCOPED_WORDS_H
#define DDM_RT_SCOPED_WORDS_H

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace ddm {

// Scope ("*": any) and its words, in the file's order.
using WordsByScope = std::vector<std::pair<std::string, std::vector<std::string>>>;

// From a list of words, or an object with a list for each scope. Throws Error naming the file
// `where`, which is empty where there is none.
WordsByScope words_by_scope(std::string_view content, const std::string& where);

// Those that hold for a request, each once.
std::vector<std::string> words_for(const WordsByScope& words, const std::optional<std::string>& scope);

}  // namespace ddm

#endif
