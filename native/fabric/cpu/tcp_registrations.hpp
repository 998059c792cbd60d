// Which registrations have connections, and which have been fenced. Shared by the agent's threads.

#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <unordered_map>

namespace kvstore {

class TcpRegistrations {
 public:
  // Counts a connection in, unless the registration has been fenced.
  bool admit(uint32_t registration) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (fenced_locked(registration)) return false;
    ++connections_[registration];
    return true;
  }

  // Counts a connection out. Returns whether it was the last of a registration that is not fenced.
  bool release(uint32_t registration) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto entry = connections_.find(registration);
    if (entry == connections_.end() || --entry->second > 0) return false;
    connections_.erase(entry);
    return !fenced_locked(registration);
  }

  void fence(uint32_t registration) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (fenced_locked(registration)) return;
    uint64_t first = registration;
    uint64_t last = registration;
    auto next = fenced_.upper_bound(first);
    if (next != fenced_.begin() && std::prev(next)->second + 1 == first) {
      first = std::prev(next)->first;
    }
    if (next != fenced_.end() && next->first == last + 1) {
      last = next->second;
      fenced_.erase(next);
    }
    fenced_[first] = last;
  }

 private:
  bool fenced_locked(uint64_t registration) const {
    const auto next = fenced_.upper_bound(registration);
    return next != fenced_.begin() && std::prev(next)->second >= registration;
  }

  std::mutex mutex_;
  std::unordered_map<uint32_t, uint32_t> connections_;
  // Closed intervals, first to last, never adjacent: a node hands out registrations in ascending
  // order and fences nearly all of them in the end, so they stay few.
  std::map<uint64_t, uint64_t> fenced_;
};

}  // namespace kvstore
