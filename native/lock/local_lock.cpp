#include "lock/local_lock.hpp"

#include <algorithm>

#include "base/assert.hpp"
#include "base/variant.hpp"
#include "coro/clock.hpp"

namespace kvstore {

using layout::LockHeader;

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
  const LockRequest* own = holding_.first();
  while (own != nullptr && own->owner != request.owner) own = own->next;
  if (own == nullptr) return Turn::kNothing;
  bool writes = false;
  for (const LockRequest* held = own; held != nullptr; held = held->next) {
    if (held->owner != request.owner) continue;
    writes |= held->exclusive;
    if (held->name == request.name) {
      request.state = LockRequest::State::kFailed;
      request.failure = Status::kWouldDeadlock;
      return Turn::kFailed;
    }
  }
  if (request.exclusive && !writes) {
    request.state = LockRequest::State::kFailed;
    request.failure = Status::kWouldDeadlock;
    return Turn::kFailed;
  }
  // No grant of its own: it has the token of the possession around it.
  request.state = LockRequest::State::kGranted;
  request.token = own->token;
  begin_lease_locked(request);
  holding_.push_back(request);
  ++holding_count_;
  return Turn::kGranted;
}

bool LocalLock::can_join_locked(const LockRequest& request) {
  if (place_ != Place::kHeld || grants_ >= kGrantsMax || !is_current()) return false;
  if (holding_count_ == 0) return waiting_.empty() && (exclusive_ || !request.exclusive);
  return !request.exclusive && !phase_exclusive_ && waiting_.first_of(true) == nullptr;
}

LocalLock::Turn LocalLock::request(LockRequest& request) {
  const std::lock_guard lock(mutex_);
  request.state = LockRequest::State::kFailed;
  request.failure = failed_;
  if (failed_ != Status::kOk) return Turn::kFailed;
  if (const Turn own = meet_own_locked(request); own != Turn::kNothing) return own;
  if (can_join_locked(request)) {
    phase_exclusive_ = request.exclusive;
    grant_locked(request);
    return Turn::kGranted;
  }
  const bool free = place_ == Place::kOut && waiting_.empty();
  if (worn_out_ || (request.only_if_free && !free)) {
    request.state = LockRequest::State::kFailed;
    request.failure = worn_out_ ? Status::kLockWornOut : Status::kBusy;
    return Turn::kFailed;
  }
  waiting_.push_back(request);
  ++waiting_count_;
  request.state = LockRequest::State::kWaits;
  if (free) settle_locked();
  return turn_of(request);
}

LocalLock::Turn LocalLock::look(LockRequest& request) {
  const std::lock_guard lock(mutex_);
  return turn_of(request);
}

LocalLock::Turn LocalLock::cancel(LockRequest& request) {
  const std::lock_guard lock(mutex_);
  const LockRequest::State state = request.state;
  if (state != LockRequest::State::kWaits && state != LockRequest::State::kEnters) {
    return turn_of(request);
  }
  // While its lane is entering, a request is not given up.
  if (state == LockRequest::State::kEnters) {
    KV_ASSERT(place_ == Place::kEntering);
    place_ = Place::kOut;
  }
  waiting_.remove(request);
  --waiting_count_;
  request.state = LockRequest::State::kIdle;
  settle_locked();
  return Turn::kNothing;
}

LocalLock::Turn LocalLock::release(LockRequest& request) {
  const std::lock_guard lock(mutex_);
  if (request.state != LockRequest::State::kGranted) return Turn::kFailed;
  holding_.remove(request);
  --holding_count_;
  request.state = LockRequest::State::kIdle;
  if (holding_count_ > 0) return Turn::kNothing;
  hand_on_locked(false);
  if (holding_count_ > 0) return Turn::kNothing;
  place_ = Place::kLeaving;
  return Turn::kLeave;
}

bool LocalLock::is_expired(const LockRequest& request) {
  const std::lock_guard lock(mutex_);
  if (request.state == LockRequest::State::kExpired) return true;
  return request.state == LockRequest::State::kGranted && monotonic_ns() >= request.expiry_ns;
}

