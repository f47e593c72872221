// The C header's calls as tests make them, on the shipped digits bundle.
#ifndef LIBRARY_CALLS_H
#define LIBRARY_CALLS_H

#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "ddm_rt.h"

template <typename T>
using Owned = std::unique_ptr<T, void (*)(T*)>;

using Bytes = std::vector<uint8_t>;

// An error's code, field and message; it is freed.
struct Found {
    int32_t code;
    std::string field, message;
};

inline Found found(ddm_rt_error* error) {
    const Owned<ddm_rt_error> owned{error, ddm_rt_error_destroy};
    return {ddm_rt_error_code(error), ddm_rt_error_field(error), ddm_rt_error_message(error)};
}

inline int32_t code(ddm_rt_error* error) { return found(error).code; }

inline void fine(ddm_rt_error* error) {
    const Found said = found(error);
    EXPECT_EQ(said.code, DDM_RT_OK) << said.message;
}

inline Owned<ddm_rt_model> open_model(int32_t threads = 1, bool batching = true, const char* bundle = DIGITS_BUNDLE) {
    ddm_rt_model_options* options = nullptr;
    fine(ddm_rt_model_options_create(&options));
    fine(ddm_rt_model_options_set_threads(options, threads));
    fine(ddm_rt_model_options_set_batching(options, batching));
    ddm_rt_model* model = nullptr;
    fine(ddm_rt_model_open(bundle, DDM_RT_TERMINATED, options, &model));
    ddm_rt_model_options_destroy(options);
    return {model, ddm_rt_model_close};
}

inline Owned<ddm_rt_session> open_session(ddm_rt_model* model, const ddm_rt_session_options* options = nullptr) {
    ddm_rt_session* session = nullptr;
    fine(ddm_rt_session_open(model, options, &session));
    return {session, ddm_rt_session_close};
}

inline Owned<ddm_rt_session> open_digits() { return open_session(open_model().get()); }

inline Owned<ddm_rt_cancel> token() {
    ddm_rt_cancel* cancel = nullptr;
    fine(ddm_rt_cancel_create(&cancel));
    return {cancel, ddm_rt_cancel_destroy};
}

inline Owned<ddm_rt_request> request_of(int64_t n, uint64_t seed, int64_t steps = 2) {
    ddm_rt_request* request = nullptr;
    fine(ddm_rt_request_create(&request));
    fine(ddm_rt_request_set_n(request, n));
    fine(ddm_rt_request_set_seed(request, seed));
    fine(ddm_rt_request_set_num_steps(request, steps));
    return {request, ddm_rt_request_destroy};
}

inline Bytes bytes_of(const ddm_rt_images* images) {
    const int64_t size = ddm_rt_images_height(images) * ddm_rt_images_width(images) * 3;
    Bytes bytes;
    for (int64_t i = 0; i < ddm_rt_images_count(images); i++) {
        const uint8_t* rgb = ddm_rt_images_rgb(images, i);
        bytes.insert(bytes.end(), rgb, rgb + size);
    }
    return bytes;
}

inline Owned<ddm_rt_images> images_of(ddm_rt_session* session, const ddm_rt_request* request) {
    ddm_rt_images* images = nullptr;
    fine(ddm_rt_generate(session, request, &images));
    return {images, ddm_rt_images_destroy};
}

// Every image's bytes, one after another; none where generating failed.
inline Bytes generate(ddm_rt_session* session, const ddm_rt_request* request) {
    return bytes_of(images_of(session, request).get());
}

// The same of a manifest; of `request` the callbacks count.
inline Bytes replay(ddm_rt_session* session, const std::string& manifest, const ddm_rt_request* request = nullptr) {
    ddm_rt_images* images = nullptr;
    fine(ddm_rt_replay(session, manifest.c_str(), DDM_RT_TERMINATED, nullptr, 0, DDM_RT_ALL, request, &images));
    return bytes_of(Owned<ddm_rt_images>(images, ddm_rt_images_destroy).get());
}

// Of a request of five steps: its manifest with a cache, by which three of them call the model.
inline std::string cached(ddm_rt_session* session, const ddm_rt_request* request) {
    std::string manifest = ddm_rt_images_manifest(images_of(session, request).get());
    const std::string before = "\"provenance\": true";
    const char* cache =
        R"("cache": {"steps": [0, 2, 4], "rows": [[0.9, 0.1, 0, -0.05], [0.7, 0.4, -0.1, 0], [0, 1, 0, 0]]}, )";
    return manifest.insert(manifest.find(before), cache);
}

inline Found refused(ddm_rt_session* session, const ddm_rt_request* request) {
    ddm_rt_images* images = reinterpret_cast<ddm_rt_images*>(1);
    const Found said = found(ddm_rt_generate(session, request, &images));
    EXPECT_EQ(images, nullptr);
    return said;
}

inline bool begins(const std::string& text, const std::string& with) { return text.compare(0, with.size(), with) == 0; }

inline bool holds(const std::string& text, const std::string& part) { return text.find(part) != text.npos; }

#endif
