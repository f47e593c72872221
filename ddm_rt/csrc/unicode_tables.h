// What tests/unicode_tables.py finds out: flat rows of numbers, each row relative to the end of the one before it.
#ifndef DDM_RT_UNICODE_TABLES_H
#define DDM_RT_UNICODE_TABLES_H

#include <cstddef>
#include <cstdint>

namespace ddm::unicode {

extern const std::int32_t letters[], numbers[], lowercase[], combining[], decompositions[], not_composed[];
extern const std::size_t letters_size, numbers_size, lowercase_size, combining_size, decompositions_size,
    not_composed_size;

}  // namespace ddm::unicode

#endif