uint64_t LocalLock::expire() {
  const std::lock_guard lock(mutex_);
  const uint64_t now_ns = monotonic_ns();
  uint64_t next_ns = UINT64_MAX;
  bool any = false;
  for (LockRequest* request = holding_.first(); request != nullptr;) {
    LockRequest* const following = request->next;
    if (request->expiry_ns <= now_ns) {
      holding_.remove(*request);
      --holding_count_;
      request->state = LockRequest::State::kExpired;
      request->failure = Status::kLockLost;  // of one that has not noticed yet that it was granted
      any = true;
    } else {
      next_ns = std::min(next_ns, request->expiry_ns);
    }
    request = following;
  }
  // What nobody wants any more is left as one that was granted too late.
  if (any && holding_count_ == 0 && place_ == Place::kHeld) hand_on_locked(false);
  for (LockRequest* one = holding_.first(); one != nullptr; one = one->next) {
    next_ns = std::min(next_ns, one->expiry_ns);
  }
  return next_ns;
}

void LocalLock::leave_later() {
  const std::lock_guard lock(mutex_);
  KV_ASSERT(place_ == Place::kLeaving);
  place_ = Place::kHeld;
  grants_ = kGrantsMax;  // it was decided to leave
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

void LocalLock::grant_locked(LockRequest& request) {
  begin_lease_locked(request);
  ++grants_;
  KV_ASSERT(grants_ < layout::kLockGrantsMax);
  request.state = LockRequest::State::kGranted;
  request.token = layout::lock_token(index_, grants_);
  holding_.push_back(request);
  ++holding_count_;
}

// Passes a held lock on to those who wait. `fresh`: the place was granted just now.
void LocalLock::hand_on_locked(bool fresh) {
  KV_ASSERT(place_ == Place::kHeld);
  KV_ASSERT(holding_count_ == 0);
  if (waiting_.empty() || grants_ >= kGrantsMax || !is_current()) return;
  LockRequest* const writer = exclusive_ ? waiting_.first_of(true) : nullptr;
  LockRequest* reader = waiting_.first_of(false);
  bool writes = writer != nullptr;
  if (writes && reader != nullptr) writes = waiting_.first()->exclusive;
  if (writes) {
    phase_exclusive_ = true;
    waiting_.remove(*writer);
    --waiting_count_;
    grant_locked(*writer);
    wake(*writer);
    return;
  }
  // Readers that came while a writer waits have their turn after it.
  if (!fresh && !exclusive_) return;
  phase_exclusive_ = false;
  while (reader != nullptr) {
    LockRequest* following = reader->next;
    while (following != nullptr && following->exclusive) following = following->next;
    waiting_.remove(*reader);
    --waiting_count_;
    grant_locked(*reader);
    wake(*reader);
    reader = following;
  }
}

void LocalLock::hold_locked(uint64_t index) {
  place_ = Place::kHeld;
  index_ = index;
  since_ns_ = monotonic_ns();
  grants_ = 0;
  worn_out_ = index >= layout::kLockIndexMax;
  hand_on_locked(true);
  if (holding_count_ == 0) attendant_.attend(*this, 0);
}

// Once out, sends the first that waits to enter.
void LocalLock::settle_locked() {
  if (place_ != Place::kOut) return;
  while (failed_ != Status::kOk && !waiting_.empty()) fail_first_locked(failed_);
  if (waiting_.empty()) return;
  LockRequest& first = *waiting_.first();
  place_ = Place::kEntering;
  exclusive_ = first.exclusive;
  only_if_free_ = first.only_if_free;
  early_grant_ = 0;
  first.state = LockRequest::State::kEnters;
  wake(first);
}

void LocalLock::fail_first_locked(Status status) {
  LockRequest& first = *waiting_.first();
  waiting_.remove(first);
  --waiting_count_;
  first.state = LockRequest::State::kFailed;
  first.failure = status;
  wake(first);
}

// ---- entering and leaving -------------------------------------------------------------------

LocalLock::Entry LocalLock::entry() {
  const std::lock_guard lock(mutex_);
  KV_ASSERT(place_ == Place::kEntering);
  // From here on the request only waits: what becomes of the place is its own story.
  waiting_.first()->state = LockRequest::State::kWaits;
  return {exclusive_, only_if_free_, guess_.word};
}

void LocalLock::entered(uint64_t index, bool contended) {
  const std::lock_guard lock(mutex_);
  KV_ASSERT(place_ == Place::kEntering);
  contended_ = contended;
  hold_locked(index);
  answer_locked();
}

void LocalLock::queued(uint64_t index, bool entry_written) {
  const std::lock_guard lock(mutex_);
  KV_ASSERT(place_ == Place::kEntering);
  contended_ = true;
  entry_written_ = entry_written;
  index_ = index;
  since_ns_ = monotonic_ns();
  place_ = Place::kQueued;
  if (early_grant_ == index) {
    hold_locked(index);
  } else {
    attendant_.attend(*this, UINT64_MAX);
  }
  answer_locked();
}

void LocalLock::barred() {
  const std::lock_guard lock(mutex_);
  KV_ASSERT(place_ == Place::kEntering);
  place_ = Place::kBarred;
  attendant_.attend(*this, UINT64_MAX);
  answer_locked();
}

void LocalLock::not_entered(Status status) {
  const std::lock_guard lock(mutex_);
  KV_ASSERT(place_ == Place::kEntering);
  place_ = Place::kOut;
  if (!waiting_.empty()) fail_first_locked(status);
  answer_locked();
  settle_locked();
}

void LocalLock::entry_unknown() {
  const std::lock_guard lock(mutex_);
  KV_ASSERT(place_ == Place::kEntering);
  place_ = Place::kEntryUnknown;
  attendant_.attend(*this, 0);
}

LocalLock::Possession LocalLock::possession() {
  const std::lock_guard lock(mutex_);
  return {exclusive_, contended_, index_};
}

void LocalLock::left(LockHeader before) {
  const std::lock_guard lock(mutex_);
  KV_ASSERT(place_ == Place::kLeaving);
  contended_ = before.size() > 1;
  guess_.word = before.word + LockHeader::release(exclusive_);
  place_ = Place::kOut;
  answer_locked();
  settle_locked();
}

void LocalLock::leave_unknown() {
  const std::lock_guard lock(mutex_);
  KV_ASSERT(place_ == Place::kLeaving);
  place_ = Place::kLeaveUnknown;
  attendant_.attend(*this, 0);
}

// ---- for the service ------------------------------------------------------------------------

LocalLock::View LocalLock::view() {
  const std::lock_guard lock(mutex_);
  const bool unwanted = place_ == Place::kHeld && holding_count_ == 0;
  return {place_, exclusive_,     entry_written_, unwanted, answer_due_,
          index_, waiting_count_, holding_count_, since_ns_};
}

void LocalLock::granted(uint64_t index) {
  const std::lock_guard lock(mutex_);
  // None that waits has index 0.
  if (place_ == Place::kEntering) early_grant_ = std::max(early_grant_, index);
  if (place_ != Place::kQueued) return;
  if (index_ != index && !KV_VARIANT(lock_any_grant)) return;
  if (is_current()) hold_locked(index_);
}

void LocalLock::entry_written(uint64_t index) {
  const std::lock_guard lock(mutex_);
  if (place_ == Place::kQueued && index_ == index) entry_written_ = true;
}

// Lets go of a place that a reset has made void, and says when the answer is due.
void LocalLock::answer_locked() {
  if (answer_bound_ == 0) return;
  switch (place_) {
    case Place::kOut:
    case Place::kBarred:
      break;
    case Place::kQueued:
      if (index_ >= answer_bound_) break;
      if (!KV_VARIANT(lock_keeps_void_place)) place_ = Place::kBarred;
      break;
    case Place::kHeld:
    case Place::kLeaving:
      if (index_ >= answer_bound_) break;
      if (KV_VARIANT(lock_answers_while_holding)) break;
      return;
    default:
      return;
  }
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
  if (place_ != Place::kBarred) return;
  place_ = Place::kOut;
  settle_locked();
}

bool LocalLock::begin_leaving() {
  const std::lock_guard lock(mutex_);
  if (place_ != Place::kHeld || holding_count_ > 0) return false;
  place_ = Place::kLeaving;
  return true;
}

void LocalLock::resolved(bool still_held) {
  const std::lock_guard lock(mutex_);
  still_held |= KV_VARIANT(lock_leaves_twice) && place_ == Place::kLeaveUnknown;
  if (place_ != Place::kEntryUnknown && place_ != Place::kLeaveUnknown) return;
  if (still_held) {
    place_ = Place::kHeld;
    grants_ = kGrantsMax;
    attendant_.attend(*this, 0);
    return;
  }
  place_ = Place::kOut;
  answer_locked();
  settle_locked();
}

void LocalLock::fail(Status status) {
  const std::lock_guard lock(mutex_);
  failed_ = status;
  // A lane that is at it reports by itself, and fails.
  if (place_ == Place::kEntering || place_ == Place::kLeaving) return;
  while (!waiting_.empty()) fail_first_locked(status);
}

}  // namespace kvstore
