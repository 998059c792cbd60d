// Published locks for disaggregated memory, to compare with. They take part in experiments only: no
// client library contains them, and they know neither lost messages nor clients that die.

#pragma once

#include <coroutine>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/status.hpp"
#include "coro/task.hpp"
#include "fabric/remote.hpp"

namespace kvstore::rivals {

struct Message {
  uint32_t from = 0;
  uint32_t lock = 0;
  uint32_t kind = 0;
  uint64_t words[3] = {};
};

// What a coroutine of one client waits for, and another one of the same thread opens.
class Gate {
 public:
  void open(Executor& executor) {
    is_open_ = true;
    if (!waiter_) return;
    executor.make_ready(waiter_);
    waiter_ = nullptr;
  }
  void close() { is_open_ = false; }
  bool await_ready() const noexcept { return is_open_; }
  void await_suspend(std::coroutine_handle<> waiter) { waiter_ = waiter; }
  void await_resume() const noexcept {}

 private:
  bool is_open_ = false;
  std::coroutine_handle<> waiter_;
};

// One client: a coroutine on a processor of its own, with its own connections.
class Seat {
 public:
  virtual ~Seat() = default;

  virtual uint32_t number() const = 0;        // from 0, in the cluster
  virtual uint32_t compute_node() const = 0;  // from 0
  virtual Remote& remote(uint32_t lock) = 0;  // of the node that has the lock
  virtual uint64_t offset(uint32_t lock) const = 0;
  virtual Executor& executor() = 0;
  virtual uint64_t random_below(uint64_t bound) = 0;
  virtual void send(uint32_t to, const Message& message) = 0;
  // Resumes the client after its gate has been opened by another one of its compute node.
  virtual void wake() = 0;

  Gate gate;
};

// A client's use of all locks; it takes one at a time.
class Rival {
 public:
  virtual ~Rival() = default;
  virtual Task<Status> acquire(uint32_t lock, bool exclusive) = 0;
  virtual Task<Status> release(uint32_t lock, bool exclusive) = 0;
  virtual void receive(const Message&) {}
  // READs of a queue beyond the one that each release takes along.
  virtual uint64_t rereads() const { return 0; }
};

// What the clients of one compute node share.
class Shared {
 public:
  virtual ~Shared() = default;
};

struct Kind {
  const char* name;
  const char* description;
  uint64_t lock_bytes;
  uint8_t fill;  // of the bytes behind the first word
  bool masked;   // needs atomics that only the simulator has
  bool messages;
  bool exclusive_only;
  std::unique_ptr<Shared> (*share)();
  std::unique_ptr<Rival> (*make)(Seat& seat, Shared* shared);
};

extern const Kind kCasSpin;
extern const Kind kDslr;
extern const Kind kMcs;
extern const Kind kShiftLock;
extern const Kind kDecLock;

inline const Kind* const kKinds[] = {&kCasSpin, &kDslr, &kMcs, &kShiftLock, &kDecLock};

}  // namespace kvstore::rivals
