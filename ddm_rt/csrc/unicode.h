// Characters as a CLIP tokenizer needs them: UTF-8, small letters, normal form C and three classes.
#ifndef DDM_RT_UNICODE_H
#define DDM_RT_UNICODE_H

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace ddm::unicode {

// A character and which of the text's characters it came from: [first, last).
struct Letter {
    char32_t character;
    std::size_t first, last;
};

using Letters = std::vector<Letter>;

// From UTF-8, which the caller has checked (`invalid_utf8`).
Letters decode(std::string_view text);

void append_utf8(std::string& out, char32_t character);

bool is_letter(char32_t character);
bool is_number(char32_t character);
bool is_space(char32_t character);

// Normal form C.
Letters composed(const Letters& text);

// Every run of white space as one blank.
Letters with_single_blanks(const Letters& text);

Letters lowered(const Letters& text);

}  // namespace ddm::unicode

#endif
