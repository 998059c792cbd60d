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
  Task<Status> look(Remote& remote, const LocalLock::View& view, uint64_t deaths);
  Task<Status> look_behind_bar(Remote& remote);
  Task<Status> write_entry(Remote& remote, const LocalLock::View& view);
  Task<Status> resolve(Remote& remote, const LocalLock::View& view);
  void note_progress(uint64_t index, uint64_t head, uint64_t deaths);
  void look_again(uint64_t pause_ns_max);
  void recover(uint64_t head, bool owner_died);

  LockSpace& space_;
  LocalLock& lock_;
  uint64_t due_ns_ = UINT64_MAX;
  uint64_t pause_ns_ = kFirstLookNs;
  bool is_closed_ = false;
  bool is_unknown_ = false;
  // The request that is looked after, and the head of its queue.
  uint64_t index_ = UINT64_MAX;
  uint64_t head_ = UINT64_MAX;
  uint64_t head_since_ns_ = 0;
  uint64_t question_due_ns_ = 0;
  uint64_t question_pause_ns_ = 0;
  uint64_t deaths_ = 0;
  std::unique_ptr<LockRecovery> recovery_;
};

}  // namespace kvstore
