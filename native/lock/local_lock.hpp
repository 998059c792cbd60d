// One lock as the threads of one client share it. A client has at most one request in the lock's
// queue at the node, its *place*; the threads' own requests wait here, and the lock is passed on
// among them without a verb, a bounded number of times under one place.
//
// No verb and no wait happens here. Whoever is told to `enter` or `leave` does so on a lane and
// reports what came of it. Whoever waits longest comes first, and with a reader all readers that
// wait, so that a section of readers is as wide as it can be.
//
// Thread-safe.

#pragma once

#include <cstdint>
#include <mutex>

#include "base/status.hpp"
#include "base/variant.hpp"
#include "layout/locks.hpp"
#include "lock/name.hpp"

namespace kvstore {

class LocalLock;

// Told, under the lock's mutex and on any thread, that a request has changed.
class LockWaiter {
 public:
  virtual void woken() = 0;

 protected:
  ~LockWaiter() = default;
};

// Of the client: what a lock needs from it.
class LockAttendant {
 public:
  // The lock wants attention at `due_ns`.
  virtual void attend(LocalLock& lock, uint64_t due_ns) = 0;
  // Whether the node can't have given this client up yet. Otherwise nothing is granted, whatever
  // verbs and messages said: the client may have stood still since, and others have the lock.
  virtual bool is_current() = 0;

 protected:
  ~LockAttendant() = default;
};

// One thread's wish for a lock, then its possession. Its memory is the caller's, until `cancel` or
// `release` have returned.
struct LockRequest {
  enum class State : uint8_t { kIdle, kWaits, kEnters, kGranted, kExpired, kFailed };

  LockName name;
  uint64_t owner = 0;  // the thread or task; 0: re-entrance is not looked for
  bool exclusive = true;
  bool only_if_free = false;
  uint64_t lease_ns = 0;  // held so long at most; 0: until it is released
  LockWaiter* waiter = nullptr;
  // Under the lock's mutex from here on.
  State state = State::kIdle;
  Status failure = Status::kOk;
  uint64_t token = 0;
  uint64_t expiry_ns = UINT64_MAX;  // of what is granted
  LockRequest* next = nullptr;
  LockRequest* previous = nullptr;
};

// A doubly linked list of requests, in order.
class LockRequests {
 public:
  bool empty() const { return first_ == nullptr; }
  LockRequest* first() const { return first_; }
  void push_back(LockRequest& request) {
    request.previous = last_;
    request.next = nullptr;
    (last_ != nullptr ? last_->next : first_) = &request;
    last_ = &request;
  }
  void remove(LockRequest& request) {
    (request.previous != nullptr ? request.previous->next : first_) = request.next;
    (request.next != nullptr ? request.next->previous : last_) = request.previous;
    request.next = request.previous = nullptr;
  }
  LockRequest* first_of(bool exclusive) const {
    LockRequest* request = first_;
    while (request != nullptr && request->exclusive != exclusive) request = request->next;
    return request;
  }

 private:
  LockRequest* first_ = nullptr;
  LockRequest* last_ = nullptr;
};

class LocalLock {
 public:
  // Where the client stands in the lock's queue.
  enum class Place : uint8_t {
    kOut,
    kEntering,  // a lane is at it
    kQueued,    // waits at `index`
    kHeld,
    kLeaving,  // a lane is at it
    kBarred,   // a reset is under way: out, and may not enter before it is over
    // A connection broke under our FAA, which may still execute until the lane has another one.
    kEntryUnknown,
    kLeaveUnknown
  };
  // What the caller has to do.
  enum class Turn : uint8_t { kNothing, kGranted, kEnter, kLeave, kWait, kFailed };

  // Under one place the lock is granted at most this often.
  static constexpr uint32_t kGrantsMax = 32;

  LocalLock(LockAttendant& attendant, uint32_t number) : attendant_(attendant), number_(number) {}
  LocalLock(const LocalLock&) = delete;
  LocalLock& operator=(const LocalLock&) = delete;

  uint32_t number() const { return number_; }

  // ---- for threads ----

