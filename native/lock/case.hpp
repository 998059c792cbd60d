// What the service does about one lock of its client: answers, looks after a request that waits
// long, leaves what nobody wants any more, recovery. Used by the service alone.

#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>

#include "base/status.hpp"
#include "coro/clock.hpp"
#include "coro/task.hpp"
#include "fabric/remote.hpp"
#include "lock/local_lock.hpp"
#include "lock/recovery.hpp"

namespace kvstore {

class LockSpace;

class LockCase {
 public:
  // A request that has waited this long looks after itself: a message may have been lost.
  static constexpr uint64_t kFirstLookNs = 2 * kMillisecond;

  LockCase(LockSpace& space, LocalLock& lock) : space_(space), lock_(lock) {}

  LocalLock& lock() const { return lock_; }
  uint64_t due_ns() const { return due_ns_; }
  void hurry(uint64_t due_ns) {
    due_ns_ = std::min(due_ns_, due_ns);
    is_closed_ = false;
  }
  void told(uint32_t from, const LockMessage& message);
  Task<Status> tend(Remote& remote, bool fenced, uint64_t deaths);
  bool is_closed() const { return is_closed_; }
  // Waits until nothing that a lane lost can execute any more.
  bool is_unknown() const { return is_unknown_; }

 private:
  Task<Status> say_gone(Remote& remote);
  // One of the client's places, and how the request in it gets on.
  struct Watch {
    bool exclusive;
    uint64_t pause_ns = kFirstLookNs;
    uint64_t index = UINT64_MAX;
    uint64_t head = UINT64_MAX;  // of its queue
    uint64_t head_since_ns = 0;
    uint64_t question_due_ns = 0;
    uint64_t question_pause_ns = 0;
    uint64_t deaths = 0;
  };

  Task<Status> tend_place(Remote& remote, Watch& watch, bool fenced, uint64_t deaths);
  Task<Status> look(Remote& remote, Watch& watch, const LocalLock::View& view, uint64_t deaths);
  Task<Status> look_behind_bar(Remote& remote, Watch& watch);
  Task<Status> write_entry(Remote& remote, bool exclusive, const LocalLock::View& view);
  Task<Status> resolve(Remote& remote, bool exclusive, const LocalLock::View& view);
  static void note_progress(Watch& watch, uint64_t index, uint64_t head, uint64_t deaths);
  void look_again(Watch& watch, uint64_t pause_ns_max);
  void recover(Watch& watch, uint64_t head, bool owner_died);

  LockSpace& space_;
  LocalLock& lock_;
  uint64_t due_ns_ = UINT64_MAX;
  bool is_closed_ = false;
  bool is_unknown_ = false;
  bool waits_ = false;  // with some place
  Watch watches_[2] = {{.exclusive = true}, {.exclusive = false}};
  std::unique_ptr<LockRecovery> recovery_;
};

}  // namespace kvstore
