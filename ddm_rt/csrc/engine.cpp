#include "engine.h"

#include <algorithm>
#include <chrono>

#include "guidance.h"
#include "text.h"

namespace ddm {

// A request under way. All but `recipe` is guarded by the engine's mutex.
struct Engine::Task {
    Recipe recipe;
    std::vector<StepTable::Row> rows;
    std::vector<float> timesteps;
    size_t images;
    size_t begun = 0, ended = 0;
    int64_t steps = 0, told = 0;  // of all images
    std::deque<Image> ready;      // begun, and in no lane
    std::vector<Image> finished;
    std::exception_ptr failure;
    bool gone = false;     // its images leave their lanes
    bool waiting = false;  // its thread does nothing
    const bool tells;      // its thread wants to hear of each step
    std::condition_variable wake;

    Task(Recipe given, const Client& client)
        : recipe(std::move(given)), rows(recipe.table.rows()), timesteps(recipe.table.timesteps()),
          images(client.images), tells(client.progress) {}

    // So many images are kept ready that a lane can be filled with them.
    bool wants_more() const { return begun < images && ready.size() < (recipe.buckets.back() + 1) / 2; }
    int64_t total() const { return static_cast<int64_t>(images * rows.size()); }
};

Engine::Engine(Backend& backend, size_t lanes, bool joins) : backend_(backend), most_lanes_(lanes), joins_(joins) {
    if (joins_) lanes_.resize(most_lanes_);
}

void Engine::sample(Recipe recipe, const Client& client) {
    const auto task = std::make_shared<Task>(std::move(recipe), client);
    std::unique_lock lock(mutex_);
    tasks_.push_back(task);
    if (!joins_) lanes_.emplace_back().only = task.get();
    try {
        while (task->ended < task->images) {
            if (client.cancelled && client.cancelled()) {
                throw Error(Status::cancelled, concat("cancelled at step ", task->steps, " of ", task->total()));
            }
            if (task->failure) std::rethrow_exception(task->failure);
            if (attend(*task, client, lock)) continue;
            if (Lane* lane = free_lane(*task)) {
                drive(*lane, lock);
                continue;
            }
            task->waiting = true;
            // Nobody is told when a request is cancelled.
            if (client.cancelled) task->wake.wait_for(lock, std::chrono::milliseconds(50));
            else task->wake.wait(lock);
            task->waiting = false;
        }
    } catch (...) {
        if (!lock.owns_lock()) lock.lock();
        leave(*task);
        throw;
    }
    leave(*task);
}

void Engine::leave(Task& task) {
    task.gone = true;
    std::erase_if(tasks_, [&](const auto& each) { return each.get() == &task; });
    for (Lane& lane : lanes_) {
        if (!lane.busy) tidy(lane);
    }
    std::erase_if(lanes_, [&](const Lane& lane) { return lane.only == &task && !lane.busy; });  // nobody else drives it
    call_a_driver();
}

// Does what the task's own thread must do, if there is something.
bool Engine::attend(Task& task, const Client& client, std::unique_lock<std::mutex>& lock) {
    const bool tells = task.tells && task.told != task.steps;
    if (task.finished.empty() && !task.wants_more() && !tells) return false;
    call_a_driver();
    std::vector<Image> done = std::exchange(task.finished, {});
    const bool more = task.wants_more();
    const size_t begun = task.begun,
                 room = task.recipe.buckets.back() - std::min(task.ready.size(), task.recipe.buckets.back());
    const int64_t steps = task.steps;
    lock.unlock();
    if (tells) client.progress(steps, task.total());
    const size_t ended = done.size();
    if (ended) client.finished(done);
    std::vector<Image> made;
    for (size_t i = begun; more && i < std::min(begun + room, task.images); i++) {
        made.push_back(client.begin(i));
        made.back().x0 = made.back().x;  // x0_prev counts in no first row but a manifest's cache's
    }
    lock.lock();
    task.told = steps;
    task.ended += ended;
    task.begun += made.size();
    std::move(made.begin(), made.end(), std::back_inserter(task.ready));
    return true;
}

// A lane that nobody drives, with images in it: the task's own if there is one.
Engine::Lane* Engine::free_lane(Task& task) {
    Lane* found = nullptr;
    for (Lane& lane : lanes_) {
        if (lane.busy || (lane.only && lane.only != &task)) continue;
        admit(lane);
        const auto own = [&](const Member& member) { return member.task.get() == &task; };
        if (std::any_of(lane.members.begin(), lane.members.end(), own)) return &lane;
        if (!found && !lane.members.empty()) found = &lane;
    }
    return found;
}

// Images that are done, and those of ended requests, leave the lane.
void Engine::tidy(Lane& lane) {
    std::erase_if(lane.members, [](const Member& member) {
        return member.task->gone || member.image.done == member.task->rows.size();
    });
    if (lane.members.empty()) lane.layout = {};
}

// Ready images join the lane, of each request in turn: no more than its part of all, and than one call has room for.
// Where one has no room yet, others wait behind it.
void Engine::admit(Lane& lane) {
    size_t all = 0;
    for (const Lane& each : lanes_) all += each.members.size();
    for (const auto& task : tasks_) all += task->ready.size();
    const size_t lanes = joins_ ? std::min(most_lanes_, std::max<size_t>(tasks_.size(), 1)) : 1;  // a thread drives one
    const size_t most = (all + lanes - 1) / lanes;
    const auto fits = [&](const Task& task) {
        size_t rows = task.ready.front().rows.size();
        bool alone = true;
        for (const Member& member : lane.members) {
            if (member.task->recipe.shape != task.recipe.shape) continue;
            rows += member.image.rows.size();
            alone = false;
        }
        return alone || rows <= task.recipe.buckets.back();
    };
    for (size_t passed = 0; passed < tasks_.size() && lane.members.size() < most;) {
        const std::shared_ptr<Task> task = tasks_.front();
        const bool takes = !task->ready.empty() && (!lane.only || lane.only == task.get());
        if (takes && !fits(*task)) break;
        std::rotate(tasks_.begin(), tasks_.begin() + 1, tasks_.end());
        passed = takes ? 0 : passed + 1;
        if (!takes) continue;
        lane.members.push_back({task, std::move(task->ready.front())});
        task->ready.pop_front();
        if (task->wants_more()) task->wake.notify_one();
    }
}

// What fails here but for single requests, as memory does, fails for all that are in the lane.
void Engine::drive(Lane& lane, std::unique_lock<std::mutex>& lock) {
    lane.busy = true;
    try {
        step(lane, lock);
    } catch (...) {
        if (!lock.owns_lock()) lock.lock();
        for (const Member& member : lane.members) {
            member.task->failure = std::current_exception();
            member.task->gone = true;
            member.task->wake.notify_one();
        }
    }
    lane.busy = false;
    tidy(lane);
}

// One step of the images of one shape: that of the first in the lane. Where the backend refuses, every request's images
// are tried alone.
void Engine::step(Lane& lane, std::unique_lock<std::mutex>& lock) {
    const Shape shape = lane.members.front().task->recipe.shape;
    std::vector<Member*> members;
    for (Member& member : lane.members) {
        if (member.task->recipe.shape == shape) members.push_back(&member);
    }
    lock.unlock();
    std::vector<std::pair<Task*, std::exception_ptr>> failures;
    const auto tried = [&](const std::vector<Member*>& some) -> std::exception_ptr {
        try {
            tick(lane.layout, some);
            return nullptr;
        } catch (const Error&) {
            lane.layout = {};
            return std::current_exception();
        }
    };
    if (const std::exception_ptr failure = tried(members)) {
        std::vector<std::vector<Member*>> parts;
        for (Member* member : members) {
            const auto own = std::find_if(parts.begin(), parts.end(),
                                          [&](const auto& part) { return part[0]->task == member->task; });
            if (own == parts.end()) parts.push_back({member});
            else own->push_back(member);
        }
        for (const auto& part : parts) {
            const std::exception_ptr alone = parts.size() == 1 ? failure : tried(part);
            if (alone) failures.emplace_back(part[0]->task.get(), alone);
        }
    }
    lock.lock();
    for (const auto& [task, failure] : failures) task->failure = failure, task->gone = true;
    for (Member* member : members) {
        Task& task = *member->task;
        task.steps += !task.gone;
        if (member->image.done == task.rows.size()) task.finished.push_back(std::move(member->image));
        if (task.tells || task.failure || !task.finished.empty()) task.wake.notify_one();
    }
    // Shapes take turns.
    std::stable_partition(lane.members.begin(), lane.members.end(),
                          [&](const Member& member) { return member.task->recipe.shape != shape; });
}

void Engine::tick(Layout& layout, const std::vector<Member*>& members) {
    // All first branches, then all second ones, then all third ones.
    struct Place {
        size_t member, branch;
    };
    std::vector<size_t> first(members.size());  // branch of each member that its next step begins with
    std::vector<Place> places;
    std::vector<const Cond*> rows;
    std::vector<CondRow> keep;
    for (size_t k = 0, left = members.size(); left; k++) {
        left = 0;
        for (size_t i = 0; i < members.size(); i++) {
            const Recipe& recipe = members[i]->task->recipe;
            const Image& image = members[i]->image;
            const size_t count = image.rows.size();
            first[i] = recipe.table.guided[image.done] ? 0 : count - 1;
            const size_t branch = first[i] + k;
            if (branch >= count) continue;
            left++;
            CondRow row = image.rows[branch];
            Condition condition = image.branches.conditions[branch];
            const double kept = recipe.table.kept[image.done];
            if (recipe.token_noise && kept < 1 && condition != recipe.token_noise->null) {
                condition.noise =
                    NoiseAt{image.seed, static_cast<uint32_t>(image.done), recipe.token_noise->scale, kept};
                row = recipe.noisy_row(condition);
            }
            places.push_back({i, branch});
            rows.push_back(row.get());
            keep.push_back(std::move(row));
        }
    }
    const Recipe& recipe = members[0]->task->recipe;  // shape and buckets are those of all
    if (rows != layout.rows || recipe.shape != layout.shape) {
        layout = {recipe.shape, rows, std::move(keep), split(rows.size(), recipe.buckets), {}};
        for (const auto& call : layout.calls) {
            std::vector<const Cond*> own;
            for (const size_t place : call) own.push_back(rows[place]);
            layout.conds.push_back(stacked(own));
        }
    }
    const size_t size = members[0]->image.x.size();
    std::vector<Array> outputs;
    std::vector<const float*> output_of(places.size());
    for (size_t c = 0; c < layout.calls.size(); c++) {
        const std::vector<size_t>& call = layout.calls[c];
        const auto count = static_cast<int64_t>(call.size());
        Array x(DType::float32, {count, recipe.shape[0], recipe.shape[1], recipe.shape[2]});
        std::vector<float> t;
        for (size_t i = 0; i < call.size(); i++) {
            const Member& member = *members[places[call[i]].member];
            std::copy_n(member.image.x.data(), size, x.floats() + i * size);
            t.push_back(member.task->timesteps[member.image.done]);
        }
        outputs.push_back(backend_.denoiser(x, Array::of({count}, t), layout.conds[c]));
        if (outputs.back().size() != call.size() * size) {
            throw about(Status::bundle, "denoiser.onnx", ": gives another shape than that of x_t");
        }
        for (size_t i = 0; i < call.size(); i++) output_of[call[i]] = outputs.back().floats() + i * size;
    }
    std::vector<std::vector<const float*>> own(members.size());
    for (size_t place = 0; place < places.size(); place++) own[places[place].member].push_back(output_of[place]);
    std::vector<float> noise, combined(size);
    for (size_t i = 0; i < members.size(); i++) {
        Image& image = members[i]->image;
        const Task& task = *members[i]->task;
        const std::vector<float> scales(image.branches.scales.begin(), image.branches.scales.end());
        if (task.recipe.projection && own[i].size() > 1) {
            projected_guidance(own[i], scales, *task.recipe.projection, combined.data(), size);
            own[i].assign(1, combined.data());
        }
        guided_step(own[i], scales, task.rows[image.done], image.x.data(), image.x0.data(), size, image.seed,
                    static_cast<uint32_t>(image.done), noise);
        image.done++;
    }
}

// Wakes a thread that waits, where there is a lane to drive: whoever drove it has something else to do.
void Engine::call_a_driver() {
    for (const auto& each : tasks_) {
        Task& task = *each;  // which has another place where a lane is found
        if (!task.waiting || !free_lane(task)) continue;
        task.waiting = false;
        task.wake.notify_one();
        return;
    }
}

}  // namespace ddm
