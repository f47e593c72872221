// The tables of the fields that a bundle's files and others have in common, as ddm_rt/config.py declares them.
#ifndef DDM_RT_CONFIG_SHAPE_H
#define DDM_RT_CONFIG_SHAPE_H

#include "shape.h"

namespace ddm::shape {

Check positive();  // a whole number from 1
Check scale();     // a number from 0
Check fraction();  // a number from 0 to 1
Check sampler();
Check clip();
Check leaf();                          // of codes.json
Check sampling();
Check version_1();                     // a file's schema_version
std::vector<Field> schedule_fields();  // of schedule.json, but for alphas_cumprod
std::vector<Field> bundle_fields();    // that config.json and runtime.json both begin with

}  // namespace ddm::shape

#endif
