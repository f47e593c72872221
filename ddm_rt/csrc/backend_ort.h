// ONNX Runtime on the CPU, with the settings of ddm_rt/engine/ort/sessions.py: equal versions and threads give equal bits.
#ifndef DDM_RT_BACKEND_ORT_H
#define DDM_RT_BACKEND_ORT_H

#include <memory>

#include "backend.h"

namespace ddm {

class OrtLibrary;

// Throws Error (Status::bundle) for a graph that isn't one, or that doesn't take what the bundle says.
std::unique_ptr<Backend> make_ort_backend(const Bundle& bundle, std::shared_ptr<OrtLibrary> library, int64_t threads);

}  // namespace ddm

#endif