  // kGranted, kEnter, kWait or kFailed.
  Turn request(LockRequest& request);
  // The same, for a request that waited and was woken.
  Turn look(LockRequest& request);
  // Gives a request up. kGranted if it was granted meanwhile: then it is still held.
  Turn cancel(LockRequest& request);
  // kLeave: the caller leaves, or lets the client's service do it by `leave_later`. kFailed: its
  // lease had ended before.
  Turn release(LockRequest& request);
  // Whether the lease of a granted request has ended.
  bool is_expired(const LockRequest& request);
  void leave_later();

  // ---- reports of who was told to enter ----

  struct Entry {
    bool exclusive;
    bool only_if_free;
    uint64_t guess;  // of the header, from what was last seen
  };
  Entry entry();
  void entered(uint64_t index, bool contended);
  void queued(uint64_t index, bool entry_written);
  void barred();
  void not_entered(Status status);
  void entry_unknown();

  // ---- and of who was told to leave ----

  struct Possession {
    bool exclusive;
    bool contended;
    uint64_t index;
  };
  Possession possession();
  // `before` is what the release found.
  void left(layout::LockHeader before);
  void leave_unknown();

  // ---- for the service ----

  struct View {
    Place place;
    bool exclusive;
    bool entry_written;
    bool unwanted;  // held, and nobody here wants it
    bool answer_due;
    uint64_t index;
    uint32_t waiting;
    uint32_t holding;
    uint64_t since_ns;  // that it has been queued, or held
  };
  View view();
  // Takes the lock from those whose lease has ended, and passes it on. Returns when the next lease
  // ends.
  uint64_t expire();
  // The place at `index` holds the lock. Anything else is an old story.
  void granted(uint64_t index);
  void entry_written(uint64_t index);
  // A reset has begun: places with an index below `bound` are void. True if this client has none of
  // those, or now let go of it; otherwise `answer_due` will say when.
  bool reset_announced(uint32_t owner, uint64_t epoch, uint64_t bound);
  struct ResetAnswer {
    uint32_t owner;
    uint64_t epoch;
  };
  // False if none is due.
  bool take_reset_answer(ResetAnswer& answer);
  void reset_over();
  // Of a held lock that nobody wants: true if the caller is to leave.
  bool begin_leaving();
  // After kEntryUnknown and kLeaveUnknown, once nothing of ours can execute any more. `still_held`:
  // the release did not happen.
  void resolved(bool still_held);
  // The node is gone, or has cut this client off: all is lost.
  void fail(Status status);

 private:
  void settle_locked();
  void hold_locked(uint64_t index);
  void hand_on_locked(bool fresh);
  bool can_join_locked(const LockRequest& request);
  Turn meet_own_locked(LockRequest& request);
  void grant_locked(LockRequest& request);
  void begin_lease_locked(LockRequest& request);
  void fail_first_locked(Status status);
  void answer_locked();
  bool is_current() { return attendant_.is_current() || KV_VARIANT(lock_zombies_pass_on); }
  static Turn turn_of(const LockRequest& request);
  static void wake(LockRequest& request) {
    if (request.waiter != nullptr) request.waiter->woken();
  }

  LockAttendant& attendant_;
  const uint32_t number_;
  std::mutex mutex_;
  LockRequests waiting_;
  LockRequests holding_;
  uint32_t waiting_count_ = 0;
  uint32_t holding_count_ = 0;
  Place place_ = Place::kOut;
  bool exclusive_ = false;  // of the place
  bool only_if_free_ = false;
  bool phase_exclusive_ = false;  // of the last that was granted
  bool contended_ = false;        // other clients were met
  bool entry_written_ = false;
  bool worn_out_ = false;
  uint32_t grants_ = 0;
  uint64_t index_ = 0;
  uint64_t since_ns_ = 0;
  uint64_t early_grant_ = 0;  // the highest that came before the place's index was known
  layout::LockHeader guess_;
  bool answer_due_ = false;
  ResetAnswer answer_{};
  uint64_t answer_bound_ = 0;
  Status failed_ = Status::kOk;  // from here on
};

}  // namespace kvstore
