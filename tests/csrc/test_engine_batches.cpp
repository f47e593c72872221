// Requests that share the denoiser's calls, and batch sizes that are probed once.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <functional>
#include <future>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "buckets.h"
#include "engine.h"
#include "library_calls.h"

namespace {

constexpr size_t kDistinct = 16, kCached = 4;

// A small request, by its number: of several sizes, steps, samplers, scales and intervals.
Owned<ddm_rt_request> small_request(size_t number) {
    auto request = request_of(1 + static_cast<int64_t>(number % 4), number, 1 + static_cast<int64_t>(number % 3));
    fine(ddm_rt_request_set_height(request.get(), number % 5 == 0 ? 16 : 8));
    fine(ddm_rt_request_set_width(request.get(), 8));
    fine(ddm_rt_request_set_sampler(request.get(), number % 2 ? "ddim" : "ddpm", DDM_RT_TERMINATED));
    fine(ddm_rt_request_set_indicator_guidance_scale(request.get(), static_cast<double>(number % 3)));
    if (number % 3 == 2) fine(ddm_rt_request_set_guidance_interval(request.get(), 0, 0.5));
    if (number % 7 == 3) fine(ddm_rt_request_set_apg(request.get(), 2.5, 0.25));
    return request;
}

TEST(Batching, ChangesNoBytes) {
    const auto apart = open_session(open_model(1, false).get()), joined = open_digits();
    std::vector<Bytes> expected;
    std::vector<std::string> manifests;  // of those whose steps don't all call the model
    for (size_t i = 0; i < kDistinct; i++) expected.push_back(generate(apart.get(), small_request(i).get()));
    for (size_t i = 0; i < kCached; i++) {
        const auto request = small_request(2 * i + 1);  // its sampler adds no noise
        fine(ddm_rt_request_set_num_steps(request.get(), 5));
        manifests.push_back(cached(apart.get(), request.get()));
        expected.push_back(replay(apart.get(), manifests.back()));
        EXPECT_FALSE(expected.back() == generate(apart.get(), request.get()));
    }
    const auto make = [&](size_t number) {
        if (number >= kDistinct) return replay(joined.get(), manifests[number - kDistinct]);
        return generate(joined.get(), small_request(number).get());
    };
    const char* given = std::getenv("DDM_RT_TEST_MIXES");
    const int mixes = given ? std::atoi(given) : 200;
    for (int mix = 0; mix < mixes; mix++) {
        std::mt19937 random(static_cast<unsigned>(mix));
        std::vector<std::thread> threads(2 + random() % 6);
        for (std::thread& thread : threads) {
            thread = std::thread([&, seed = random()] {
                std::mt19937 own(seed);
                for (size_t i = 0, count = 1 + own() % 3; i < count; i++) {
                    const size_t number = own() % expected.size();
                    EXPECT_TRUE(make(number) == expected[number]) << number;
                }
            });
        }
        for (std::thread& thread : threads) thread.join();
    }
}

// With prompts, negative prompts, noise on tokens and images of three rows.
TEST(Batching, ChangesNoBytesOfPrompts) {
    const char* bundle = std::getenv("DDM_RT_TEST_PROMPTS");
    if (!bundle) GTEST_SKIP() << "DDM_RT_TEST_PROMPTS is not set: the path of a bundle that takes prompts";
    const auto open = [&](bool batching) { return open_session(open_model(1, batching, bundle).get()); };
    const auto apart = open(false), joined = open(true);
    std::vector<Owned<ddm_rt_request>> requests;
    std::vector<Bytes> expected;
    for (uint64_t i = 0; i < 6; i++) {
        requests.push_back(request_of(2, i, 2 + static_cast<int64_t>(i % 2)));
        fine(ddm_rt_request_add_prompt(requests[i].get(), i % 2 ? "a nurse" : "a pilot", DDM_RT_TERMINATED));
        if (i % 3 == 1) fine(ddm_rt_request_set_negative_prompt(requests[i].get(), "blurred", DDM_RT_TERMINATED));
        if (i % 3 == 2) fine(ddm_rt_request_set_cads(requests[i].get(), 0.25, 0.5, 0.75));
        if (i > 3) fine(ddm_rt_request_set_indicator_guidance_scale(requests[i].get(), 2));  // three rows
        expected.push_back(generate(apart.get(), requests[i].get()));
    }
    std::vector<std::thread> threads;
    for (size_t i = 0; i < requests.size(); i++) {
        threads.emplace_back([&, i] {
            for (int n = 0; n < 3; n++) EXPECT_TRUE(generate(joined.get(), requests[i].get()) == expected[i]) << i;
        });
    }
    for (std::thread& thread : threads) thread.join();
}

// Of rows whose first condition number is negative it makes nothing; counts the rows of its calls.
class CountingBackend : public ddm::Backend {
public:
    std::mutex mutex;
    std::vector<size_t> rows;
    ddm::MadeBy by{"counting", "fp32", 1, {}};
    std::string name = "counting";
    std::function<void()> before_call = [] {};

