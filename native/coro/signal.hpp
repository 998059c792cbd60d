// An event that one coroutine awaits, with a deadline, and any thread sets.
//
//   Signal signal(executor);
//   ... make it known to those who will set it ...
//   if (!co_await signal.wait(until_ns)) ... the time is over ...
//
// Whoever sets it must know that it still exists: it is withdrawn from where it was made known,
// under the lock of that place, before it is destroyed. It can be set any number of times and stays
// set.

#pragma once

#include <algorithm>
#include <atomic>
#include <coroutine>
#include <cstdint>

#include "coro/executor.hpp"

namespace kvstore {

class Signal {
 public:
  explicit Signal(Executor& executor) : executor_(executor) { wakes_ = executor.enable_wake(); }
  Signal(const Signal&) = delete;
  Signal& operator=(const Signal&) = delete;

  bool is_set() const noexcept { return set_.load(std::memory_order_acquire); }

  // Any thread.
  void set() noexcept {
    set_.store(true, std::memory_order_release);
    executor_.signalled_.store(true, std::memory_order_release);
    if (wakes_) executor_.wake();
  }

  // Whether it was set before `until_ns`; one coroutine at a time.
  auto wait(uint64_t until_ns) {
    struct Wait {
      Signal& signal;
      bool await_ready() const noexcept { return signal.is_set(); }
      void await_suspend(std::coroutine_handle<> waiter) {
        signal.waiter_ = waiter;
        signal.executor_.awaited_.push_back(&signal);
        // Set between the look and the entry in the list: the mark would have been in vain.
        if (signal.is_set()) signal.executor_.signalled_.store(true, std::memory_order_release);
      }
      bool await_resume() const noexcept { return signal.is_set(); }
    };
    // Without a descriptor to be woken by, the executor looks again from time to time.
    constexpr uint64_t kLookAgainNs = kMillisecond;
    until_ns_ = wakes_ ? until_ns : std::min(until_ns, monotonic_ns() + kLookAgainNs);
    return Wait{*this};
  }

 private:
  friend class Executor;

  Executor& executor_;
  std::atomic<bool> set_{false};
  bool wakes_ = false;
  uint64_t until_ns_ = 0;
  std::coroutine_handle<> waiter_;
};

}  // namespace kvstore
