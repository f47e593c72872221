// The batching engine: images of all requests share the denoiser's calls, and join and leave between steps. An image's
// bytes don't depend on its neighbours: rows never meet, and calls have sizes that round alike
// (ddm_rt/sample/loop/slots.py).
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "backend.h"
#include "buckets.h"
#include "error.h"
#include "guidance.h"
#include "schedule.h"

namespace ddm {

using CondRow = std::shared_ptr<const Cond>;

// What the images of a request have in common.
struct Recipe {
    StepTable table;
    Shape shape;                  // of latents
    std::vector<size_t> buckets;  // sizes of calls
    std::optional<Projection> projection;
    std::optional<TokenNoise> token_noise;
    std::function<CondRow(const Condition&)> noisy_row;  // of a condition with noise; called on any thread
};

struct Image {
    size_t number;  // in its request
    uint64_t seed;
    Branches branches;
    std::vector<CondRow> rows;  // of each branch
    std::vector<float> x;       // the state: at first noise, times table.init_scale, at last the sample
    std::vector<float> x0 = {};
    size_t done = 0;  // steps
};

// Told and asked on the thread that samples.
struct Client {
    size_t images;                                            // how many there are to make
    std::function<Image(size_t)> begin;                       // makes one
    std::function<void(const std::vector<Image>&)> finished;  // takes those that are done
    std::function<void(int64_t, int64_t)> progress = {};      // steps done and in all, of all images
    Cancelled cancelled = {};
};

// Threads that sample take turns at computing for all, so it has no threads of its own.
class Engine {
public:
    // `lanes`: how many calls may be made at a time. Without `joins`, every request has calls of its own.
    Engine(Backend& backend, size_t lanes, bool joins);

    // Returns when every image is finished. Throws Error with Status::cancelled, and what its callbacks and the backend
    // throw for its own images.
    void sample(Recipe recipe, const Client& client);

private:
    struct Task;
    struct Member {
        std::shared_ptr<Task> task;
        Image image;
    };
    // Conditions of calls, kept as long as they are the same.
    struct Layout {
        Shape shape;
        std::vector<const Cond*> rows;
        std::vector<CondRow> keep;
        std::vector<std::vector<size_t>> calls;  // places in `rows`
        std::vector<Cond> conds;
    };
    struct Lane {
        std::deque<Member> members;
        Task* only = nullptr;  // whose it is, where requests don't join
        bool busy = false;
        Layout layout;
    };

    bool attend(Task& task, const Client& client, std::unique_lock<std::mutex>& lock);
    Lane* free_lane(Task& task);
    void admit(Lane& lane);
    static void tidy(Lane& lane);
    void drive(Lane& lane, std::unique_lock<std::mutex>& lock);
    void step(Lane& lane, std::unique_lock<std::mutex>& lock);
    void tick(Layout& layout, const std::vector<Member*>& members);
    void call_a_driver();
    void leave(Task& task);

    Backend& backend_;
    const size_t most_lanes_;
    const bool joins_;
    std::mutex mutex_;
    std::deque<std::shared_ptr<Task>> tasks_;  // at first whose image is taken next
    std::list<Lane> lanes_;                    // one that is driven stays where it is
};

}  // namespace ddm