    const ddm::MadeBy& made_by() const override { return by; }
    const std::string& provider() const override { return name; }
    size_t calls_at_a_time() const override { return 1; }
    std::optional<int64_t> max_batch() const override { return std::nullopt; }
    ddm::Cond text_encoder(const std::map<std::string, ddm::Array>&) override { return {}; }
    ddm::Cond conditioner(const std::map<std::string, ddm::Array>&) override { return {}; }
    ddm::Array decoder(const ddm::Array& x0) override { return x0; }
    ddm::Array denoiser(const ddm::Array& x, const ddm::Array&, const ddm::Cond& cond) override {
        before_call();
        const std::lock_guard lock(mutex);
        rows.push_back(x.rows());
        const float* values = cond[0].second.floats();
        if (std::any_of(values, values + x.rows(), [](float value) { return value < 0; }))
            throw ddm::Error("a bad row");
        return x;
    }
};

// A request of images with so many rows in a call.
struct Asked {
    size_t images;
    int64_t steps;
    float condition = 1;
    size_t rows = 1;
    std::vector<size_t> buckets{1, 2, 4, 8, 16, 32};
    std::function<void(int64_t, int64_t)> progress = {};
    ddm::Cancelled cancelled = {};
};

ddm::CondRow row_of(float condition) {
    return std::make_shared<const ddm::Cond>(ddm::Cond{{"c", ddm::Array::of({1}, std::vector{condition})}});
}

void sample(ddm::Engine& engine, const Asked& asked, const ddm::CondRow& row) {
    ddm::Schedule schedule;
    for (int64_t i = 0; i < schedule.num_train_timesteps; i++) {
        schedule.alphas_cumprod.push_back(1 - static_cast<double>(i + 1) / 1001);
    }
    ddm::Branches branches;
    for (size_t k = 0; k < asked.rows; k++) branches.conditions.push_back({std::nullopt, static_cast<int64_t>(k)});
    branches.scales.assign(asked.rows - 1, 1.5);
    const auto begin = [&](size_t number) {
        return ddm::Image{number, number, branches, std::vector(asked.rows, row), std::vector<float>(4, 0.5F)};
    };
    size_t done = 0;
    const auto finished = [&](const std::vector<ddm::Image>& some) { done += some.size(); };
    engine.sample(
        {ddm::step_table(schedule, ddm::SamplerName::ddim, asked.steps), {1, 2, 2}, asked.buckets, {}, {}, {}},
        {asked.images, begin, finished, asked.progress, asked.cancelled});
    EXPECT_EQ(done, asked.images);
}

void sample(ddm::Engine& engine, const Asked& asked) { sample(engine, asked, row_of(asked.condition)); }

TEST(Batching, MakesOneCallOfRequestsThatWait) {
    CountingBackend backend;
    ddm::Engine engine(backend, 1, true);
    std::promise<void> first, rest;
    std::atomic<int> calls = 0;
    backend.before_call = [&] {
        if (calls++) return;
        first.set_value();
        rest.get_future().wait();
    };
    std::vector<std::thread> threads;
    threads.emplace_back([&] { sample(engine, {1, 2}); });
    first.get_future().wait();  // others come while its first step is computed
    std::vector<std::promise<void>> waiting(7);
    for (auto& waits : waiting) {
        threads.emplace_back([&] {
            int times = 0;  // it is asked before images are made ready, and after that
            const auto asks = [&] { return ++times == 2 ? waits.set_value(), false : false; };
            sample(engine, {.images = 1, .steps = 2, .cancelled = asks});
        });
    }
    for (auto& waits : waiting) waits.get_future().wait();
    rest.set_value();
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(backend.rows, (std::vector<size_t>{1, 8, 8})) << "its two steps and theirs, which share its second";
}

TEST(Batching, LetsOneThatFailsTakeNobodyWithIt) {
    CountingBackend backend;
    ddm::Engine engine(backend, 2, true);
    std::vector<std::thread> threads;
    for (int i = 0; i < 12; i++) {
        threads.emplace_back([&, i] {
            if (i % 4) sample(engine, {2, 20});
            else EXPECT_THROW(sample(engine, {2, 20, -1}), ddm::Error);
        });
    }
    for (std::thread& thread : threads) thread.join();
}

TEST(Batching, MakesMoreImagesThanOneCallHasRoomFor) {
    CountingBackend backend;
    ddm::Engine joined(backend, 1, true), apart(backend, 1, false);
    sample(joined, {100, 1});
    EXPECT_EQ(backend.rows, (std::vector<size_t>{32, 32, 32, 4}));
    sample(apart, {33, 1});
    EXPECT_EQ(backend.rows.size(), 6U);
}

TEST(Batching, LetsAnImageOfManyRowsInBesideSmallerOnes) {
    constexpr int kMost = 400'000;  // calls of the others, over 20 s: this thread may have to wait for a core
    CountingBackend backend;
    ddm::Engine engine(backend, 1, true);
    std::atomic<int> calls = 0;
    std::atomic<bool> done = false;
    backend.before_call = [&] {
        calls++;
        std::this_thread::sleep_for(std::chrono::microseconds(50));
    };
    std::vector<std::thread> threads;
    for (int64_t i = 0; i < 9; i++) {  // their images end one after another, and there is always a next one
        threads.emplace_back([&, i] {
            const auto stops = [&] { return done || calls > kMost; };
            const Asked asked{.images = 100000, .steps = 13 + 3 * i, .buckets = {1, 2, 4, 8}, .cancelled = stops};
            EXPECT_THROW(sample(engine, asked), ddm::Error);
        });
    }
    while (calls < 500) std::this_thread::yield();
    sample(engine, {.images = 2, .steps = 2, .rows = 6, .buckets = {1, 2, 4, 8}});
    EXPECT_LT(calls, kMost);
    done = true;
    for (std::thread& thread : threads) thread.join();
}

TEST(Batching, LetsNobodyWaitForAnothersCallback) {
    CountingBackend backend;
    ddm::Engine engine(backend, 2, true);
    std::promise<void> told, rest;
    bool once = false;
    const auto blocks = [&](int64_t, int64_t) {
        if (std::exchange(once, true)) return;
        told.set_value();
        rest.get_future().wait();
    };
    std::thread other([&] { sample(engine, {.images = 8, .steps = 400, .progress = blocks}); });
    told.get_future().wait();
    const size_t before = backend.rows.size();
    sample(engine, {1, 2});
    EXPECT_EQ(backend.rows.size() - before, 2U);
    rest.set_value();
    other.join();
}

TEST(Batching, KeepsNothingOfACancelledRequest) {
    for (const bool joins : {true, false}) {
        CountingBackend backend;
        ddm::Engine engine(backend, 2, joins);
        const ddm::CondRow row = row_of(1);
        const Asked asked{.images = 8, .steps = 50, .cancelled = [&] { return backend.rows.size() > 3; }};
        EXPECT_THROW(sample(engine, asked, row), ddm::Error);
        EXPECT_EQ(row.use_count(), 1) << joins;
    }
}

TEST(KnownSizes, LetNobodyWaitForAShapeOfAnothers) {
    ddm::KnownSizes sizes;
    const ddm::Shape known{1, 1, 1}, new_one{1, 2, 2};
    const std::vector<size_t> few{1, 2};
    EXPECT_EQ(sizes.of(known, {}, [&] { return few; }), few);
    std::promise<void> begun, go_on;
    std::thread other([&] {
        EXPECT_EQ(sizes.of(new_one, {},
                           [&] {
                               begun.set_value();
                               go_on.get_future().wait();
                               return few;
                           }),
                  few);
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
    EXPECT_THROW(sizes.of({1, 1, 1}, {}, []() -> std::vector<size_t> { throw std::runtime_error("no"); }),
                 std::runtime_error);
    EXPECT_EQ(sizes.of({1, 1, 1}, {}, [] { return std::vector<size_t>{4}; }), std::vector<size_t>{4});
}

}  // namespace
