// Prompts that name what would be balanced are left alone: words, given by the user (ddm_rt/sample/balance/leave_alone.py).
#ifndef DDM_RT_LEAVE_ALONE_H
#define DDM_RT_LEAVE_ALONE_H

#include <string>
#include <string_view>
#include <vector>

namespace ddm {

// Whether the prompt has one of the words (or phrases), whole and in any case.
bool names_one(std::string_view prompt, const std::vector<std::string>& words);

// The words without those that stood there before. Throws Error where one is empty.
std::vector<std::string> checked_words(const std::vector<std::string>& words);

}  // namespace ddm

#endif
