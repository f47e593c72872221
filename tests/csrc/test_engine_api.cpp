// The C header from a program's side, on the shipped digits bundle: handles, threads, callbacks and bad calls.
#include <gtest/gtest.h>

#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <filesystem>
#include <future>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "array.h"
#include "buckets.h"
#include "ddm_rt.h"

namespace {

template <typename T>
using Owned = std::unique_ptr<T, void (*)(T*)>;

using Bytes = std::vector<uint8_t>;

Owned<ddm_rt_pipeline> open_digits() {
    ddm_rt_options* options = nullptr;
    EXPECT_EQ(ddm_rt_options_create(&options), DDM_RT_OK);
    EXPECT_EQ(ddm_rt_options_set_threads(options, 1), DDM_RT_OK);
    ddm_rt_pipeline* pipeline = nullptr;
    EXPECT_EQ(ddm_rt_pipeline_open(DIGITS_BUNDLE, options, &pipeline), DDM_RT_OK) << ddm_rt_last_error();
    ddm_rt_options_destroy(options);
    return {pipeline, ddm_rt_pipeline_close};
}

Owned<ddm_rt_request> request_of(int64_t n, uint64_t seed, int64_t steps = 2) {
    ddm_rt_request* request = nullptr;
    EXPECT_EQ(ddm_rt_request_create(&request), DDM_RT_OK);
    EXPECT_EQ(ddm_rt_request_set_n(request, n), DDM_RT_OK);
    EXPECT_EQ(ddm_rt_request_set_seed(request, seed), DDM_RT_OK);
    EXPECT_EQ(ddm_rt_request_set_num_steps(request, steps), DDM_RT_OK);
    return {request, ddm_rt_request_destroy};
}

// Every image's bytes, one after another; none where generating failed.
Bytes generate(ddm_rt_pipeline* pipeline, const ddm_rt_request* request) {
    ddm_rt_images* images = nullptr;
    EXPECT_EQ(ddm_rt_generate(pipeline, request, &images), DDM_RT_OK) << ddm_rt_last_error();
    const int64_t size = ddm_rt_images_height(images) * ddm_rt_images_width(images) * 3;
    Bytes bytes;
    for (int64_t i = 0; i < ddm_rt_images_count(images); i++) {
        const uint8_t* rgb = ddm_rt_images_rgb(images, i);
        bytes.insert(bytes.end(), rgb, rgb + size);
    }
    ddm_rt_images_destroy(images);
    return bytes;
}

TEST(Library, SaysWhatItIs) {
    EXPECT_EQ(ddm_rt_abi(), DDM_RT_ABI);
    EXPECT_STREQ(ddm_rt_version(), DDM_RT_EXPECTED_VERSION);
    const std::string backends = ddm_rt_backends();
    EXPECT_NE(backends.find(R"({"name": "onnxruntime", "reason": null})"), std::string::npos) << backends;
    EXPECT_NE(backends.find(R"({"name": "tensorrt", "reason": "not built)"), std::string::npos) << backends;
}

TEST(Library, AnswersNullsWithAStatus) {
    EXPECT_EQ(ddm_rt_options_create(nullptr), DDM_RT_BAD_INPUT);
    EXPECT_STREQ(ddm_rt_last_error(), "options is null");
    EXPECT_EQ(ddm_rt_options_set_backend(nullptr, "auto"), DDM_RT_BAD_INPUT);
    EXPECT_EQ(ddm_rt_pipeline_open(nullptr, nullptr, nullptr), DDM_RT_BAD_INPUT);
    EXPECT_EQ(ddm_rt_request_set_n(nullptr, 1), DDM_RT_BAD_INPUT);
    EXPECT_EQ(ddm_rt_request_cancel(nullptr), DDM_RT_BAD_INPUT);
    EXPECT_EQ(ddm_rt_generate(nullptr, nullptr, nullptr), DDM_RT_BAD_INPUT);
    EXPECT_EQ(ddm_rt_replay(nullptr, nullptr, 0, nullptr, 0, nullptr, nullptr), DDM_RT_BAD_INPUT);
    EXPECT_EQ(ddm_rt_pipeline_describe(nullptr), nullptr);
    EXPECT_EQ(ddm_rt_images_count(nullptr), 0);
    EXPECT_EQ(ddm_rt_images_rgb(nullptr, 0), nullptr);
    EXPECT_EQ(ddm_rt_images_code(nullptr, 0), -1);
    ddm_rt_options_destroy(nullptr);
    ddm_rt_pipeline_close(nullptr);
    ddm_rt_request_destroy(nullptr);
    ddm_rt_images_destroy(nullptr);
    const auto request = request_of(1, 0);
    EXPECT_EQ(ddm_rt_request_set_target(request.get(), nullptr), DDM_RT_BAD_INPUT);
    EXPECT_STREQ(ddm_rt_last_error(), "target is null");
    EXPECT_EQ(ddm_rt_request_set_codes(request.get(), nullptr, 1), DDM_RT_BAD_INPUT);
    EXPECT_EQ(ddm_rt_request_set_codes(request.get(), nullptr, -1), DDM_RT_BAD_INPUT);
}

TEST(Library, NamesNoFileWhereWordsComeFromNone) {
    const auto request = request_of(1, 0);
    EXPECT_EQ(ddm_rt_request_set_leave_alone_json(request.get(), "[3]", 3, nullptr), DDM_RT_BAD_INPUT);
    EXPECT_STREQ(ddm_rt_last_error(), "leave_alone is [3]; expected a list of words");
    EXPECT_EQ(ddm_rt_request_set_leave_alone_json(request.get(), "[3]", 3, "words.json"), DDM_RT_BAD_INPUT);
    EXPECT_STREQ(ddm_rt_last_error(), "words.json: leave_alone is [3]; expected a list of words");
}

TEST(Library, ListsBackendsOnSeveralThreads) {
    const auto list = [] {
        for (int i = 0; i < 20; i++) EXPECT_NE(ddm_rt_backends(), nullptr);
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

TEST(Library, KeepsAnErrorPerThread) {
    EXPECT_EQ(ddm_rt_options_create(nullptr), DDM_RT_BAD_INPUT);
    std::thread([] {
        EXPECT_STREQ(ddm_rt_last_error(), "");
        EXPECT_EQ(ddm_rt_request_create(nullptr), DDM_RT_BAD_INPUT);
        EXPECT_STREQ(ddm_rt_last_error(), "request is null");
    }).join();
    EXPECT_STREQ(ddm_rt_last_error(), "options is null");
}

TEST(Library, OpensNothingThatIsNoBundle) {
    ddm_rt_pipeline* pipeline = reinterpret_cast<ddm_rt_pipeline*>(1);
    EXPECT_EQ(ddm_rt_pipeline_open("no-such-folder", nullptr, &pipeline), DDM_RT_BAD_BUNDLE);
    EXPECT_EQ(pipeline, nullptr);
    EXPECT_NE(std::strstr(ddm_rt_last_error(), "no-such-folder"), nullptr);
}

TEST(Library, RefusesABackendThatItHasNot) {
    ddm_rt_options* options = nullptr;
    ASSERT_EQ(ddm_rt_options_create(&options), DDM_RT_OK);
    ddm_rt_pipeline* pipeline = nullptr;
    EXPECT_EQ(ddm_rt_options_set_backend(options, "tensorrt"), DDM_RT_OK);
    EXPECT_EQ(ddm_rt_pipeline_open(DIGITS_BUNDLE, options, &pipeline), DDM_RT_NO_BACKEND);
    EXPECT_NE(std::strstr(ddm_rt_last_error(), "available here: onnxruntime"), nullptr) << ddm_rt_last_error();
    EXPECT_EQ(ddm_rt_options_set_backend(options, "abacus"), DDM_RT_OK);
    EXPECT_EQ(ddm_rt_pipeline_open(DIGITS_BUNDLE, options, &pipeline), DDM_RT_BAD_INPUT);
    EXPECT_STREQ(ddm_rt_last_error(),
                 "backend 'abacus' is unknown; backends: auto, tensorrt, tensorrt-rtx, openvino, onnxruntime, torch");
    ddm_rt_options_destroy(options);
}

TEST(Library, TellsSteps) {
    const auto pipeline = open_digits();
    const auto request = request_of(3, 7, 4);
    std::vector<std::pair<int64_t, int64_t>> told;
    const auto tell = [](void* user, int64_t done, int64_t total) {
        static_cast<decltype(told)*>(user)->emplace_back(done, total);
    };
    ASSERT_EQ(ddm_rt_request_set_on_step(request.get(), tell, &told), DDM_RT_OK);
    EXPECT_FALSE(generate(pipeline.get(), request.get()).empty());
    const decltype(told) expected{{1, 4}, {2, 4}, {3, 4}, {4, 4}};
    EXPECT_EQ(told, expected);
}

TEST(Library, StopsWhenCancelledFromAnotherThread) {
    const auto pipeline = open_digits();
    const auto request = request_of(2, 7, 1000);
    std::atomic<bool> begun = false;
    const auto tell = [](void* user, int64_t, int64_t) { *static_cast<std::atomic<bool>*>(user) = true; };
    ASSERT_EQ(ddm_rt_request_set_on_step(request.get(), tell, &begun), DDM_RT_OK);
    std::thread other([&] {
        while (!begun) std::this_thread::yield();
        EXPECT_EQ(ddm_rt_request_cancel(request.get()), DDM_RT_OK);
    });
    ddm_rt_images* images = nullptr;
    EXPECT_EQ(ddm_rt_generate(pipeline.get(), request.get(), &images), DDM_RT_CANCELLED);
    other.join();
    EXPECT_EQ(images, nullptr);
    EXPECT_NE(std::strstr(ddm_rt_last_error(), "of 1000"), nullptr) << ddm_rt_last_error();
    EXPECT_EQ(ddm_rt_generate(pipeline.get(), request.get(), &images), DDM_RT_CANCELLED);
    EXPECT_STREQ(ddm_rt_last_error(), "cancelled before step 1 of 1000");
}

TEST(Library, GivesTheSameBytesOnOneHandleAndOnTwo) {
    const auto shared = open_digits();
    const auto first = request_of(3, 1), second = request_of(2, 2);
    const Bytes alone_first = generate(shared.get(), first.get()), alone_second = generate(shared.get(), second.get());
    EXPECT_EQ(alone_first.size(), 3U * 32 * 32 * 3);

    Bytes shared_first, shared_second, own_first, own_second;
    const auto fresh = open_digits();  // its first calls are these
    std::thread a([&] { shared_first = generate(fresh.get(), first.get()); });
    std::thread b([&] { shared_second = generate(fresh.get(), second.get()); });
    a.join();
    b.join();
    std::thread c([&] { own_first = generate(open_digits().get(), first.get()); });
    std::thread d([&] { own_second = generate(open_digits().get(), second.get()); });
    c.join();
    d.join();
    EXPECT_TRUE(shared_first == alone_first && own_first == alone_first);
    EXPECT_TRUE(shared_second == alone_second && own_second == alone_second);
}

TEST(Library, GivesAnImageTheSameBytesInAnyBatch) {
    const auto pipeline = open_digits();
    const Bytes all = generate(pipeline.get(), request_of(9, 5).get());
    const Bytes few = generate(pipeline.get(), request_of(2, 5).get());
    EXPECT_TRUE(std::equal(few.begin(), few.end(), all.begin()));
}

TEST(Library, GivesAScopesDrawsBackWhereImagesAreNotDelivered) {
    const auto pipeline = open_digits();
    const auto tops = [&](int32_t refuse, ddm_rt_status expected) {
        const auto request = request_of(1, 3);
        EXPECT_EQ(ddm_rt_request_set_scope(request.get(), "scope"), DDM_RT_OK);
        const auto deliver = [](void* user, const ddm_rt_images* images) {
            EXPECT_EQ(ddm_rt_images_count(images), 1);
            return *static_cast<int32_t*>(user);
        };
        EXPECT_EQ(ddm_rt_request_set_deliver(request.get(), deliver, &refuse), DDM_RT_OK);
        ddm_rt_images* images = nullptr;
        EXPECT_EQ(ddm_rt_generate(pipeline.get(), request.get(), &images), expected) << ddm_rt_last_error();
        const std::string manifest = images ? ddm_rt_images_manifest(images) : "";
        ddm_rt_images_destroy(images);
        return manifest;
    };
    const std::string first = tops(0, DDM_RT_OK);
    EXPECT_NE(first.find("\"position\": 0"), std::string::npos) << first;
    EXPECT_EQ(tops(1, DDM_RT_NOT_DELIVERED), "");
    EXPECT_NE(tops(0, DDM_RT_OK).find("\"position\": 1"), std::string::npos);
}

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

TEST(Library, IsClosedInAForkedProcessAndRefusesToGenerateThere) {
    auto pipeline = open_digits();
    const auto request = request_of(1, 0);
    const Bytes before = generate(pipeline.get(), request.get());
    EXPECT_EQ(forked([&] {
                  ddm_rt_images* images = nullptr;
                  const bool refused = ddm_rt_generate(pipeline.get(), request.get(), &images) == DDM_RT_BAD_INPUT &&
                                       std::strstr(ddm_rt_last_error(), "forked") && !images;
                  pipeline.reset();
                  return refused ? 0 : 1;
              }),
              0);
    EXPECT_TRUE(generate(pipeline.get(), request.get()) == before);
}

TEST(Library, OpensABundleInAForkedProcess) {
    const auto pipeline = open_digits();
    const auto request = request_of(1, 0);
    const Bytes here = generate(pipeline.get(), request.get());
    EXPECT_EQ(forked([&] { return generate(open_digits().get(), request.get()) == here ? 0 : 1; }), 0);
}

TEST(Library, RefusesMoreThanItsLimitsBeforeItAllocates) {
    const auto pipeline = open_digits();
    ddm_rt_images* images = nullptr;
    const auto refused = [&](const Owned<ddm_rt_request>& request, const char* said) {
        EXPECT_EQ(ddm_rt_generate(pipeline.get(), request.get(), &images), DDM_RT_BAD_INPUT);
        EXPECT_EQ(std::strncmp(ddm_rt_last_error(), said, std::strlen(said)), 0) << ddm_rt_last_error();
    };
    refused(request_of(int64_t{1} << 32, 0), "n is 4294967296; expected at most");
    auto large = request_of(1, 0);
    EXPECT_EQ(ddm_rt_request_set_height(large.get(), 1 << 20), DDM_RT_OK);
    EXPECT_EQ(ddm_rt_request_set_width(large.get(), 1 << 20), DDM_RT_OK);
    refused(large, "height is 1048576, width is 1048576; expected at most");
    auto many = request_of(1 << 20, 0);
    EXPECT_EQ(ddm_rt_request_set_height(many.get(), 1 << 12), DDM_RT_OK);
    EXPECT_EQ(ddm_rt_request_set_width(many.get(), 1 << 12), DDM_RT_OK);
    refused(many, "n is 1048576; images of 4096 by 4096 pixels");
}

TEST(Library, GoesOnWhereTheProcessGoesToAnotherFolder) {
    namespace fs = std::filesystem;
    const fs::path before = fs::current_path();
    fs::current_path(fs::path(DIGITS_BUNDLE).parent_path());
    ddm_rt_pipeline* opened = nullptr;
    ASSERT_EQ(ddm_rt_pipeline_open("digits", nullptr, &opened), DDM_RT_OK);
    const Owned<ddm_rt_pipeline> pipeline{opened, ddm_rt_pipeline_close};
    fs::current_path("/");
    const auto request = request_of(1, 0);
    EXPECT_EQ(ddm_rt_request_set_target(request.get(), "a=.5,b=.5"), DDM_RT_OK);  // calibrations are looked for
    ddm_rt_images* images = nullptr;
    EXPECT_EQ(ddm_rt_generate(pipeline.get(), request.get(), &images), DDM_RT_BAD_INPUT);
    EXPECT_NE(std::strstr(ddm_rt_last_error(), "no calibration"), nullptr) << ddm_rt_last_error();
    fs::current_path(before);
}

TEST(KnownSizes, LetNobodyWaitForAShapeOfAnothers) {
    ddm::KnownSizes sizes;
    const ddm::Shape known{1, 1, 1}, new_one{1, 2, 2};
    const std::vector<size_t> few{1, 2};
    EXPECT_EQ(sizes.of(known, {}, [&] { return few; }), few);
    std::promise<void> begun, go_on;
    std::thread other([&] {
        EXPECT_EQ(sizes.of(new_one, {}, [&] {
            begun.set_value();
            go_on.get_future().wait();
            return few;
        }), few);
    });
    begun.get_future().wait();
    const auto never = [&]() -> std::vector<size_t> { throw std::logic_error("probed twice"); };
    EXPECT_EQ(sizes.of(known, {}, never), few);
    EXPECT_EQ(sizes.of({1, 3, 3}, {}, [&] { return few; }), few);
    EXPECT_THROW(sizes.of(new_one, [] { return true; }, never), ddm::Error);  // cancelled while it waits
    go_on.set_value();
    other.join();
    EXPECT_EQ(sizes.of(new_one, {}, never), few);
}

TEST(KnownSizes, AreProbedAgainWhereThatFailed) {
    ddm::KnownSizes sizes;
    EXPECT_THROW(sizes.of({1, 1, 1}, {}, []() -> std::vector<size_t> { throw std::runtime_error("no"); }), std::runtime_error);
    EXPECT_EQ(sizes.of({1, 1, 1}, {}, [] { return std::vector<size_t>{4}; }), std::vector<size_t>{4});
}

TEST(Library, ReplaysItsOwnManifest) {
    const auto pipeline = open_digits();
    const auto request = request_of(3, 11);
    const Bytes bytes = generate(pipeline.get(), request.get());
    ddm_rt_images* images = nullptr;
    ASSERT_EQ(ddm_rt_generate(pipeline.get(), request.get(), &images), DDM_RT_OK);
    const std::string manifest = ddm_rt_images_manifest(images);
    EXPECT_STREQ(ddm_rt_images_file(images, 2), "00002.png");
    EXPECT_EQ(ddm_rt_images_seed(images, 0), 11U);
    EXPECT_EQ(ddm_rt_images_file(images, 3), nullptr);
    ddm_rt_images_destroy(images);

    const auto size = static_cast<int64_t>(manifest.size());
    ASSERT_EQ(ddm_rt_replay(pipeline.get(), manifest.data(), size, nullptr, 1, nullptr, &images), DDM_RT_OK)
        << ddm_rt_last_error();
    ASSERT_EQ(ddm_rt_images_count(images), 1);
    EXPECT_EQ(std::memcmp(ddm_rt_images_rgb(images, 0), bytes.data() + bytes.size() / 3, bytes.size() / 3), 0);
    ddm_rt_images_destroy(images);
    EXPECT_EQ(ddm_rt_replay(pipeline.get(), manifest.data(), size, nullptr, -1, nullptr, &images), DDM_RT_BAD_INPUT);
    EXPECT_STREQ(ddm_rt_last_error(), "index is -1; the manifest has images 0 to 2");
    EXPECT_EQ(ddm_rt_replay(pipeline.get(), "{}", 2, "m.json", 0, nullptr, &images), DDM_RT_BAD_INPUT);
    EXPECT_EQ(std::strncmp(ddm_rt_last_error(), "m.json: field ", 14), 0) << ddm_rt_last_error();
}

}  // namespace
