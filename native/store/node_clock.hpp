// A node's clock at times of ours: good enough for recency, and no look at a clock.
//
// `saw` is called by one thread, `at_ms` by any.

#pragma once

#include <atomic>
#include <cstdint>

namespace kvstore {

class NodeClock {
 public:
  // The node's clock was read, and then ours. What was read is up to a tick of the node old, so the
  // greatest difference is the best. It fades by a millisecond a second, for clocks drift apart,
  // and no faster: blocks of one prompt, used at one moment, should not seem to be used at two.
  void saw(uint64_t node_ms, uint64_t here_ms) {
    const int64_t seen_ms = int64_t(node_ms - here_ms);
    const int64_t faded_ms =
        difference_ms_.load(std::memory_order_relaxed) - int64_t(here_ms - seen_at_ms_) / kFadeMs;
    if (seen_at_ms_ != 0 && seen_ms < faded_ms) return;
    difference_ms_.store(seen_ms, std::memory_order_relaxed);
    seen_at_ms_ = here_ms;
  }
  uint64_t at_ms(uint64_t here_ms) const {
    return here_ms + uint64_t(difference_ms_.load(std::memory_order_relaxed));
  }

 private:
  static constexpr int64_t kFadeMs = 1000;

  std::atomic<int64_t> difference_ms_{0};
  uint64_t seen_at_ms_ = 0;  // 0: not yet
};

}  // namespace kvstore
