// What stands behind the opaque handles of ddm_rt.h, and how exceptions become statuses.
#ifndef DDM_RT_HANDLES_H
#define DDM_RT_HANDLES_H

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "ddm_rt.h"
#include "error.h"
#include "pipeline.h"
#include "leave_alone.h"
#include "text.h"

struct ddm_rt_options {
    ddm::PipelineOptions options;
};

struct ddm_rt_pipeline {
    ddm::Pipeline pipeline;
    std::string description;
};

struct ddm_rt_request {
    ddm::Wanted wanted;
    std::optional<ddm::WordsByScope> words_by_scope;  // in place of wanted.leave_alone
    ddm_rt_on_step on_step = nullptr;
    void *on_step_user = nullptr;
    ddm_rt_deliver deliver = nullptr;
    void *deliver_user = nullptr;
    std::atomic<bool> cancelled = false;
};

struct ddm_rt_images {
    std::shared_ptr<const ddm::Generation> generation;
};

namespace ddm {

// Keeps the exception that is being handled as this thread's last error. Never throws.
ddm_rt_status keep_error() noexcept;

// Runs `body` with nothing thrown out of it.
template <typename Body>
ddm_rt_status guarded(Body &&body) noexcept {
    try {
        body();
        return DDM_RT_OK;
    } catch (...) {
        return keep_error();
    }
}

template <typename T>
T &given(T *pointer, const char *name) {
    if (!pointer) throw Error(concat(name, " is null"));
    return *pointer;
}

inline const char *given_text(const char *text, const char *name) { return &given(text, name); }

inline std::string_view given_bytes(const char *bytes, int64_t size, const char *name) {
    if (size < 0) throw Error(concat("size is ", size, "; expected how many bytes ", std::string(name), " has"));
    return {given_text(bytes, name), static_cast<size_t>(size)};
}

}  // namespace ddm

#endif
