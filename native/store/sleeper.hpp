// A thread's sleep, which others end: by waking it, or by cancelling what it waits for. One thread
// sleeps, any may do the other two. All zero is a sleeper that nobody has woken; it needs no
// construction, so that it may be cancelled before the thread that will sleep gets that far.

#pragma once

#include <atomic>
#include <cstdint>

namespace kvstore {

class Sleeper {
 public:
  enum class Ended { kWoken, kDeadline, kInterrupted, kCancelled };

  // Forgets earlier wakings, but no cancellation: that one is for good.
  void begin() { word().store(kAwake, std::memory_order_relaxed); }
  Ended sleep(uint64_t deadline_ns);
  void wake();
  void cancel();
  bool is_cancelled() { return cancelled().load(std::memory_order_acquire) != 0; }

 private:
  enum : uint32_t { kAwake = 0, kWoken = 1, kAsleep = 2 };

  std::atomic_ref<uint32_t> word() { return std::atomic_ref<uint32_t>(word_); }
  std::atomic_ref<uint32_t> cancelled() { return std::atomic_ref<uint32_t>(cancelled_); }

  uint32_t word_ = kAwake;
  uint32_t cancelled_ = 0;
};

}  // namespace kvstore
