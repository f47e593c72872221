// What has to be done when the process is copied without a new program in it (fork).
#pragma once

namespace ddm {

class ForkWatcher {
public:
    virtual void before_fork() = 0;  // nothing else happens to the object until after_fork
    virtual void after_fork(bool in_child) = 0;

protected:
    ~ForkWatcher() = default;
};

// From the one to the other the object is told of each fork.
void watch_forks(ForkWatcher& watcher);
void forget_forks(ForkWatcher& watcher);

}  // namespace ddm
