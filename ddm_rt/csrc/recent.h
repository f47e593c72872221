// The values that were asked for last.
#pragma once

#include <cstddef>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <utility>

namespace ddm {

// Any number of threads may use it. Two that miss the same key at once both make its value.
template <typename Key, typename Value>
class Recent {
public:
    explicit Recent(size_t most) : most_(most) {}

    std::shared_ptr<const Value> get(const Key& key, const std::function<Value()>& make) {
        if (auto found = find(key)) return found;
        auto made = std::make_shared<const Value>(make());
        const std::lock_guard lock(mutex_);
        if (!places_.contains(key)) {
            values_.emplace_front(key, made);
            places_[key] = values_.begin();
            if (values_.size() > most_) {
                places_.erase(values_.back().first);
                values_.pop_back();
            }
        }
        return made;
    }

    void clear() {
        const std::lock_guard lock(mutex_);
        places_.clear();
        values_.clear();
    }

private:
    using Entry = std::pair<Key, std::shared_ptr<const Value>>;

    std::shared_ptr<const Value> find(const Key& key) {
        const std::lock_guard lock(mutex_);
        const auto place = places_.find(key);
        if (place == places_.end()) return nullptr;
        values_.splice(values_.begin(), values_, place->second);
        return place->second->second;
    }

    const size_t most_;
    std::mutex mutex_;
    std::list<Entry> values_;  // the latest first
    std::map<Key, typename std::list<Entry>::iterator> places_;
};

}  // namespace ddm
