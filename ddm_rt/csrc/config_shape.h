// The tables of the fields that several files have in common, as ddm_rt/config.py declares them.
#ifndef DDM_RT_CONFIG_SHAPE_H
#define DDM_RT_CONFIG_SHAPE_H

#include <vector>

#include "shape.h"

namespace ddm::shape {

Check positive();  // a whole number from 1
Check scale();     // a number from 0
Check fraction();  // a number from 0 to 1
Check sampler();
Check clip();
Check sampling();                      // of a bundle: fields that it doesn't know are left out
std::vector<Field> schedule_fields();  // but for alphas_cumprod

}  // namespace ddm::shape

#endif
