// The C boundary: errors, text, cancel tokens and what is the library's own. Nothing is thrown across it.
#include <cstdlib>
#include <cstring>
#include <exception>
#include <new>
#include <system_error>

#include "backend.h"
#include "handles.h"
#include "json.h"

namespace ddm {
namespace {

// Told where there is no memory for another; it isn't freed.
ddm_rt_error out_of_memory{DDM_RT_OUT_OF_MEMORY, "", "out of memory"};

ddm_rt_error *made(int32_t code, const std::string &message, const std::string &field = "") {
    return new ddm_rt_error{code, field, message};
}

}  // namespace

ddm_rt_error *caught() noexcept {
    try {
        try {
            throw;
        } catch (const Error &error) {
            return made(static_cast<int32_t>(error.status), error.what(), error.field);
        } catch (const NotDelivered &error) {
            return made(DDM_RT_NOT_DELIVERED, error.what());
        } catch (const std::bad_alloc &) {
            return &out_of_memory;
        } catch (const std::length_error &) {
            return made(DDM_RT_OUT_OF_MEMORY, "out of memory: more than any machine has was asked for");
        } catch (const std::exception &error) {
            return made(DDM_RT_INTERNAL, error.what());
        } catch (...) {
            return made(DDM_RT_INTERNAL, "something was thrown that is no exception, by a callback perhaps");
        }
    } catch (...) {
        return &out_of_memory;
    }
}

std::string given_text(const char *text, int64_t size, const char *name) {
    given(text, name);
    if (size < DDM_RT_TERMINATED) {
        throw Error(Status::input, concat(name, "'s size is ", size, "; expected its bytes, or DDM_RT_TERMINATED"),
                    name);
    }
    return size == DDM_RT_TERMINATED ? std::string(text) : std::string(text, static_cast<size_t>(size));
}

std::string given_path(const char *text, int64_t size, const char *name) {
    std::string path = given_text(text, size, name);
    if (path.find('\0') == path.npos) return path;
    throw Error(Status::input, concat(name, " ", repr(path), ": no path: it holds a null"), name);
}

Log log_of(int32_t level, ddm_rt_log log, void *user) {
    if (level < DDM_RT_LOG_DEBUG || level > DDM_RT_LOG_ERROR) {
        throw about("level", concat(" is ", level, "; expected ", DDM_RT_LOG_DEBUG, " to ", DDM_RT_LOG_ERROR));
    }
    if (!log) return {};
    return {static_cast<Level>(level), [log, user](Level of, const std::string &message) {
                log(user, static_cast<int32_t>(of), message.c_str());
            }};
}

Cancelled cancelled_by(const ddm_rt_cancel *cancel) {
    if (!cancel) return {};
    return [set = cancel->set] { return set->load(std::memory_order_relaxed); };
}

char *copied(const std::string &text) {
    auto *copy = static_cast<char *>(std::malloc(text.size() + 1));
    if (!copy) throw std::bad_alloc();
    std::memcpy(copy, text.c_str(), text.size() + 1);
    return copy;
}

}  // namespace ddm

using ddm::create;
using ddm::given_place;
using ddm::guarded;

int32_t ddm_rt_abi(void) { return DDM_RT_ABI; }

const char *ddm_rt_version(void) { return DDM_RT_VERSION; }

void ddm_rt_free(char *text) { std::free(text); }

ddm_rt_error *ddm_rt_backends(char **json) {
    return guarded([&] {
        given_place(json, "json");
        ddm::json::Out found = ddm::json::Out::array();
        for (const auto &[name, reason, providers] : ddm::backends()) {
            found.push_back({
                {"name", name},
                {"reason", reason ? ddm::json::Out(*reason) : ddm::json::Out()},
                {"providers", providers},
            });
        }
        *json = ddm::copied(ddm::json::write(found));
    });
}

int32_t ddm_rt_error_code(const ddm_rt_error *error) { return error ? error->code : DDM_RT_OK; }

const char *ddm_rt_error_field(const ddm_rt_error *error) { return error ? error->field.c_str() : ""; }

const char *ddm_rt_error_message(const ddm_rt_error *error) { return error ? error->message.c_str() : ""; }

void ddm_rt_error_destroy(ddm_rt_error *error) {
    if (error != &ddm::out_of_memory) delete error;
}

ddm_rt_error *ddm_rt_cancel_create(ddm_rt_cancel **cancel) {
    return guarded([&] { create(cancel, "cancel"); });
}

void ddm_rt_cancel_destroy(ddm_rt_cancel *cancel) { delete cancel; }

void ddm_rt_cancel_set(ddm_rt_cancel *cancel) {
    if (cancel) cancel->set->store(true, std::memory_order_relaxed);
}

void ddm_rt_cancel_reset(ddm_rt_cancel *cancel) {
    if (cancel) cancel->set->store(false, std::memory_order_relaxed);
}

int32_t ddm_rt_cancel_is_set(const ddm_rt_cancel *cancel) {
    return cancel && cancel->set->load(std::memory_order_relaxed);
}
