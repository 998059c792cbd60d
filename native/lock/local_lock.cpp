#include "lock/local_lock.hpp"

#include <algorithm>

#include "base/assert.hpp"
#include "base/variant.hpp"
#include "coro/clock.hpp"

namespace kvstore {

using layout::LockHeader;

namespace {

// Others may have come since they were last looked for, which a release does: while none are known,
// a place is given back after so many grants.
constexpr uint32_t kGrantsUnseen = 8;

}  // namespace

// ---- for threads ----------------------------------------------------------------------------

LocalLock::Turn LocalLock::turn_of(const LockRequest& request) {
  switch (request.state) {
    case LockRequest::State::kGranted:
      return Turn::kGranted;
    case LockRequest::State::kEnters:
      return Turn::kEnter;
    case LockRequest::State::kWaits:
      return Turn::kWait;
    default:
      return Turn::kFailed;
  }
}

// A thread that holds the lock already: the same name would wait for itself for ever; another name
// that shares the lock is granted within.
LocalLock::Turn LocalLock::meet_own_locked(LockRequest& request) {
  if (request.owner == 0) return Turn::kNothing;
  Side* own = nullptr;
  uint64_t token = 0;
  bool writes = false;
  for (Side* one : {&writers_, &readers_}) {
    for (const LockRequest* held = one->holding.first(); held != nullptr; held = held->next) {
      if (held->owner != request.owner) continue;
      if (own == nullptr) token = held->token;
      own = one;
      writes |= held->exclusive;
      if (held->name != request.name) continue;
      request.failure = Status::kWouldDeadlock;
      return Turn::kFailed;
    }
  }
  if (own == nullptr) return Turn::kNothing;
  if (request.exclusive && !writes) {
    request.failure = Status::kWouldDeadlock;
    return Turn::kFailed;
  }
  // No grant of its own: it has the token of the possession around it.
  request.state = LockRequest::State::kGranted;
  request.token = token;
  request.place_exclusive = own->exclusive;
  begin_lease_locked(request);
  own->holding.push_back(request);
  ++own->holding_count;
  return Turn::kGranted;
}

// Whether a request is granted at once beside those that hold the lock, or instead of nobody.
bool LocalLock::can_join_locked(const Side& own, const LockRequest& request) const {
  if (own.place != Place::kHeld || own.grants >= kGrantsMax || !is_current()) return false;
  if (request.exclusive && !own.exclusive) return false;
  if (own.holding_count == 0) return own.waiting.empty() && writers_.waiting.empty();
  // Beside other readers, unless a writer waits here.
  if (request.exclusive || own.phase_exclusive || !writers_.waiting.empty()) return false;
  return !own.exclusive || !contended_;
}

bool LocalLock::is_unused_locked() const {
  return writers_.place == Place::kOut && writers_.waiting.empty() &&
         readers_.place == Place::kOut && readers_.waiting.empty();
}

LocalLock::Turn LocalLock::request(LockRequest& request) {
  const std::lock_guard lock(mutex_);
  request.state = LockRequest::State::kFailed;
  request.failure = failed_;
  if (failed_ != Status::kOk) return Turn::kFailed;
  if (const Turn met = meet_own_locked(request); met != Turn::kNothing) return met;
  for (Side* one : {&readers_, &writers_}) {
    if (!can_join_locked(*one, request)) continue;
    one->phase_exclusive = request.exclusive;
    grant_locked(*one, request);
    return Turn::kGranted;
  }
  if (worn_out_ || (request.only_if_free && !is_unused_locked())) {
    request.failure = worn_out_ ? Status::kLockWornOut : Status::kBusy;
    return Turn::kFailed;
  }
  Side& own = side(request.exclusive);
  const bool is_first = own.waiting.empty();
  request.place_exclusive = request.exclusive;
  request.ticket = next_ticket_++;
  request.state = LockRequest::State::kWaits;
  own.waiting.push_back(request);
  ++own.waiting_count;
  if (is_first) settle_side_locked(own);
  return turn_of(request);
}

LocalLock::Turn LocalLock::look(LockRequest& request) {
  const std::lock_guard lock(mutex_);
  return turn_of(request);
}

void LocalLock::unqueue_locked(Side& own, LockRequest& request) {
  own.waiting.remove(request);
  --own.waiting_count;
}

LocalLock::Turn LocalLock::cancel(LockRequest& request) {
  const std::lock_guard lock(mutex_);
  const LockRequest::State state = request.state;
  if (state != LockRequest::State::kWaits && state != LockRequest::State::kEnters) {
    return turn_of(request);
  }
  Side& own = side(request.exclusive);
  // While its lane is entering, a request is not given up.
  if (state == LockRequest::State::kEnters) {
    KV_ASSERT(own.place == Place::kEntering);
    if (!KV_VARIANT(lock_cancel_drops_turn)) own.place = Place::kOut;
  }
  unqueue_locked(own, request);
  request.state = LockRequest::State::kIdle;
  settle_locked();
  return Turn::kNothing;
}

LocalLock::Turn LocalLock::release(LockRequest& request) {
  const std::lock_guard lock(mutex_);
  if (request.state != LockRequest::State::kGranted) return Turn::kFailed;
  Side& own = side(request.place_exclusive);
  own.holding.remove(request);
  --own.holding_count;
  request.state = LockRequest::State::kIdle;
  if (own.holding_count > 0) return Turn::kNothing;
  hand_on_locked(own, false);
  if (own.holding_count > 0) return Turn::kNothing;
  own.place = Place::kLeaving;
  return Turn::kLeave;
}

bool LocalLock::is_expired(const LockRequest& request) {
  const std::lock_guard lock(mutex_);
  if (request.state == LockRequest::State::kExpired) return true;
  return request.state == LockRequest::State::kGranted && monotonic_ns() >= request.expiry_ns;
}

uint64_t LocalLock::expire_locked(Side& own, uint64_t now_ns) {
  bool any = false;
  for (LockRequest* request = own.holding.first(); request != nullptr;) {
    LockRequest* const following = request->next;
    if (request->expiry_ns <= now_ns) {
      own.holding.remove(*request);
      --own.holding_count;
      request->state = LockRequest::State::kExpired;
      request->failure = Status::kLockLost;  // of one that has not noticed yet that it was granted
      any = true;
    }
    request = following;
  }
  // What nobody wants any more is left as one that was granted too late.
  if (any && own.holding_count == 0 && own.place == Place::kHeld) hand_on_locked(own, false);
  uint64_t next_ns = UINT64_MAX;
  for (LockRequest* one = own.holding.first(); one != nullptr; one = one->next) {
    next_ns = std::min(next_ns, one->expiry_ns);
  }
  return next_ns;
}

uint64_t LocalLock::expire() {
  const std::lock_guard lock(mutex_);
  const uint64_t now_ns = monotonic_ns();
  return std::min(expire_locked(writers_, now_ns), expire_locked(readers_, now_ns));
}

void LocalLock::leave_later(bool exclusive) {
  const std::lock_guard lock(mutex_);
  Side& own = side(exclusive);
  KV_ASSERT(own.place == Place::kLeaving);
  own.place = Place::kHeld;
  own.grants = kGrantsMax;  // it was decided to leave
  attendant_.attend(*this, 0);
}

// ---- granting -------------------------------------------------------------------------------

void LocalLock::begin_lease_locked(LockRequest& request) {
  request.expiry_ns = UINT64_MAX;
  if (request.lease_ns == 0) return;
  const uint64_t now_ns = monotonic_ns();
  if (request.lease_ns < UINT64_MAX - now_ns) request.expiry_ns = now_ns + request.lease_ns;
  attendant_.attend(*this, request.expiry_ns);
}

void LocalLock::grant_locked(Side& own, LockRequest& request) {
  begin_lease_locked(request);
  ++own.grants;
  KV_ASSERT(own.grants < layout::kLockGrantsMax);
  request.state = LockRequest::State::kGranted;
  request.place_exclusive = own.exclusive;
  request.token = layout::lock_token(own.index, own.grants);
  own.holding.push_back(request);
  ++own.holding_count;
}

void LocalLock::grant_writer_locked(LockRequest& writer) {
  writers_.phase_exclusive = true;
  unqueue_locked(writers_, writer);
  grant_locked(writers_, writer);
  wake(writer);
}

void LocalLock::grant_readers_locked(Side& own) {
  own.phase_exclusive = false;
  while (LockRequest* const reader = readers_.waiting.first()) {
    unqueue_locked(readers_, *reader);
    grant_locked(own, *reader);
    wake(*reader);
  }
}

// Passes a held lock on to those who wait. `fresh`: the place was granted just now.
void LocalLock::hand_on_locked(Side& own, bool fresh) {
  KV_ASSERT(own.place == Place::kHeld);
  KV_ASSERT(own.holding_count == 0);
  if (own.grants >= kGrantsMax || !is_current()) return;
  if (!own.exclusive) {
    // Readers that came while others held the lock, and a writer waited, have the next place.
    if (fresh) grant_readers_locked(own);
    return;
  }
  const bool others_wait = contended_ || readers_.place != Place::kOut;
  const uint64_t gate = others_wait ? own.gate : UINT64_MAX;
  if (!others_wait && own.grants >= kGrantsUnseen) return;
  LockRequest* const writer = writers_.waiting.first();
  LockRequest* const reader = readers_.place == Place::kOut ? readers_.waiting.first() : nullptr;
  const bool writes = writer != nullptr && writer->ticket < gate;
  const bool reads = reader != nullptr && reader->ticket < gate;
  if (reads && (!writes || reader->ticket < writer->ticket)) {
    grant_readers_locked(own);
  } else if (writes) {
    grant_writer_locked(*writer);
  }
}

void LocalLock::hold_locked(Side& own, uint64_t index) {
  own.place = Place::kHeld;
  own.index = index;
  own.since_ns = monotonic_ns();
  own.grants = 0;
  own.gate = next_ticket_;
  worn_out_ = index >= layout::kLockIndexMax;
  hand_on_locked(own, true);
  if (own.holding_count == 0) attendant_.attend(*this, 0);
}

void LocalLock::settle_locked() {
  settle_side_locked(writers_);
  settle_side_locked(readers_);
}

// Once out, sends the first that waits to enter.
void LocalLock::settle_side_locked(Side& own) {
  if (own.place != Place::kOut) return;
  while (failed_ != Status::kOk && !own.waiting.empty()) fail_first_locked(own, failed_);
  if (own.waiting.empty()) return;
  const Side& other = side(!own.exclusive);
  if (other.place != Place::kOut && guess_.size() > kSecondPlaceMax) return;
  // These have their turn under the writers' place.
  if (!own.exclusive && writers_.place == Place::kHeld && !contended_) return;
  LockRequest& first = *own.waiting.first();
  own.place = Place::kEntering;
  own.only_if_free = first.only_if_free;
  own.early_grant = 0;
  first.state = LockRequest::State::kEnters;
  wake(first);
}

void LocalLock::fail_first_locked(Side& own, Status status) {
  LockRequest& first = *own.waiting.first();
  unqueue_locked(own, first);
  first.state = LockRequest::State::kFailed;
  first.failure = status;
  wake(first);
}

// ---- entering and leaving -------------------------------------------------------------------

bool LocalLock::meets_others_locked(const Side& own, uint64_t requests_but_its_own) const {
  const Place other = side_of(!own.exclusive).place;
  const bool is_in = other == Place::kQueued || other == Place::kHeld || other == Place::kLeaving;
  return requests_but_its_own > (is_in ? 1 : 0);
}

LocalLock::Entry LocalLock::entry(bool exclusive) {
  const std::lock_guard lock(mutex_);
  Side& own = side(exclusive);
  KV_ASSERT(own.place == Place::kEntering);
  // From here on the request only waits: what becomes of the place is its own story.
  own.waiting.first()->state = LockRequest::State::kWaits;
  return {own.only_if_free, guess_.word};
}

void LocalLock::entered(bool exclusive, LockHeader before) {
  const std::lock_guard lock(mutex_);
  Side& own = side(exclusive);
  KV_ASSERT(own.place == Place::kEntering);
  contended_ = meets_others_locked(own, before.size());
  hold_locked(own, before.tail());
  answer_locked();
}

void LocalLock::queued(bool exclusive, LockHeader before, bool entry_written) {
  const std::lock_guard lock(mutex_);
  Side& own = side(exclusive);
  KV_ASSERT(own.place == Place::kEntering);
  contended_ = meets_others_locked(own, before.size());
  own.entry_written = entry_written;
  own.index = before.tail();
  own.since_ns = monotonic_ns();
  own.place = Place::kQueued;
  if (own.early_grant == own.index) {
    hold_locked(own, own.index);
  } else {
    attendant_.attend(*this, entry_written ? UINT64_MAX : monotonic_ns() + kRoomLookNs);
  }
  answer_locked();
}

void LocalLock::barred(bool exclusive) {
  const std::lock_guard lock(mutex_);
  Side& own = side(exclusive);
  KV_ASSERT(own.place == Place::kEntering);
  own.place = Place::kBarred;
  attendant_.attend(*this, UINT64_MAX);
  answer_locked();
}

void LocalLock::not_entered(bool exclusive, Status status) {
  const std::lock_guard lock(mutex_);
  Side& own = side(exclusive);
  KV_ASSERT(own.place == Place::kEntering);
  own.place = Place::kOut;
  if (!own.waiting.empty()) fail_first_locked(own, status);
  answer_locked();
  settle_locked();
}

void LocalLock::entry_unknown(bool exclusive) {
  const std::lock_guard lock(mutex_);
  Side& own = side(exclusive);
  KV_ASSERT(own.place == Place::kEntering);
  own.place = Place::kEntryUnknown;
  attendant_.attend(*this, 0);
}

bool LocalLock::contended() {
  const std::lock_guard lock(mutex_);
  return contended_;
}

void LocalLock::left(bool exclusive, LockHeader before) {
  const std::lock_guard lock(mutex_);
  Side& own = side(exclusive);
  KV_ASSERT(own.place == Place::kLeaving);
  contended_ = meets_others_locked(own, before.size() - 1);
  guess_.word = before.word + LockHeader::release(exclusive);
  own.place = Place::kOut;
  answer_locked();
  settle_locked();
}

void LocalLock::leave_unknown(bool exclusive) {
  const std::lock_guard lock(mutex_);
  Side& own = side(exclusive);
  KV_ASSERT(own.place == Place::kLeaving);
  own.place = Place::kLeaveUnknown;
  attendant_.attend(*this, 0);
}

// ---- for the service ------------------------------------------------------------------------

LocalLock::View LocalLock::view(bool exclusive) {
  const std::lock_guard lock(mutex_);
  const Side& own = side(exclusive);
  const bool unwanted = own.place == Place::kHeld && own.holding_count == 0;
  return {own.place,         own.entry_written, unwanted,    own.index,
          own.waiting_count, own.holding_count, own.since_ns};
}

bool LocalLock::granted(uint64_t index) {
  const std::lock_guard lock(mutex_);
  bool is_ours = false;
  for (Side* own : {&writers_, &readers_}) {
    // None that waits has index 0.
    if (own->place == Place::kEntering) own->early_grant = std::max(own->early_grant, index);
    if (own->place != Place::kQueued) continue;
    if (own->index != index && !KV_VARIANT(lock_any_grant)) continue;
    is_ours = true;
    if (is_current()) hold_locked(*own, own->index);
  }
  return is_ours;
}

void LocalLock::entry_written(uint64_t index) {
  const std::lock_guard lock(mutex_);
  for (Side* own : {&writers_, &readers_}) {
    if (own->place == Place::kQueued && own->index == index) own->entry_written = true;
  }
}

// Lets go of a place that a reset has made void. False while something stands against that.
bool LocalLock::lets_go_locked(Side& own) {
  switch (own.place) {
    case Place::kOut:
    case Place::kBarred:
      return true;
    case Place::kQueued:
      if (own.index < answer_bound_ && !KV_VARIANT(lock_keeps_void_place)) {
        own.place = Place::kBarred;
      }
      return true;
    case Place::kHeld:
    case Place::kLeaving:
      return own.index >= answer_bound_ || KV_VARIANT(lock_answers_while_holding);
    default:
      return false;
  }
}

// Says when the answer to a reset is due.
void LocalLock::answer_locked() {
  if (answer_bound_ == 0) return;
  const bool writers_gone = lets_go_locked(writers_);
  const bool readers_gone = lets_go_locked(readers_);
  if (!writers_gone || !readers_gone) return;
  answer_bound_ = 0;
  answer_due_ = true;
  attendant_.attend(*this, 0);
}

bool LocalLock::reset_announced(uint32_t owner, uint64_t epoch, uint64_t bound) {
  const std::lock_guard lock(mutex_);
  if (epoch < answer_.epoch) return false;  // of an owner that has been replaced
  answer_ = {owner, epoch};
  answer_bound_ = bound;
  answer_due_ = false;
  answer_locked();
  return answer_due_;
}

bool LocalLock::take_reset_answer(ResetAnswer& answer) {
  const std::lock_guard lock(mutex_);
  if (!answer_due_) return false;
  answer_due_ = false;
  answer = answer_;
  return true;
}

void LocalLock::reset_over() {
  const std::lock_guard lock(mutex_);
  for (Side* own : {&writers_, &readers_}) {
    if (own->place == Place::kBarred) own->place = Place::kOut;
  }
  settle_locked();
}

bool LocalLock::begin_leaving(bool exclusive) {
  const std::lock_guard lock(mutex_);
  Side& own = side(exclusive);
  if (own.place != Place::kHeld || own.holding_count > 0) return false;
  own.place = Place::kLeaving;
  return true;
}

void LocalLock::resolved(bool exclusive, bool still_held) {
  const std::lock_guard lock(mutex_);
  Side& own = side(exclusive);
  still_held |= KV_VARIANT(lock_leaves_twice) && own.place == Place::kLeaveUnknown;
  if (own.place != Place::kEntryUnknown && own.place != Place::kLeaveUnknown) return;
  if (still_held) {
    own.place = Place::kHeld;
    own.grants = kGrantsMax;
    attendant_.attend(*this, 0);
    return;
  }
  own.place = Place::kOut;
  answer_locked();
  settle_locked();
}

void LocalLock::fail(Status status) {
  const std::lock_guard lock(mutex_);
  failed_ = status;
  for (Side* own : {&writers_, &readers_}) {
    // A lane that is at it reports by itself, and fails.
    if (own->place == Place::kEntering || own->place == Place::kLeaving) continue;
    while (!own->waiting.empty()) fail_first_locked(*own, status);
  }
}

}  // namespace kvstore
