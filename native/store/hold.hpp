// Acquiring and releasing a lock on the calling thread.
//
// Verbs run on a lane that is given back at once: a thread that waits for a lock holds none, or the
// lanes could all be taken by those who wait for one that needs a lane to let go.

#pragma once

#include <cstdint>
#include <memory>

#include "store/client.hpp"
#include "store/sleeper.hpp"

namespace kvstore {

// One acquisition: wished for, held, let go. It may be used again then.
class LockHold final : public LockWaiter {
 public:
  enum class Stage { kFree, kWaiting, kHeld };

  struct Wish {
    LockName name;
    uint64_t owner = 0;  // see LockRequest
    bool exclusive = true;
    bool only_if_free = false;  // kBusy instead of waiting
    uint64_t lease_ns = 0;      // held so long at most; 0: until it is released
  };

  // `sleeper` is what `wait` sleeps by, so that others can cancel it; null: nobody does.
  explicit LockHold(Client& client, Sleeper* sleeper = nullptr)
      : client_(client), sleeper_(sleeper != nullptr ? *sleeper : own_sleeper_) {}
  // Neither waits nor holds.
  ~LockHold() { KV_ASSERT(stage_ == Stage::kFree); }
  LockHold(const LockHold&) = delete;
  LockHold& operator=(const LockHold&) = delete;

  // kOk: held. kPending: `wait` must be called. Otherwise it is free again. Without `may_block` it
  // waits for no lane and makes no system call where the node's memory is mapped; kPending with
  // stage kFree then says that it must be called anew, as it has to block.
  Status begin(const Wish& wish, uint64_t deadline_ns, bool may_block = true);
  // Waits until it is held, or the deadline has passed or the sleeper is cancelled: then the wish
  // is given up. kOk, or an error.
  Status wait(uint64_t deadline_ns);
  // kLockLost: it was lost before, and others may have had it meanwhile.
  Status release(bool may_block = true);
  // Forgets a held lock whose client is gone.
  void forget();

  Stage stage() const { return stage_; }
  uint64_t token() const { return request_.token; }
  // Of a lock that is held.
  layout::Fence fence() const {
    return {attachment_->locks.table().fence_lock(request_.name.low).word, request_.token};
  }
  // Of a lock that is held: whether it still was when last looked.
  bool is_lost() const;

  void woken() override { sleeper_.wake(); }

 private:
  Status open_locks(uint64_t deadline_ns);
  Status go_on(LocalLock::Turn turn, uint64_t deadline_ns, bool may_block);
  bool enter(uint64_t deadline_ns, bool may_block);
  bool leave(bool may_block);
  bool is_reachable();
  Status end(Status status);
  template <class Start>
  Status on_lane(uint64_t lane_timeout_ns, bool& begun, Start&& start);

  Client& client_;
  uint32_t member_ = 0;
  Stage stage_ = Stage::kFree;
  std::shared_ptr<Attachment> attachment_;
  LocalLock* lock_ = nullptr;
  LockRequest request_;
  Sleeper own_sleeper_;
  Sleeper& sleeper_;
};

}  // namespace kvstore
