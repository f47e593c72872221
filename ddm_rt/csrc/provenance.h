// What an image file says of itself: that a model made it, which one, and from which seed (ddm_rt/sample/provenance.py).
#ifndef DDM_RT_PROVENANCE_H
#define DDM_RT_PROVENANCE_H

#include <string>
#include <vector>

#include "manifest.h"

namespace ddm {

// An XMP packet for each image's file and, last, for a sheet of all; none where the request wants nothing said.
std::vector<std::string> packets(const Manifest& manifest);

}  // namespace ddm

#endif
