// What tests/folded_tables.py finds out: flat rows of numbers, each row relative to the end of the one before it.
#ifndef DDM_RT_FOLDED_TABLES_H
#define DDM_RT_FOLDED_TABLES_H

#include <cstddef>
#include <cstdint>

namespace ddm::unicode {

extern const std::int32_t folded_to_one[], folded_to_more[];
extern const std::size_t folded_to_one_size, folded_to_more_size;

}  // namespace ddm::unicode

#endif
