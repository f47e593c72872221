// The tables of every field that a bundle's configuration may have, as ddm_rt/config.py declares them.
#ifndef DDM_RT_CONFIG_SHAPE_H
#define DDM_RT_CONFIG_SHAPE_H

#include "shape.h"

namespace ddm::shape {

Check positive();  // a whole number from 1
Check scale();     // a number from 0
Check fraction();  // a number from 0 to 1
Check sampler();
Check precision();
Check clip();
Check family();
Check sampling_config();
Check schedule_config();
Check model_config();
Check run_config();

}  // namespace ddm::shape

#endif
