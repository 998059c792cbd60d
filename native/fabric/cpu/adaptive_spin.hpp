// When to poll for a moment before blocking. Being woken by the kernel costs more than a short poll
// saves, but a poll that finds nothing only steals the processor from whoever could end the wait.
// So a thread polls only while recent waits turned out to be short, never on a single processor,
// and never when that would occupy the last processor.

#pragma once

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>

#include "fabric/cpu/tcp_socket.hpp"

namespace kvstore {

// How many threads may poll at a time: one processor is always left to others.
class SpinQuota {
 public:
  SpinQuota() : free_(static_cast<int>(std::thread::hardware_concurrency()) - 1) {}
  bool take() {
    if (free_.fetch_sub(1, std::memory_order_relaxed) > 0) return true;
    give();
    return false;
  }
  void give() { free_.fetch_add(1, std::memory_order_relaxed); }

 private:
  std::atomic<int> free_;
};

class AdaptiveSpin {
 public:
  AdaptiveSpin(SpinQuota& quota, uint64_t limit_ns) : quota_(quota), limit_ns_(limit_ns) {}

  bool worthwhile() { return confidence_ > 0 && quota_.take(); }
  void begin() { end_ns_ = monotonic_ns() + limit_ns_; }
  // Asked before each look but the first. Gives way to threads that wait for this processor: one of
  // them may be whose request is polled for.
  bool go_on() const {
    if (monotonic_ns() >= end_ns_) return false;
    sched_yield();
    return true;
  }
  void end(bool found) {
    quota_.give();
    confidence_ = found ? std::min(confidence_ + 1, kConfidenceMax) : confidence_ - 1;
  }
  // A blocking wait has taken `waited_ns`.
  void learn(uint64_t waited_ns) {
    if (waited_ns < limit_ns_) confidence_ = std::min(confidence_ + 1, kConfidenceMax);
  }

 private:
  static constexpr int kConfidenceMax = 8;
  SpinQuota& quota_;
  uint64_t limit_ns_;
  int confidence_ = 0;
  uint64_t end_ns_ = 0;
};

}  // namespace kvstore
