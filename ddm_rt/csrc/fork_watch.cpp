#include "fork_watch.h"

#include <mutex>
#include <pthread.h>
#include <set>

namespace ddm {
namespace {

std::mutex mutex;  // held from before a fork to after it
std::set<ForkWatcher*> watchers;

void before() {
    mutex.lock();
    for (ForkWatcher* watcher : watchers) watcher->before_fork();
}

void after(bool in_child) {
    for (ForkWatcher* watcher : watchers) watcher->after_fork(in_child);
    mutex.unlock();
}

}  // namespace

void watch_forks(ForkWatcher& watcher) {
    // The system forgets the handlers where the library is unloaded.
    static const int registered = ::pthread_atfork(before, [] { after(false); }, [] { after(true); });
    static_cast<void>(registered);
    const std::lock_guard guard(mutex);
    watchers.insert(&watcher);
}

void forget_forks(ForkWatcher& watcher) {
    const std::lock_guard guard(mutex);
    watchers.erase(&watcher);
}

}  // namespace ddm
