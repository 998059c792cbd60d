// One lock as the threads of one client share it. A client has at most two requests in the lock's
// queue at the node, its *places*: one for its writers and one for its readers. So a thread's place
// in the queue is as old as its wish, whatever the others of its client want. The threads' own
// requests wait here, and the lock is passed on among them without a verb, a bounded number of
// times under one place.
//
// Where other clients wait too, a place is for those that waited when it was granted; writers that
// came later have the next one, behind the others' (gated service, as queueing theory calls it).
// Where none were met, readers need no place of their own: they have their turn under that of the
// writers. With a reader come all readers that wait, so that a section of readers is as wide as it
// can be.
//
// No verb and no wait happens here. Whoever is told to `enter` or `leave` does so on a lane and
// reports what came of it.
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
  // Under the lock's mutex from here on, but for who was told to enter or leave.
  State state = State::kIdle;
  bool place_exclusive = true;  // of the place that it enters by, or holds under
  uint64_t ticket = 0;          // the order in which requests came to wait
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
  // Where the client stands in the lock's queue, with its writers or its readers.
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
  // In a queue that was as long a client has one place at a time: the header's counts have room
  // for twice the clients but one.
  static constexpr uint64_t kSecondPlaceMax = layout::LockHeader::kCountMax / 4;

  // Nobody can tell a waiter that has found no room for its entry: it looks itself, soon.
  static constexpr uint64_t kRoomLookNs = 200'000;

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
  // kLeave: the caller leaves the request's place, or lets the client's service do it by
  // `leave_later`. kFailed: its lease had ended before.
  Turn release(LockRequest& request);
  // Whether the lease of a granted request has ended.
  bool is_expired(const LockRequest& request);
  void leave_later(bool exclusive);

  // ---- reports of who was told to enter, by the writers' place or by that of the readers ----

  struct Entry {
    bool only_if_free;
    uint64_t guess;  // of the header, from what was last seen
  };
  Entry entry(bool exclusive);
  // `before` is what the request found.
  void entered(bool exclusive, layout::LockHeader before);
  void queued(bool exclusive, layout::LockHeader before, bool entry_written);
  void barred(bool exclusive);
  void not_entered(bool exclusive, Status status);
  void entry_unknown(bool exclusive);

  // ---- and of who was told to leave ----

  // Whether other clients were met last time.
  bool contended();
  // `before` is what the release found.
  void left(bool exclusive, layout::LockHeader before);
  void leave_unknown(bool exclusive);

  // ---- for the service ----

  struct View {
    Place place;
    bool entry_written;
    bool unwanted;  // held, and nobody here wants it
    uint64_t index;
    uint32_t waiting;
    uint32_t holding;
    uint64_t since_ns;  // that it has been queued, or held
  };
  View view(bool exclusive);
  // Takes the lock from those whose lease has ended, and passes it on. Returns when the next lease
  // ends.
  uint64_t expire();
  // The place at `index` holds the lock. Anything else is an old story. True if it is known to be
  // one of this client's.
  bool granted(uint64_t index);
  void entry_written(uint64_t index);
  // A reset has begun: places with an index below `bound` are void. True if this client has none of
  // those, or now let go of them; otherwise the lock will want attention when it has.
  bool reset_announced(uint32_t owner, uint64_t epoch, uint64_t bound);
  struct ResetAnswer {
    uint32_t owner;
    uint64_t epoch;
  };
  // False if none is due.
  bool take_reset_answer(ResetAnswer& answer);
  void reset_over();
  // Of a held place that nobody wants: true if the caller is to leave.
  bool begin_leaving(bool exclusive);
  // After kEntryUnknown and kLeaveUnknown, once nothing of ours can execute any more. `still_held`:
  // the release did not happen.
  void resolved(bool exclusive, bool still_held);
  // The node is gone, or has cut this client off: all is lost.
  void fail(Status status);

 private:
  struct Side {
    const bool exclusive;  // the writers', or the readers'
    Place place = Place::kOut;
    LockRequests waiting;
    LockRequests holding;  // under this place
    uint32_t waiting_count = 0;
    uint32_t holding_count = 0;
    bool only_if_free = false;
    bool entry_written = false;
    bool phase_exclusive = false;  // of the last that was granted
    uint32_t grants = 0;
    uint64_t index = 0;
    uint64_t since_ns = 0;
    uint64_t early_grant = 0;  // the highest that came before the place's index was known
    uint64_t gate = 0;         // the first ticket that came after the grant

    explicit Side(bool is_exclusive) : exclusive(is_exclusive) {}
  };

  Side& side(bool exclusive) { return exclusive ? writers_ : readers_; }
  const Side& side_of(bool exclusive) const { return exclusive ? writers_ : readers_; }
  // Of the requests in the queue those of other clients, as far as this one knows.
  bool meets_others_locked(const Side& own, uint64_t requests_but_its_own) const;
  void settle_locked();
  void settle_side_locked(Side& own);
  void hold_locked(Side& own, uint64_t index);
  void hand_on_locked(Side& own, bool fresh);
  void grant_writer_locked(LockRequest& writer);
  void grant_readers_locked(Side& own);
  bool can_join_locked(const Side& own, const LockRequest& request) const;
  bool is_unused_locked() const;
  Turn meet_own_locked(LockRequest& request);
  void grant_locked(Side& own, LockRequest& request);
  void begin_lease_locked(LockRequest& request);
  uint64_t expire_locked(Side& own, uint64_t now_ns);
  void unqueue_locked(Side& own, LockRequest& request);
  void fail_first_locked(Side& own, Status status);
  bool lets_go_locked(Side& own);
  void answer_locked();
  bool is_current() const { return attendant_.is_current() || KV_VARIANT(lock_zombies_pass_on); }
  static Turn turn_of(const LockRequest& request);
  static void wake(LockRequest& request) {
    if (request.waiter != nullptr) request.waiter->woken();
  }

  LockAttendant& attendant_;
  const uint32_t number_;
  std::mutex mutex_;
  Side writers_{true};
  Side readers_{false};
  uint64_t next_ticket_ = 0;
  bool contended_ = false;  // other clients were met
  bool worn_out_ = false;
  layout::LockHeader guess_;
  bool answer_due_ = false;
  ResetAnswer answer_{};
  uint64_t answer_bound_ = 0;
  Status failed_ = Status::kOk;  // from here on
};

}  // namespace kvstore
