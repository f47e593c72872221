// Numbers in quotes, as pydantic reads them where a file should have numbers.
#ifndef DDM_RT_NUMERALS_H
#define DDM_RT_NUMERALS_H

#include <optional>
#include <string_view>

#include "json.h"

namespace ddm {

// "12", " -3 ", "1_000", "2.0" as a whole number, of any length.
std::optional<json::Integer> whole_number(std::string_view text);

// " 1.5 ", "1_000", "1e5", "nan".
std::optional<double> decimal_number(std::string_view text);

}  // namespace ddm

#endif
