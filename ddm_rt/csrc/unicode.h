// UTF-8 and the classes of characters, by utf8proc. Sides agree on characters that the Unicode of each assigns.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace ddm {

size_t invalid_utf8(std::string_view text);  // where the first byte stands that is none, or npos
size_t code_points(std::string_view utf8);
bool is_printable(std::string_view utf8);

std::u32string decoded(std::string_view utf8);  // up to the first byte that is none
void append_utf8(std::string& out, char32_t character);

bool is_letter(char32_t character);
bool is_number(char32_t character);
bool is_white(char32_t character);
bool is_blank(char32_t character);  // white, or one of the separators that are white for Python alone

std::string_view strip(std::string_view text);  // without blanks at both ends

std::string composed(std::string_view utf8);  // normal form C
std::string folded(std::string_view utf8);  // NFKC of the case fold: without capitals and other ways to write the same
char32_t lowered(char32_t character);

}  // namespace ddm
