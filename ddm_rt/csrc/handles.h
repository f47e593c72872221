// What stands behind the opaque handles of ddm_rt.h, and how exceptions become errors.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "ddm_rt.h"
#include "error.h"
#include "leave_alone.h"
#include "session.h"
#include "text.h"

struct ddm_rt_error {
    int32_t code;
    std::string field, message;
};

struct ddm_rt_cancel {
    std::shared_ptr<std::atomic<bool>> set = std::make_shared<std::atomic<bool>>(false);  // calls have it too
};

struct ddm_rt_model_options {
    ddm::ModelOptions options;
};

struct ddm_rt_model {
    std::shared_ptr<ddm::Model> model;
    std::string description, family, provider;
};

struct ddm_rt_session_options {
    ddm::SessionOptions options;
};

struct ddm_rt_session {
    ddm::Session session;
};

struct ddm_rt_request {
    ddm::Wanted wanted;
    std::optional<ddm::WordsByScope> words_by_scope;  // in place of wanted.leave_alone
    ddm::Hooks hooks;
};

struct ddm_rt_images {
    std::shared_ptr<const ddm::Generation> generation;
    std::optional<std::vector<size_t>> some = {};  // numbers of those that are given; else all are
};

namespace ddm {

// The exception that is being handled. Never throws.
ddm_rt_error *caught() noexcept;

// Runs `body` with nothing thrown out of it.
template <typename Body>
ddm_rt_error *guarded(Body &&body) noexcept {
    try {
        body();
        return nullptr;
    } catch (...) {
        return caught();
    }
}

template <typename T>
T &given(T *pointer, const char *name) {
    if (!pointer) throw Error(Status::input, concat(name, " is null"), name);
    return *pointer;
}

// Sets what a function gives to null, before anything can fail.
template <typename T>
void given_place(T **place, const char *name) {
    given(place, name) = nullptr;
}

template <typename T>
void create(T **place, const char *name) {
    given_place(place, name);
    *place = new T;
}

std::string given_text(const char *text, int64_t size, const char *name);
std::string given_path(const char *text, int64_t size, const char *name);  // which holds no null
Log log_of(int32_t level, ddm_rt_log log, void *user);
Cancelled cancelled_by(const ddm_rt_cancel *cancel);
char *copied(const std::string &text);  // for ddm_rt_free

}  // namespace ddm
