// Weights of cells that give each factor the shares that are wanted of it (ddm_rt/raking.py).
#ifndef DDM_RT_RAKING_H
#define DDM_RT_RAKING_H

#include <cstddef>
#include <utility>
#include <vector>

namespace ddm {

// One factor: of each cell an index into `wanted`, and the share wanted of each value.
struct Margin {
    std::vector<size_t> value_of;
    std::vector<double> wanted;
};

// Weights nearest to `weights` that give `margins`, and whether they do.
std::pair<std::vector<double>, bool> rake(std::vector<double> weights, const std::vector<Margin>& margins);

// The weight of each value, added up in the order of the cells.
std::vector<double> shares_of(const std::vector<size_t>& value_of, const std::vector<double>& weights,
                              size_t num_values);

}  // namespace ddm

#endif
