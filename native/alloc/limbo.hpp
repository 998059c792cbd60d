// Blocks that were unlinked and may still be read by somebody, and the epochs after which they
// may not.
//
// A block is retired untagged, since the client's idea of the global epoch may be old. The next
// heartbeat reads the epoch E, after the unlinking, and tags it with E. It is reusable when the
// safe epoch, the least that any live client has published, exceeds E: whoever publishes E + 1 has
// ended every operation that began before it saw E + 1, and so before the unlinking.
//
// What a client publishes is the newest epoch that it saw before the oldest of its operations under
// way began. Operations mark their beginning with a tick of the client's heartbeat, not with an
// epoch, so that one store serves all nodes.

#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <deque>
#include <mutex>
#include <utility>
#include <vector>

#include "alloc/allocator.hpp"
#include "base/variant.hpp"

namespace kvstore {

class Limbo {
 public:
  void retire(Block block) {
    bytes_.fetch_add(block.bytes(), std::memory_order_relaxed);
    const std::lock_guard lock(mutex_);
    fresh_.push_back(block);
    ++counts_[block.size_class];
  }

  // The heartbeat's two halves: what was retired before the epoch was read, and what may go back.
  std::vector<Block> take_fresh() {
    const std::lock_guard lock(mutex_);
    return std::exchange(fresh_, {});
  }
  // No epoch was to be had: they are fresh again.
  void put_back(const std::vector<Block>& blocks) {
    const std::lock_guard lock(mutex_);
    fresh_.insert(fresh_.end(), blocks.begin(), blocks.end());
  }
  void tag(const std::vector<Block>& blocks, uint64_t epoch) {
    const std::lock_guard lock(mutex_);
    for (const Block& block : blocks) waiting_.push_back({epoch, block});
  }
  std::vector<Block> take_safe(uint64_t safe_epoch) {
    std::vector<Block> safe;
    const std::lock_guard lock(mutex_);
    while (!waiting_.empty() &&
           (waiting_.front().epoch < safe_epoch || KV_VARIANT(reuse_without_epoch))) {
      const Block block = waiting_.front().block;
      waiting_.pop_front();
      --counts_[block.size_class];
      bytes_.fetch_sub(block.bytes(), std::memory_order_relaxed);
      safe.push_back(block);
    }
    return safe;
  }

  uint64_t bytes() const { return bytes_.load(std::memory_order_relaxed); }
  uint64_t blocks(unsigned size_class) const {
    const std::lock_guard lock(mutex_);
    return counts_[size_class];
  }

 private:
  struct Tagged {
    uint64_t epoch;
    Block block;
  };
  mutable std::mutex mutex_;
  std::vector<Block> fresh_;
  std::deque<Tagged> waiting_;
  std::array<uint64_t, layout::kSizeClasses> counts_{};
  std::atomic<uint64_t> bytes_{0};
};

// Which epoch may be published, given the tick at which the oldest operation under way began.
// Used by the heartbeat alone.
class SeenEpochs {
 public:
  void saw(uint64_t tick, uint64_t epoch) { ring_[next_++ % ring_.size()] = {tick, epoch}; }
  // The newest epoch seen at or before `oldest_tick`, never less than what was returned before.
  uint64_t publishable(uint64_t oldest_tick) {
    if (KV_VARIANT(epoch_ignores_operations)) oldest_tick = UINT64_MAX;
    for (const Seen& seen : ring_) {
      if (seen.tick != 0 && seen.tick <= oldest_tick && seen.epoch > published_) {
        published_ = seen.epoch;
      }
    }
    return published_;
  }

 private:
  struct Seen {
    uint64_t tick = 0;
    uint64_t epoch = 0;
  };
  std::array<Seen, 64> ring_{};
  uint64_t next_ = 0;
  uint64_t published_ = 0;
};

}  // namespace kvstore
