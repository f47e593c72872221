// The C header from a program's side: opening, errors, text, backends, limits and forked processes.
#include <gtest/gtest.h>

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <limits>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "array.h"
#include "library_calls.h"

namespace {

// Exit code of a forked process that does `body`.
template <typename Body>
int forked(Body body) {
    const pid_t child = fork();
    if (child == 0) {
        alarm(60);  // one that hangs fails
        _exit(body());
    }
    int status = 0;
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

TEST(Library, SaysWhatItIs) {
    EXPECT_EQ(ddm_rt_abi(), DDM_RT_ABI);
    EXPECT_STREQ(ddm_rt_version(), DDM_RT_EXPECTED_VERSION);
    char* text = nullptr;
    fine(ddm_rt_backends(&text));
    const std::string backends = text;
    ddm_rt_free(text);
    EXPECT_TRUE(holds(backends, R"({"name": "onnxruntime", "reason": null, "providers": [")")) << backends;
    EXPECT_TRUE(holds(backends, "\"CPUExecutionProvider\"")) << backends;
    EXPECT_TRUE(holds(backends, R"({"name": "tensorrt", "reason": "not built)")) << backends;
}

TEST(Library, RefusesAProgramOfANewerAbi) {
    ddm_rt_model* model = reinterpret_cast<ddm_rt_model*>(1);
    const Found said = found(ddm_rt_model_open_abi(DDM_RT_ABI + 1, DIGITS_BUNDLE, DDM_RT_TERMINATED, nullptr, &model));
    EXPECT_EQ(said.code, DDM_RT_BAD_ABI);
    EXPECT_EQ(said.message, "abi is 2; this library has 1 to 1");
    EXPECT_EQ(said.field, "abi");
    EXPECT_EQ(model, nullptr);
    EXPECT_EQ(code(ddm_rt_model_open_abi(0, DIGITS_BUNDLE, DDM_RT_TERMINATED, nullptr, &model)), DDM_RT_BAD_ABI);
}

TEST(Library, AnswersNullsWithAnError) {
    const auto bad = [](ddm_rt_error* error) { EXPECT_EQ(code(error), DDM_RT_BAD_INPUT); };
    const Found said = found(ddm_rt_model_options_create(nullptr));
    EXPECT_EQ(said.code, DDM_RT_BAD_INPUT);
    EXPECT_EQ(said.field, "options");
    EXPECT_EQ(said.message, "options is null");
    bad(ddm_rt_model_options_set_backend(nullptr, "auto", DDM_RT_TERMINATED));
    bad(ddm_rt_model_open(nullptr, DDM_RT_TERMINATED, nullptr, nullptr));
    bad(ddm_rt_session_open(nullptr, nullptr, nullptr));
    bad(ddm_rt_session_ledger(nullptr, nullptr, 0, nullptr));
    bad(ddm_rt_request_set_n(nullptr, 1));
    bad(ddm_rt_request_set_cancel(nullptr, nullptr));
    bad(ddm_rt_cancel_create(nullptr));
    bad(ddm_rt_backends(nullptr));
    bad(ddm_rt_generate(nullptr, nullptr, nullptr));
    bad(ddm_rt_replay(nullptr, nullptr, 0, nullptr, 0, 0, nullptr, nullptr));
    EXPECT_EQ(ddm_rt_model_describe(nullptr), nullptr);
    EXPECT_EQ(ddm_rt_model_num_codes(nullptr), 0);
    EXPECT_EQ(ddm_rt_images_count(nullptr), 0);
    EXPECT_EQ(ddm_rt_images_rgb(nullptr, 0), nullptr);
    EXPECT_EQ(ddm_rt_images_code(nullptr, 0), -1);
    EXPECT_EQ(ddm_rt_error_code(nullptr), DDM_RT_OK);
    EXPECT_STREQ(ddm_rt_error_message(nullptr), "");
    EXPECT_EQ(ddm_rt_cancel_is_set(nullptr), 0);
    ddm_rt_cancel_set(nullptr);
    ddm_rt_model_options_destroy(nullptr);
    ddm_rt_session_options_destroy(nullptr);
    ddm_rt_model_trim(nullptr);
    ddm_rt_model_close(nullptr);
    ddm_rt_session_close(nullptr);
    ddm_rt_request_destroy(nullptr);
    ddm_rt_images_destroy(nullptr);
    ddm_rt_cancel_destroy(nullptr);
    ddm_rt_error_destroy(nullptr);
    ddm_rt_free(nullptr);
    const auto request = request_of(1, 0);
    EXPECT_EQ(found(ddm_rt_request_set_target(request.get(), nullptr, 0)).message, "target is null");
    bad(ddm_rt_request_set_codes(request.get(), nullptr, 1));
    bad(ddm_rt_request_set_codes(request.get(), nullptr, -1));
    EXPECT_EQ(found(ddm_rt_request_set_target(request.get(), "x", -2)).field, "target");
}

TEST(Library, NamesTheFileOrFieldThatAnErrorIsAbout) {
    const auto request = request_of(1, 0);
    const auto words = [&](const char* name) {
        return found(ddm_rt_request_set_leave_alone_json(request.get(), "[3]", 3, name, DDM_RT_TERMINATED));
    };
    EXPECT_TRUE(begins(words(nullptr).message, "leave_alone")) << words(nullptr).message;
    EXPECT_TRUE(begins(words("words.json").message, "words.json: ")) << words("words.json").message;
    const auto session = open_digits();
    fine(ddm_rt_request_set_n(request.get(), 0));
    EXPECT_EQ(refused(session.get(), request.get()).field, "n");
    fine(ddm_rt_request_set_n(request.get(), 1));
    fine(ddm_rt_request_set_target(request.get(), "code:0=1,code:1=1", DDM_RT_TERMINATED));
    EXPECT_EQ(refused(session.get(), request.get()).field, "target");
    fine(ddm_rt_request_set_target(request.get(), "a=.5: field x", DDM_RT_TERMINATED));
    EXPECT_EQ(refused(session.get(), request.get()).field, "target");
    const auto replayed = [&](const char* manifest) {
        ddm_rt_images* images = nullptr;
        return found(ddm_rt_replay(session.get(), manifest, DDM_RT_TERMINATED, "a b: c", DDM_RT_TERMINATED, DDM_RT_ALL,
                                   nullptr, &images))
            .field;
    };
    EXPECT_EQ(replayed("{"), "a b: c");
    EXPECT_EQ(replayed("[]"), "a b: c");
    EXPECT_EQ(replayed("{\"request\": 3}"), "target");
    char* json = nullptr;
    EXPECT_EQ(found(ddm_rt_session_ledger(session.get(), "", 0, &json)).field, "scope");
}

TEST(Library, TakesTextByItsSize) {
    const auto session = open_digits();
    const auto request = request_of(1, 0), same = request_of(1, 0);
    fine(ddm_rt_request_set_target(request.get(), "code:1=1 and what follows", 8));
    fine(ddm_rt_request_set_target(same.get(), "code:1=1", DDM_RT_TERMINATED));
    EXPECT_TRUE(generate(session.get(), request.get()) == generate(session.get(), same.get()));
    ddm_rt_model* model = nullptr;
    const Found said = found(ddm_rt_model_open("a\0b", 3, nullptr, &model));
    EXPECT_EQ(said.code, DDM_RT_BAD_INPUT);
    EXPECT_EQ(said.field, "directory");
}

TEST(Library, ListsBackendsOnSeveralThreads) {
    const auto list = [] {
        for (int i = 0; i < 5; i++) {
            char* text = nullptr;
            fine(ddm_rt_backends(&text));
            ddm_rt_free(text);
        }
    };
    std::thread other(list);
    list();
    other.join();
}

TEST(Array, IsNoLargerThanMemory) {
    constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
    EXPECT_THROW(ddm::Array(ddm::DType::float32, {kMost, 4}), std::length_error);
    EXPECT_THROW(ddm::Array(ddm::DType::float32, {kMost}), std::length_error);
    EXPECT_THROW(ddm::Array(ddm::DType::int64, {2, -1}), std::length_error);
    EXPECT_EQ(ddm::Array(ddm::DType::int64, {0, 5}).size(), 0U);
}

TEST(Library, OpensNothingThatIsNoBundle) {
    ddm_rt_model* model = reinterpret_cast<ddm_rt_model*>(1);
    const Found said = found(ddm_rt_model_open("no-such-folder", DDM_RT_TERMINATED, nullptr, &model));
    EXPECT_EQ(said.code, DDM_RT_BAD_BUNDLE);
    EXPECT_EQ(model, nullptr);
    EXPECT_TRUE(holds(said.message, "no-such-folder"));
    const std::string path = std::filesystem::temp_directory_path().string();
    const Found other = found(ddm_rt_model_open(path.c_str(), DDM_RT_TERMINATED, nullptr, &model));
    EXPECT_EQ(other.field, path) << other.message;
}

TEST(Library, RefusesABackendOrProviderThatItHasNot) {
    const auto open = [](const char* backend, const char* provider) {
        ddm_rt_model_options* options = nullptr;
        ddm_rt_model* model = nullptr;
        fine(ddm_rt_model_options_create(&options));
        if (backend) fine(ddm_rt_model_options_set_backend(options, backend, DDM_RT_TERMINATED));
        if (provider) fine(ddm_rt_model_options_set_provider(options, provider, DDM_RT_TERMINATED));
        const Found said = found(ddm_rt_model_open(DIGITS_BUNDLE, DDM_RT_TERMINATED, options, &model));
        EXPECT_EQ(model, nullptr);
        ddm_rt_model_options_destroy(options);
        return said;
    };
    const Found tensorrt = open("tensorrt", nullptr), abacus = open("abacus", nullptr), npu = open(nullptr, "abacus");
    EXPECT_EQ(tensorrt.code, DDM_RT_NO_BACKEND);
    EXPECT_TRUE(holds(tensorrt.message, "available here: onnxruntime")) << tensorrt.message;
    EXPECT_EQ(abacus.code, DDM_RT_BAD_INPUT);
    EXPECT_TRUE(holds(abacus.message, "backends: auto, tensorrt")) << abacus.message;
    EXPECT_EQ(npu.code, DDM_RT_NO_BACKEND);
    EXPECT_EQ(npu.field, "provider");
    EXPECT_TRUE(holds(npu.message, "available here: ")) << npu.message;
}

TEST(Library, TakesTheCpuInAnyLettersAndNoOptionsOfIt) {
    ddm_rt_model_options* options = nullptr;
    fine(ddm_rt_model_options_create(&options));
    const Owned<ddm_rt_model_options> owned{options, ddm_rt_model_options_destroy};
    fine(ddm_rt_model_options_set_provider(options, "cpu", DDM_RT_TERMINATED));
    ddm_rt_model* model = nullptr;
    fine(ddm_rt_model_open(DIGITS_BUNDLE, DDM_RT_TERMINATED, options, &model));
    EXPECT_STREQ(ddm_rt_model_provider(model), "CPUExecutionProvider");
    ddm_rt_model_close(model);
    fine(ddm_rt_model_options_set_provider_option(options, "bogus", DDM_RT_TERMINATED, "1", DDM_RT_TERMINATED));
    const Found said = found(ddm_rt_model_open(DIGITS_BUNDLE, DDM_RT_TERMINATED, options, &model));
    EXPECT_EQ(said.code, DDM_RT_BAD_INPUT);
    EXPECT_EQ(said.field, "bogus");
}

TEST(Library, SaysWhatTheModelIs) {
    const auto model = open_model();
    EXPECT_TRUE(holds(ddm_rt_model_describe(model.get()), ddm_rt_model_bundle_id(model.get())));
    EXPECT_STREQ(ddm_rt_model_family(model.get()), "pixel");
    EXPECT_STREQ(ddm_rt_model_backend(model.get()), "onnxruntime");
    EXPECT_STREQ(ddm_rt_model_provider(model.get()), "CPUExecutionProvider");
    EXPECT_STREQ(ddm_rt_model_precision(model.get()), "fp32");
    EXPECT_EQ(ddm_rt_model_num_codes(model.get()), 16);
    EXPECT_EQ(ddm_rt_model_num_top_codes(model.get()), 2);
    EXPECT_EQ(ddm_rt_model_image_size(model.get()), 32);
    EXPECT_EQ(ddm_rt_model_size_multiple(model.get()), 8);
    EXPECT_EQ(ddm_rt_model_threads(model.get()), 1);
    EXPECT_EQ(ddm_rt_model_prompt_free(model.get()), 1);
    ddm_rt_model_trim(model.get());
}

TEST(Library, TellsAndStopsWhileItOpens) {
    ddm_rt_model_options* options = nullptr;
    fine(ddm_rt_model_options_create(&options));
    const Owned<ddm_rt_model_options> owned{options, ddm_rt_model_options_destroy};
    std::vector<std::pair<int64_t, int64_t>> told;
    const auto progress = [](void* user, int64_t done, int64_t total) {
        static_cast<decltype(told)*>(user)->emplace_back(done, total);
    };
    std::vector<std::string> said;
    const auto log = [](void* user, int32_t level, const char* message) {
        static_cast<decltype(said)*>(user)->push_back(std::to_string(level) + " " + message);
    };
    fine(ddm_rt_model_options_set_progress(options, progress, &told));
    fine(ddm_rt_model_options_set_log(options, DDM_RT_LOG_INFO, log, &said));
    ddm_rt_model* model = nullptr;
    fine(ddm_rt_model_open(DIGITS_BUNDLE, DDM_RT_TERMINATED, options, &model));
    ddm_rt_model_close(model);
    ASSERT_FALSE(told.empty());
    EXPECT_EQ(told.back().first, told.back().second);
    // ONNX Runtime's own, and the library's.
    EXPECT_TRUE(
        std::any_of(said.begin(), said.end(), [](const auto& each) { return begins(each, "1 ONNX Runtime: "); }));
    EXPECT_TRUE(std::any_of(said.begin(), said.end(), [](const auto& each) { return holds(each, ": opened on CPU"); }));
    EXPECT_EQ(found(ddm_rt_model_options_set_log(options, 4, log, &said)).field, "level");
    EXPECT_EQ(found(ddm_rt_model_options_set_cache(options, -1)).field, "bytes");
    const auto cancel = token();
    ddm_rt_cancel_set(cancel.get());
    fine(ddm_rt_model_options_set_cancel(options, cancel.get()));
    EXPECT_EQ(code(ddm_rt_model_open(DIGITS_BUNDLE, DDM_RT_TERMINATED, options, &model)), DDM_RT_CANCELLED);
}

TEST(Library, IsClosedInAForkedProcessAndRefusesToGenerateThere) {
    auto model = open_model();
    auto session = open_session(model.get());
    const auto request = request_of(1, 0);
    const Bytes before = generate(session.get(), request.get());
    EXPECT_EQ(forked([&] {
                  const Found said = refused(session.get(), request.get());
                  ddm_rt_session* other = nullptr;
                  const bool opens = code(ddm_rt_session_open(model.get(), nullptr, &other)) == DDM_RT_OK;
                  session.reset();
                  model.reset();
                  return said.code == DDM_RT_BAD_INPUT && said.field.empty() && holds(said.message, "forked") && !opens
                             ? 0
                             : 1;
              }),
              0);
    EXPECT_TRUE(generate(session.get(), request.get()) == before);
}

TEST(Library, OpensABundleInAForkedProcess) {
    const auto session = open_digits();
    const auto request = request_of(1, 0);
    const Bytes here = generate(session.get(), request.get());
    EXPECT_EQ(forked([&] { return generate(open_digits().get(), request.get()) == here ? 0 : 1; }), 0);
}

TEST(Library, RefusesMoreThanItsLimitsBeforeItAllocates) {
    const auto model = open_model();
    const auto session = open_session(model.get());
    const auto check = [](ddm_rt_session* of, const Owned<ddm_rt_request>& request, const char* said,
                          const char* field) {
        const Found error = refused(of, request.get());
        EXPECT_EQ(error.code, DDM_RT_BAD_INPUT);
        EXPECT_EQ(error.field, field);
        EXPECT_TRUE(begins(error.message, said)) << error.message;
    };
    check(session.get(), request_of(int64_t{1} << 32, 0), "n is 4294967296; expected at most", "n");
    const auto sized = [](int64_t n, int64_t side) {
        auto request = request_of(n, 0);
        fine(ddm_rt_request_set_height(request.get(), side));
        fine(ddm_rt_request_set_width(request.get(), side));
        return request;
    };
    check(session.get(), sized(1, 1 << 20), "height is 1048576, width is 1048576; expected at most", "height");
    check(session.get(), sized(1 << 16, 1 << 12), "n is 65536; images of 4096 by 4096 pixels", "n");
    ddm_rt_session_options* options = nullptr;
    fine(ddm_rt_session_options_create(&options));
    EXPECT_EQ(found(ddm_rt_session_options_set_most_images(options, 0)).field, "images");
    fine(ddm_rt_session_options_set_most_images(options, 3));
    fine(ddm_rt_session_options_set_most_pixels(options, 40 * 40));
    fine(ddm_rt_session_options_set_most_bytes(options, 2 * 40 * 40 * 3));
    const auto small = open_session(model.get(), options);
    ddm_rt_session_options_destroy(options);
    check(small.get(), request_of(4, 0), "n is 4; expected at most 3", "n");
    check(small.get(), sized(1, 48), "height is 48", "height");
    check(small.get(), sized(3, 40), "n is 3; images of 40 by 40", "n");
    EXPECT_FALSE(generate(small.get(), sized(2, 40).get()).empty());
}

TEST(Library, GoesOnWhereTheProcessGoesToAnotherFolder) {
    namespace fs = std::filesystem;
    const fs::path before = fs::current_path();
    fs::current_path(fs::path(DIGITS_BUNDLE).parent_path());
    ddm_rt_model* opened = nullptr;
    fine(ddm_rt_model_open("digits", DDM_RT_TERMINATED, nullptr, &opened));
    const Owned<ddm_rt_model> model{opened, ddm_rt_model_close};
    const auto session = open_session(model.get());
    fs::current_path("/");
    const auto request = request_of(1, 0);
    fine(ddm_rt_request_set_target(request.get(), "a=.5,b=.5", DDM_RT_TERMINATED));  // calibrations are looked for
    const Found said = refused(session.get(), request.get());
    EXPECT_EQ(said.code, DDM_RT_BAD_INPUT);
    EXPECT_TRUE(holds(said.message, "no calibration")) << said.message;
    fs::current_path(before);
}

}  // namespace
