// The C header from a program's side: images, callbacks, cancelling, scopes and replays.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "library_calls.h"

namespace {

TEST(Library, TellsSteps) {
    const auto session = open_digits();
    const auto request = request_of(3, 7, 4);
    std::vector<std::pair<int64_t, int64_t>> told;
    const auto tell = [](void* user, int64_t done, int64_t total) {
        static_cast<decltype(told)*>(user)->emplace_back(done, total);
        return 0;
    };
    fine(ddm_rt_request_set_on_step(request.get(), tell, &told));
    EXPECT_FALSE(generate(session.get(), request.get()).empty());
    const decltype(told) expected{{3, 12}, {6, 12}, {9, 12}, {12, 12}};
    EXPECT_EQ(told, expected);
    told.clear();  // of a cache: the steps that call the model
    EXPECT_FALSE(replay(session.get(), cached(session.get(), request_of(1, 7, 5).get()), request.get()).empty());
    const decltype(told) of_cache{{1, 3}, {2, 3}, {3, 3}};
    EXPECT_EQ(told, of_cache);
    fine(ddm_rt_request_set_on_step(
        request.get(), [](void*, int64_t done, int64_t) { return int32_t{done > 5}; }, nullptr));
    const Found stopped = refused(session.get(), request.get());
    EXPECT_EQ(stopped.code, DDM_RT_CANCELLED);
    EXPECT_EQ(stopped.message, "stopped at step 6 of 12");
}

TEST(Library, StopsWhenCancelledFromAnotherThreadAndGoesOnAfterAReset) {
    const auto session = open_digits();
    const auto request = request_of(2, 7, 1000), other_one = request_of(1, 7, 1000), brief = request_of(1, 7);
    const auto cancel = token();
    std::atomic<bool> begun = false;
    const auto tell = [](void* user, int64_t, int64_t) {
        *static_cast<std::atomic<bool>*>(user) = true;
        return 0;
    };
    fine(ddm_rt_request_set_on_step(request.get(), tell, &begun));
    for (const auto* each : {&request, &other_one, &brief}) fine(ddm_rt_request_set_cancel(each->get(), cancel.get()));
    std::thread other([&] {
        while (!begun) std::this_thread::yield();
        ddm_rt_cancel_set(cancel.get());
    });
    std::thread sharing([&] { EXPECT_EQ(refused(session.get(), other_one.get()).code, DDM_RT_CANCELLED); });
    EXPECT_EQ(refused(session.get(), request.get()).code, DDM_RT_CANCELLED);
    other.join();
    sharing.join();
    EXPECT_EQ(refused(session.get(), brief.get()).code, DDM_RT_CANCELLED);
    EXPECT_EQ(ddm_rt_cancel_is_set(cancel.get()), 1);
    ddm_rt_cancel_reset(cancel.get());
    EXPECT_FALSE(generate(session.get(), brief.get()).empty());
}

TEST(Library, GivesImagesAsTheyAreDone) {
    const auto session = open_digits();
    const auto request = request_of(70, 5, 1);
    const Bytes all = generate(session.get(), request.get());
    struct Seen {
        std::vector<int64_t> numbers;
        Bytes bytes;
        size_t calls = 0;
    } seen;
    seen.bytes.resize(all.size());
    const auto take = [](void* user, const ddm_rt_images* images) {
        auto& to = *static_cast<Seen*>(user);
        const size_t size = to.bytes.size() / 70;
        to.calls++;
        for (int64_t i = 0; i < ddm_rt_images_count(images); i++) {
            const int64_t number = ddm_rt_images_index(images, i);
            to.numbers.push_back(number);
            std::memcpy(&to.bytes[static_cast<size_t>(number) * size], ddm_rt_images_rgb(images, i), size);
            EXPECT_NE(ddm_rt_images_xmp(images, i), nullptr);
        }
        EXPECT_EQ(ddm_rt_images_index(images, ddm_rt_images_count(images)), -1);
        return 0;
    };
    fine(ddm_rt_request_set_on_images(request.get(), take, &seen));
    fine(ddm_rt_request_set_keep(request.get(), 0));
    const auto images = images_of(session.get(), request.get());
    EXPECT_EQ(ddm_rt_images_rgb(images.get(), 0), nullptr);  // not kept
    EXPECT_GT(seen.calls, 1U);
    std::sort(seen.numbers.begin(), seen.numbers.end());
    for (int64_t i = 0; i < 70; i++) EXPECT_EQ(seen.numbers.at(static_cast<size_t>(i)), i);
    EXPECT_TRUE(seen.bytes == all);
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
    const auto session = open_digits();
    const Bytes all = generate(session.get(), request_of(9, 5).get());
    const Bytes few = generate(session.get(), request_of(2, 5).get());
    EXPECT_TRUE(std::equal(few.begin(), few.end(), all.begin()));
}

TEST(Library, GivesAScopesDrawsBackWhereImagesAreNotDelivered) {
    const auto session = open_digits();
    const auto tops = [&](int32_t refuse, int32_t expected, auto set) {
        const auto request = request_of(1, 3);
        fine(ddm_rt_request_set_scope(request.get(), "scope", DDM_RT_TERMINATED));
        const auto deliver = [](void* user, const ddm_rt_images* images) {
            EXPECT_EQ(ddm_rt_images_count(images), 1);
            return *static_cast<int32_t*>(user);
        };
        fine(set(request.get(), deliver, &refuse));
        ddm_rt_images* images = nullptr;
        EXPECT_EQ(code(ddm_rt_generate(session.get(), request.get(), &images)), expected);
        const std::string manifest = images ? ddm_rt_images_manifest(images) : "";
        ddm_rt_images_destroy(images);
        return manifest;
    };
    const std::string first = tops(0, DDM_RT_OK, ddm_rt_request_set_deliver);
    EXPECT_TRUE(holds(first, "\"position\": 0")) << first;
    EXPECT_EQ(tops(1, DDM_RT_NOT_DELIVERED, ddm_rt_request_set_deliver), "");
    EXPECT_EQ(tops(1, DDM_RT_NOT_DELIVERED, ddm_rt_request_set_on_images), "");
    EXPECT_TRUE(holds(tops(0, DDM_RT_OK, ddm_rt_request_set_deliver), "\"position\": 1"));
    char* json = nullptr;
    fine(ddm_rt_session_ledger(session.get(), "scope", DDM_RT_TERMINATED, &json));
    EXPECT_TRUE(holds(json, R"("leased": {}, "pooled": {}})")) << json;
    ddm_rt_free(json);
    fine(ddm_rt_session_ledger(session.get(), "other", DDM_RT_TERMINATED, &json));
    EXPECT_STREQ(json, "[]");
    ddm_rt_free(json);
}

TEST(Library, KeepsTheCountsOfTwoSessionsOfOneModelApart) {
    auto model = open_model();
    const auto first = open_session(model.get()), second = open_session(model.get());
    model.reset();  // sessions keep what they need
    const auto request = request_of(1, 3);
    fine(ddm_rt_request_set_scope(request.get(), "scope", DDM_RT_TERMINATED));
    for (const auto* session : {&first, &second}) {
        const auto images = images_of(session->get(), request.get());
        EXPECT_TRUE(holds(ddm_rt_images_manifest(images.get()), "\"position\": 0"));
    }
}

TEST(Library, ReplaysItsOwnManifest) {
    const auto session = open_digits();
    const auto request = request_of(3, 11);
    const auto images = images_of(session.get(), request.get());
    const Bytes bytes = bytes_of(images.get());
    const std::string manifest = ddm_rt_images_manifest(images.get());
    EXPECT_STREQ(ddm_rt_images_file(images.get(), 2), "00002.png");
    EXPECT_EQ(ddm_rt_images_seed(images.get(), 0), 11U);
    EXPECT_EQ(ddm_rt_images_file(images.get(), 3), nullptr);

    const auto replay = [&](const std::string& content, const char* name, int64_t index, ddm_rt_images** made) {
        return found(ddm_rt_replay(session.get(), content.data(), static_cast<int64_t>(content.size()), name,
                                   DDM_RT_TERMINATED, index, nullptr, made));
    };
    ddm_rt_images* again = nullptr;
    ASSERT_EQ(replay(manifest, nullptr, 1, &again).code, DDM_RT_OK);
    ASSERT_EQ(ddm_rt_images_count(again), 1);
    EXPECT_EQ(std::memcmp(ddm_rt_images_rgb(again, 0), bytes.data() + bytes.size() / 3, bytes.size() / 3), 0);
    ddm_rt_images_destroy(again);
    const Found beyond = replay(manifest, nullptr, -1, &again);
    EXPECT_EQ(beyond.code, DDM_RT_BAD_INPUT);
    EXPECT_EQ(beyond.message, "index is -1; the manifest has images 0 to 2");
    const Found empty = replay("{}", "m.json", 0, &again);
    EXPECT_EQ(empty.code, DDM_RT_BAD_INPUT);
    EXPECT_TRUE(begins(empty.message, "m.json: field ")) << empty.message;
    EXPECT_FALSE(empty.field.empty());
}

}  // namespace
