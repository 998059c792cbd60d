// Setting a lock free whose queue does not move because a client has died in it.
//
//   ask       all live clients: does anybody hold it? Whoever does ends the matter.
//   take      the reset word by CAS: one client at a time resets a lock; the place of an owner that
//             has been fenced is taken by anyone, who goes on
//   bar       set the header's reset bit: requests and releases from here on are void
//   announce  until each live client has said that it has none of the old requests any more; one
//             that holds the lock says so after its release
//   finish    header: nobody in the queue, head behind all indexes ever given; clear the reset word
//
// Every step can be repeated, by the same client or by another one after it. A client is left out
// only once the registry says that it is fenced.

#pragma once

#include <cstdint>
#include <vector>

#include "base/status.hpp"
#include "coro/task.hpp"
#include "fabric/remote.hpp"
#include "layout/locks.hpp"
#include "lock/wire.hpp"

namespace kvstore {

class LocalLock;
class LockSpace;

class LockRecovery {
 public:
  // Of a queue whose head has stood still. With `owner_died` nobody is asked: a reset is under way
  // already, and its owner is dead.
  LockRecovery(LockSpace& space, LocalLock& lock, uint64_t head, uint64_t question,
               bool owner_died);

  void told(uint32_t from, const LockMessage& message);
  // This client itself has none of the old requests any more.
  void gone_here() { gone_here_ = true; }

  // Goes as far as it can. `deaths`: of the node so far.
  Task<Status> advance(Remote& remote, uint64_t deaths);
  uint64_t due_ns() const { return due_ns_; }
  void hurry() { due_ns_ = 0; }
  bool is_over() const { return stage_ == Stage::kOver; }
  // The reset word may be ours: then the matter is ended in order.
  bool is_under_way() const { return stage_ > Stage::kTake || may_own_; }
  void abandon() { stage_ = Stage::kOver; }

 private:
  enum class Stage { kAsk, kTake, kBar, kAnnounce, kFinish, kClear, kOver };

  struct Peer {
    uint32_t registration;
    uint8_t told;  // of its places which ones it has spoken of: bit 0 the writers', bit 1 the other
    bool done() const { return told == kBothPlaces; }
  };
  static constexpr uint8_t kBothPlaces = 3;
  struct Words {
    layout::LockHeader header;
    layout::LockReset reset;
  };

  Task<Status> step(Remote& remote);
  Task<Status> ask(Remote& remote);
  Task<Status> take(Remote& remote);
  Task<Status> bar(Remote& remote);
  Task<Status> announce(Remote& remote);
  Task<Status> finish(Remote& remote);
  Task<Status> clear(Remote& remote);
  Task<Status> read_words(Remote& remote, Words& words);
  Task<Status> read_roster(Remote& remote);
  Task<Status> tell(Remote& remote, const LockMessage& message, bool also_done);
  bool all_done() const;
  void pause();
  void go_to(Stage stage);

  LockSpace& space_;
  LocalLock& lock_;
  const uint64_t head_;
  const uint64_t question_;
  Stage stage_;
  std::vector<Peer> peers_;
  uint64_t roster_due_ns_ = 0;
  uint64_t deaths_ = 0;
  layout::LockReset own_;
  uint64_t bound_ = 0;
  bool held_ = false;  // somebody said so
  bool gone_here_ = false;
  bool may_own_ = false;
  uint64_t pause_ns_ = 0;
  uint64_t due_ns_ = 0;
};

// The live clients but this one that have ever been in a queue: they have a postbox.
Task<Status> read_reachable(Remote& remote, const layout::Geometry& geometry, uint32_t own,
                            std::vector<uint32_t>& clients);

// Whether the registry says that the client is live.
Task<Status> read_liveness(Remote& remote, const layout::Geometry& geometry, uint32_t registration,
                           bool& live);

}  // namespace kvstore
