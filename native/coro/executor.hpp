// The executor of one lane: resumes coroutines, keeps timers, and drives the lane's connections
// while something is awaited.
//
// It runs on the thread that holds the lane. Nothing in it is shared between threads but `wake`.

#pragma once

#include <atomic>
#include <coroutine>
#include <cstdint>
#include <span>
#include <vector>

#include "coro/clock.hpp"
#include "fabric/fabric.h"

namespace kvstore {

// In which order coroutines that are ready together resume.
class ReadyOrder {
 public:
  virtual void arrange(std::span<std::coroutine_handle<>> ready) = 0;

 protected:
  ~ReadyOrder() = default;
};

// Steps an executor that nobody waits in.
class Waker {
 public:
  virtual void woken() = 0;

 protected:
  ~Waker() = default;
};

class Signal;

class Executor {
 public:
  enum class Outcome {
    kDone,         // the condition holds
    kWouldBlock,   // only waiting would help, and the caller did not want to wait
    kDeadline,     // the deadline passed first
    kInterrupted,  // the interrupt check said so
    kWoken         // `wake` was called from another thread
  };

  Executor();
  ~Executor();
  Executor(const Executor&) = delete;
  Executor& operator=(const Executor&) = delete;

  // The executor whose coroutine runs on this thread.
  static Executor* current() noexcept { return current_; }

  // Makes this the current executor for a scope in which tasks are started or polled.
  class Scope {
   public:
    explicit Scope(Executor& executor) : previous_(current_) { current_ = &executor; }
    ~Scope() { current_ = previous_; }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    Executor* previous_;
  };

  void make_ready(std::coroutine_handle<> handle) { ready_.push_back(handle); }
  void add_timer(uint64_t when_ns, std::coroutine_handle<> handle);

  // Connections that `run` polls and waits for. A broken one may stay.
  void add_connection(kv_connection* connection);
  void remove_connection(kv_connection* connection);

  // Resumes what is ready and waits for more until `done()` or the deadline.
  template <class Condition>
  Outcome run(Condition&& done, uint64_t deadline_ns, bool may_wait) {
    Scope scope(*this);
    for (;;) {
      if (signalled_.load(std::memory_order_relaxed)) [[unlikely]]
        collect_signals();
      resume_ready();
      if (done()) return Outcome::kDone;
      if (poll_connections() > 0 || !ready_.empty()) continue;
      if (!may_wait) {
        if (next_timer_ns() != UINT64_MAX && fire_timers(monotonic_ns())) continue;
        return Outcome::kWouldBlock;
      }
      const Outcome outcome = wait(deadline_ns);
      if (outcome != Outcome::kDone) return outcome;
    }
  }

  // When the next sleeper is due, for who drives the executor without waiting in it; UINT64_MAX if
  // nobody sleeps.
  uint64_t next_timer_ns() const;
  // Otherwise coroutines resume in the order in which they became ready.
  void set_ready_order(ReadyOrder* order) { ready_order_ = order; }
  // For a thread whose round trips nobody waits for one by one.
  void never_spin() { spins_ = false; }
  // Is told of wakes instead of the descriptor.
  void set_waker(Waker* waker) { waker_ = waker; }

  // Makes every sleeper ready, for when what they wait for is given up.
  void expire_timers();

  // Ends a wait of `run` early. Any thread.
  void wake() noexcept;
  // From here on `wake` works (it needs a descriptor). Returns false if none is left.
  bool enable_wake();

  // Called every 50 ms of waiting and after a signal; process-wide.
  static void set_interrupt_check(int (*interrupted)()) noexcept { interrupt_check_ = interrupted; }

  // For work that never waits: asks the check, at most every 50 ms.
  static bool interrupted() noexcept;

  // Sleeping in a coroutine: co_await executor.sleep_until(t).
  struct Sleep {
    Executor* executor;
    uint64_t when_ns;
    bool await_ready() const noexcept { return false; }
    void await_suspend(std::coroutine_handle<> handle) { executor->add_timer(when_ns, handle); }
    void await_resume() const noexcept {}
  };
  Sleep sleep_until(uint64_t when_ns) { return Sleep{this, when_ns}; }

 private:
  friend class Signal;

  struct Timer {
    uint64_t when_ns;
    std::coroutine_handle<> handle;
    bool operator>(const Timer& other) const { return when_ns > other.when_ns; }
  };

  // Makes the coroutines ready whose signals have been set.
  void collect_signals();
  void resume_ready();
  uint32_t poll_connections();
  // Waits for a connection, a timer, a wake or the deadline. kDone means "look again".
  Outcome wait(uint64_t deadline_ns);
  bool spin(uint64_t until_ns);
  bool fire_timers(uint64_t now_ns);
  Outcome block(uint64_t now_ns, uint64_t until_ns);

  static inline thread_local Executor* current_ = nullptr;
  static inline std::atomic<int (*)()> interrupt_check_{nullptr};

  std::vector<std::coroutine_handle<>> ready_;
  std::vector<std::coroutine_handle<>> resuming_;
  std::vector<Timer> timers_;  // a heap, soonest first
  std::vector<Signal*> awaited_;
  std::atomic<bool> signalled_{false};  // some signal may have been set since they were looked at
  std::vector<kv_connection*> connections_;
  int wake_descriptor_ = -1;
  ReadyOrder* ready_order_ = nullptr;
  Waker* waker_ = nullptr;
  bool spins_ = true;
  // Recent spins that found work, 0..8: spinning is worth its cycles only while it does.
  unsigned spin_credit_ = 4;
};

}  // namespace kvstore
