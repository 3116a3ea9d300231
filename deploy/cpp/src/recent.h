// What was made lately, kept to be used again: deploy/runtime/recent.py.
#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <map>
#include <mutex>
#include <utility>

namespace talent {

// The `size` values that were asked for last, by key; 0 keeps none. Safe to share between threads. A copy of a value is
// handed out, so it should be a pointer or the like.
template <typename Key, typename Value>
class Recent {
 public:
  explicit Recent(size_t size) : size_(size) {}

  // The value of `key`; make() makes it where it is not here, without holding up other threads meanwhile.
  template <typename Make>
  Value get(const Key& key, Make make) {
    {
      const std::lock_guard<std::mutex> guard(lock_);
      if (const auto found = places_.find(key); found != places_.end()) {
        ++hits_;
        values_.splice(values_.end(), values_, found->second);
        return found->second->second;
      }
      ++misses_;
    }
    Value value = make();
    const std::lock_guard<std::mutex> guard(lock_);
    put(key, value);
    return value;
  }

  // How often a value was here, and how often not.
  std::pair<int64_t, int64_t> hits_and_misses() const {
    const std::lock_guard<std::mutex> guard(lock_);
    return {hits_, misses_};
  }

 private:
  using Values = std::list<std::pair<Key, Value>>;

  void put(const Key& key, const Value& value) {
    if (const auto found = places_.find(key); found != places_.end()) {  // another thread was as fast
      values_.erase(found->second);
      places_.erase(found);
    }
    values_.emplace_back(key, value);
    places_.emplace(key, std::prev(values_.end()));
    while (places_.size() > size_) {
      places_.erase(values_.front().first);
      values_.pop_front();
    }
  }

  const size_t size_;
  mutable std::mutex lock_;
  Values values_;  // what was asked for last at the end
  std::map<Key, typename Values::iterator> places_;
  int64_t hits_ = 0;
  int64_t misses_ = 0;
};

}  // namespace talent
