#include "node/sweeper.hpp"

#include <algorithm>

#include "base/assert.hpp"
#include "base/variant.hpp"
#include "coro/clock.hpp"

namespace kvstore {
namespace {

constexpr uint64_t kStepDeadlineNs = 60 * kSecond;
constexpr uint64_t kConnectNs = kSecond;
constexpr uint64_t kRoundPollNs = 5 * kMillisecond;
// After a step that failed, before the sweep begins anew.
constexpr uint64_t kRetryNs = 20 * kMillisecond;
constexpr unsigned kRounds = 4;
// A sweep keeps extents without an owner from being adopted. Where no client is swept for, it does
// so seldom, and not for as long as a client stands still.
constexpr uint64_t kOwnerlessPauseNs = 2 * kSecond;
constexpr uint64_t kOwnerlessRoundsNs = kSecond;
constexpr unsigned kLastStepsMax = 1000;

uint64_t load(const uint64_t& word) {
  return __atomic_load_n(&word, __ATOMIC_ACQUIRE);
}

}  // namespace

Sweeper::Sweeper(Registry& registry, const uint8_t* region, Lane& lane)
    : registry_(registry), region_(region), lane_(lane) {}

void Sweeper::add(uint32_t registration) {
  const std::lock_guard lock(mutex_);
  waiting_.push_back(registration);
}

void Sweeper::add_ownerless() {
  const std::lock_guard lock(mutex_);
  ownerless_wanted_ = true;
}

bool Sweeper::idle() const {
  const std::lock_guard lock(mutex_);
  return waiting_.empty() && !ownerless_wanted_ && stage_ == Stage::kIdle;
}

bool Sweeper::take_work() {
  const std::lock_guard lock(mutex_);
  const bool ownerless = ownerless_wanted_ && monotonic_ns() >= ownerless_not_before_ns_;
  if (waiting_.empty() && !ownerless) return false;
  ownerless_wanted_ = false;
  registrations_.assign(waiting_.begin(), waiting_.end());
  waiting_.clear();
  sweep_ = std::make_unique<Sweep>(registrations_);
  stage_ = Stage::kBegin;
  return true;
}

uint64_t Sweeper::next_work_ns() const {
  const std::lock_guard lock(mutex_);
  return ownerless_wanted_ ? ownerless_not_before_ns_ : UINT64_MAX;
}

uint64_t Sweeper::step(bool may_wait) {
  for (;;) {
    if (lane_.running()) {
      if (may_wait) lane_.wait_for_task();
      if (!lane_.step_task())
        return std::min(lane_.executor().next_timer_ns(), lane_.deadline_ns());
      finished(lane_.end_task());
    }
    if (monotonic_ns() < not_before_ns_) return not_before_ns_;
    if (stage_ == Stage::kIdle && !take_work()) return next_work_ns();
    if (const uint64_t again_ns = proceed(); again_ns != 0) return again_ns;
  }
}

// Begins the next task and returns 0, or returns when to look again.
uint64_t Sweeper::proceed() {
  Channel& channel = lane_.channel(0);
  const uint64_t now_ns = monotonic_ns();
  if (channel.ready(now_ns + kConnectNs) != Status::kOk) return now_ns + kRetryNs;
  const uint64_t deadline_ns = now_ns + kStepDeadlineNs;
  // In slices: a long activity of the node's own client would hold back the epoch of all.
  switch (stage_) {
    case Stage::kBegin:
      lane_.begin_task([&] { return sweep_->begin(channel); }, deadline_ns);
      return 0;
    case Stage::kLook:
      lane_.begin_task([&] { return sweep_->look(channel); }, deadline_ns);
      return 0;
    case Stage::kGiveBack:
      lane_.begin_task([&] { return sweep_->give_back(channel); }, deadline_ns);
      return 0;
    default:
      return wait_for_round(deadline_ns);
  }
}

uint64_t Sweeper::wait_for_round(uint64_t deadline_ns) {
  if (!splits_.empty()) {
    const uint32_t registration = splits_.back();
    splits_.pop_back();
    Channel& channel = lane_.channel(0);
    lane_.begin_task([&] { return finish_split_of(channel, registration); }, deadline_ns);
    return 0;
  }
  if (load(line().safe_epoch) > round_until_ || KV_VARIANT(sweep_without_rounds)) {
    round_until_ = load(line().global_epoch) + 1;
    const bool settles = stage_ == Stage::kSettle;
    const unsigned wanted = settles || KV_VARIANT(sweep_without_rounds) ? 1 : kRounds;
    if (++rounds_ < wanted) return monotonic_ns() + kRoundPollNs;
    stage_ = settles ? Stage::kLook : Stage::kGiveBack;
    return proceed();
  }
  const std::lock_guard lock(mutex_);
  splits_.assign(waiting_.begin(), waiting_.end());
  if (registrations_.empty() && monotonic_ns() > rounds_began_ns_ + kOwnerlessRoundsNs) {
    sweep_->spare_all();
    ownerless_wanted_ = true;
    stage_ = Stage::kGiveBack;
  }
  return monotonic_ns() + kRoundPollNs;
}

void Sweeper::begin_rounds(Stage stage) {
  stage_ = stage;
  rounds_ = 0;
  round_until_ = load(line().global_epoch) + 1;
}

void Sweeper::finished(Status status) {
  // In the rounds only splits are finished, and their sweep will do that again.
  if (waits() || status == Status::kPending) return;
  if (status != Status::kOk) {
    stage_ = Stage::kBegin;
    not_before_ns_ = monotonic_ns() + kRetryNs;
    return;
  }
  switch (stage_) {
    case Stage::kBegin:
      rounds_began_ns_ = monotonic_ns();
      begin_rounds(Stage::kSettle);
      if (KV_VARIANT(search_meets_drafts)) stage_ = Stage::kLook;
      return;
    case Stage::kLook:
      begin_rounds(Stage::kRounds);
      return;
    default:
      for (const uint32_t registration : registrations_) registry_.mark_swept(registration);
      clients_swept_ += registrations_.size();
      blocks_freed_ += sweep_->blocks_freed();
      const std::lock_guard lock(mutex_);
      ownerless_not_before_ns_ = monotonic_ns() + kOwnerlessPauseNs;
      stage_ = Stage::kIdle;
  }
}

void Sweeper::abandon() {
  if (!lane_.running()) return;
  lane_.set_deadline(0);
  for (unsigned steps = 0; !lane_.step_task(); ++steps) KV_ASSERT(steps < kLastStepsMax);
  lane_.end_task();
}

}  // namespace kvstore
