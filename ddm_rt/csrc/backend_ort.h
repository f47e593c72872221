// ONNX Runtime on the CPU, with the settings of ddm_rt/engine/ort/sessions.py: equal versions and threads give equal
// bits.
#pragma once

#include <memory>

#include "backend.h"

namespace ddm {

class OrtLibrary;

bool is_cpu(const std::string& provider);  // "CPU" or "CPUExecutionProvider"

struct OrtOptions {
    BackendOptions chosen;
    int64_t threads;
    size_t calls_at_a_time;
    Log log;
};

// The bundle must outlive it. Throws Error with Status::backend where the provider isn't there or doesn't start, and
// with Status::bundle for a graph that isn't one, or that doesn't take what the bundle says.
std::unique_ptr<Backend> make_ort_backend(const Bundle& bundle, std::shared_ptr<OrtLibrary> library,
                                          OrtOptions options);

}  // namespace ddm
