#include "store/hold.hpp"

namespace kvstore {

using Turn = LocalLock::Turn;

namespace {

// One or two round trips: whatever the caller's deadline, to end them half done would cost more.
constexpr uint64_t kStepNs = 2 * kSecond;
constexpr uint64_t kLaneForReleaseNs = kSecond;

uint64_t time_until(uint64_t deadline_ns) {
  const uint64_t now_ns = monotonic_ns();
  return deadline_ns > now_ns ? deadline_ns - now_ns : 0;
}

Status status_of(const Attachment& attachment) {
  switch (attachment.state.load(std::memory_order_acquire)) {
    case Attachment::State::kUp:
      return Status::kOk;
    case Attachment::State::kFenced:
      return Status::kFenced;
    default:
      return Status::kNodeUnreachable;
  }
}

}  // namespace

// ---- steps on a lane ------------------------------------------------------------------------

// `begun`: the task was started.
template <class Start>
Status LockHold::on_lane(uint64_t lane_timeout_ns, bool& begun, Start&& start) {
  begun = false;
  Status status = Status::kOk;
  Lane* lane = client_.acquire_lane(lane_timeout_ns, status);
  if (lane == nullptr) return status;
  Channel& channel = lane->channel(member_);
  const uint64_t step_ns = monotonic_ns() + kStepNs;
  lane->set_deadline(step_ns);
  status = channel.ready(step_ns);
  if (status == Status::kOk && channel.attachment != attachment_) {
    status = Status::kNodeUnreachable;  // as this attachment knew it
  }
  if (status == Status::kOk) {
    begun = true;
    const Channel::Use use(channel);
    status = lane->run_task([&] { return start(channel.remote); }, step_ns, false);
    if (status == Status::kOutcomeUnknown) channel.note_lost();
  }
  client_.release_lane(*lane);
  return status;
}

Status LockHold::open_locks(uint64_t deadline_ns) {
  bool begun = false;
  return on_lane(time_until(deadline_ns), begun, [this](Remote& remote) {
    return attachment_->locks.open(remote, attachment_->segments);
  });
}

// False if that has to wait until it may block.
bool LockHold::enter(uint64_t deadline_ns, bool may_block) {
  bool begun = false;
  const Status status =
      on_lane(may_block ? time_until(deadline_ns) : 0, begun, [this](Remote& remote) {
        return attachment_->locks.enter(remote, *lock_, request_.exclusive);
      });
  if (!begun && status == Status::kBusy && !may_block) return false;
  if (!begun) {
    lock_->not_entered(request_.exclusive, status);
  } else if (status == Status::kOutcomeUnknown) {
    lock_->entry_unknown(request_.exclusive);
  }
  return true;
}

// Whether the node has been told, or will be by our service.
bool LockHold::leave(bool may_block) {
  bool begun = false;
  const Status status = on_lane(may_block ? kLaneForReleaseNs : 0, begun, [this](Remote& remote) {
    return attachment_->locks.leave(remote, *lock_, request_.place_exclusive);
  });
  if (!begun) {
    lock_->leave_later(request_.place_exclusive);
  } else if (status == Status::kOutcomeUnknown) {
    lock_->leave_unknown(request_.place_exclusive);
  }
  return begun ? status == Status::kOk : status == Status::kBusy;
}

// Whether the node still knows this client, whatever became of an earlier connection.
bool LockHold::is_reachable() {
  bool begun = false;
  const Status status = on_lane(kLaneForReleaseNs, begun, [](Remote& remote) -> Task<Status> {
    uint64_t word = 0;
    kv_op op[1] = {read_op(layout::kSuperblockOffset, &word, sizeof word)};
    co_return from_fabric(co_await remote.batch(op));
  });
  return status == Status::kOk || status == Status::kBusy;
}

// ---- acquiring ------------------------------------------------------------------------------

Status LockHold::end(Status status) {
  stage_ = status == Status::kOk ? Stage::kHeld : Stage::kFree;
  if (status != Status::kOk) attachment_.reset();
  return status;
}

// Follows the lock's turns until there is nothing to do but wait.
Status LockHold::go_on(Turn turn, uint64_t deadline_ns, bool may_block) {
  while (turn == Turn::kEnter && enter(deadline_ns, may_block)) turn = lock_->look(request_);
  if (turn == Turn::kGranted) return end(Status::kOk);
  if (turn == Turn::kFailed) return end(request_.failure);
  stage_ = Stage::kWaiting;
  return Status::kPending;
}

Status LockHold::begin(const Wish& wish, uint64_t deadline_ns, bool may_block) {
  KV_ASSERT(stage_ == Stage::kFree);
  if (client_.forked()) return Status::kForked;
  member_ = client_.member_of(wish.name.low);
  attachment_ = client_.attachment(member_);
  if (!attachment_) return Status::kNoAttachment;
  if (sleeper_.is_cancelled()) return end(Status::kInterrupted);
  if (const Status s = status_of(*attachment_); s != Status::kOk) return end(s);
  // A client that stands still is given up only after that.
  const bool too_short = wish.lease_ns != 0 && wish.lease_ns < attachment_->locks.lease_ns();
  if (too_short) return end(Status::kLeaseTooShort);
  if (!attachment_->locks.is_open()) [[unlikely]] {
    if (!may_block) return end(Status::kPending);
    if (const Status s = open_locks(deadline_ns); s != Status::kOk) return end(s);
  }
  request_.name = wish.name;
  request_.owner = wish.owner;
  request_.exclusive = wish.exclusive;
  request_.only_if_free = wish.only_if_free;
  request_.lease_ns = wish.lease_ns;
  request_.waiter = this;
  sleeper_.begin();
  lock_ = &attachment_->locks.lock_of(wish.name);
  return go_on(lock_->request(request_), deadline_ns, may_block);
}

Status LockHold::wait(uint64_t deadline_ns) {
  KV_ASSERT(stage_ == Stage::kWaiting);
  for (;;) {
    const Status turned = go_on(lock_->look(request_), deadline_ns, true);
    if (turned != Status::kPending) return turned;
    const Sleeper::Ended ended = sleeper_.sleep(deadline_ns);
    if (ended == Sleeper::Ended::kWoken) continue;
    const bool late = ended == Sleeper::Ended::kDeadline;
    const Turn turn = lock_->cancel(request_);
    if (turn == Turn::kNothing) {
      return end(late ? Status::kDeadlineExceeded : Status::kInterrupted);
    }
    // It was granted just before.
    const Status status = go_on(turn, deadline_ns, true);
    if (late || status != Status::kOk) return status;
    release();
    return Status::kInterrupted;
  }
}

bool LockHold::is_lost() const {
  return stage_ == Stage::kHeld &&
         (status_of(*attachment_) != Status::kOk || lock_->is_expired(request_));
}

void LockHold::forget() {
  stage_ = Stage::kFree;
  attachment_.reset();
}

Status LockHold::release(bool may_block) {
  KV_ASSERT(stage_ == Stage::kHeld);
  if (client_.forked()) {
    forget();  // it is the parent's, with all that belongs to it
    return Status::kForked;
  }
  bool lost = status_of(*attachment_) != Status::kOk;
  const Turn turn = lock_->release(request_);
  if (turn == Turn::kFailed) lost = true;  // its lease has ended
  if (turn == Turn::kLeave && !leave(may_block)) lost |= !is_reachable();
  forget();
  return lost ? Status::kLockLost : Status::kOk;
}

}  // namespace kvstore
