// ShiftLock (FAST'25), after its published artifact, without its leases: an MCS queue of writers
// and a count of readers beside it, which take turns by a mode bit that writers flip.
//
//   word 0: bit 0 mode | bits 1..23 readers | bits 24..63 last writer, 0: none
//   word 1: releases
//
// It needs masked and 16-byte atomics, which the fabric contract does not have.

#include "fabric/sim/masked.hpp"
#include "lock/baselines/rival.hpp"

namespace kvstore::rivals {
namespace {

constexpr uint64_t kMode = 1;
constexpr uint64_t kOneReader = 2;
constexpr unsigned kTailShift = 24;
constexpr uint64_t kTailMask = ~uint64_t{0} << kTailShift;
constexpr uint64_t kReadersMask = ((uint64_t{1} << kTailShift) - 1) & ~kMode;
constexpr unsigned kFastTries = 2;
constexpr uint64_t kWritersInARow = 16;
constexpr uint64_t kReaderPauseNs = 1'862;

uint64_t readers_of(uint64_t word) {
  return (word & kReadersMask) / kOneReader;
}

class ShiftLock final : public Rival {
 public:
  explicit ShiftLock(Seat& seat) : seat_(seat), own_(uint64_t{seat.number() + 1} << kTailShift) {}

  Task<Status> acquire(uint32_t lock, bool exclusive) override {
    return exclusive ? acquire_writer(lock) : acquire_reader(lock);
  }
  Task<Status> release(uint32_t lock, bool exclusive) override {
    return exclusive ? release_writer(lock) : release_reader(lock);
  }

  void receive(const Message& message) override {
    switch (message.kind) {
      case kFollows:
        successor_ = message.from + 1;
        break;
      case kHandOver:
        granted_ = true;
        in_a_row_ = message.words[0];
        mode_ = message.words[1];
        releases_ = message.words[2];
        break;
      default:  // the mode has changed: readers come first
        granted_ = true;
        in_a_row_ = 0;
        mode_ = message.words[1];
        awaited_releases_ = message.words[2];
        must_await_ = true;
    }
    seat_.gate.open(seat_.executor());
  }

 private:
  enum : uint32_t { kFollows, kHandOver, kModeChanged };

  Task<Status> acquire_writer(uint32_t lock) {
    successor_ = 0;
    granted_ = must_await_ = false;
    in_a_row_ = 0;
    seat_.gate.close();
    Remote& remote = seat_.remote(lock);
    sim::MaskedSwap swap;
    swap.compare_mask[0] = kTailMask | kReadersMask;
    swap.swap[0] = own_;
    swap.swap_mask[0] = kTailMask;
    for (unsigned tries = 0; tries <= kFastTries; ++tries) {
      if (tries == kFastTries) swap.compare_mask[0] = 0;
      kv_op op[1] = {sim::masked_swap_op(seat_.offset(lock), swap)};
      if (const uint32_t s = co_await remote.batch(op); s != KV_FABRIC_OK) {
        co_return from_fabric(s);
      }
      if (swap.swapped()) break;
    }
    mode_ = swap.old[0] & kMode;
    releases_ = swap.old[1];
    const uint64_t before = swap.old[0] >> kTailShift;
    if (before == 0) {
      const uint64_t readers = readers_of(swap.old[0]);
      if (readers == 0) co_return Status::kOk;
      co_return co_await await_releases(lock, releases_ + readers);
    }
    seat_.send(uint32_t(before - 1), {seat_.number(), lock, kFollows, {}});
    while (!granted_) {
      co_await seat_.gate;
      seat_.gate.close();
    }
    if (!must_await_) co_return Status::kOk;
    co_return co_await await_releases(lock, awaited_releases_);
  }

  Task<Status> await_releases(uint32_t lock, uint64_t until) {
    uint64_t releases = 0;
    do {
      kv_op op[1] = {read_op(seat_.offset(lock) + 8, &releases, 8)};
      if (const uint32_t s = co_await seat_.remote(lock).batch(op); s != KV_FABRIC_OK) {
        co_return from_fabric(s);
      }
    } while (releases < until);
    releases_ = releases;
    co_return Status::kOk;
  }

  // Flips the mode; `leave`: also leaves the queue, if nobody is behind.
  Task<Status> flip(uint32_t lock, bool leave, sim::MaskedSwap& swap) {
    swap.compare[0] = leave ? own_ : 0;
    swap.compare_mask[0] = leave ? kTailMask : 0;
    swap.swap[0] = mode_ ^ kMode;
    swap.swap_mask[0] = kMode | (leave ? kTailMask : 0);
    swap.swap[1] = releases_ + 1;
    swap.swap_mask[1] = ~uint64_t{0};
    kv_op op[1] = {sim::masked_swap_op(seat_.offset(lock), swap)};
    co_return from_fabric(co_await seat_.remote(lock).batch(op));
  }

  Task<Status> release_writer(uint32_t lock) {
    if (successor_ == 0) {
      sim::MaskedSwap swap;
      if (const Status s = co_await flip(lock, true, swap); s != Status::kOk) co_return s;
      if (swap.swapped()) co_return Status::kOk;
    }
    while (successor_ == 0) {
      co_await seat_.gate;
      seat_.gate.close();
    }
    const uint32_t next = uint32_t(successor_ - 1);
    if (in_a_row_ + 1 < kWritersInARow) {
      seat_.send(next, {seat_.number(), lock, kHandOver, {in_a_row_ + 1, mode_, releases_}});
      co_return Status::kOk;
    }
    sim::MaskedSwap swap;
    if (const Status s = co_await flip(lock, false, swap); s != Status::kOk) co_return s;
    seat_.send(next, {seat_.number(),
                      lock,
                      kModeChanged,
                      {0, mode_ ^ kMode, releases_ + 1 + readers_of(swap.old[0])}});
    co_return Status::kOk;
  }

  Task<Status> acquire_reader(uint32_t lock) {
    Remote& remote = seat_.remote(lock);
    sim::WideAdd sum;
    sum.add[0] = kOneReader;
    kv_op op[1] = {sim::wide_add_op(seat_.offset(lock), sum)};
    if (const uint32_t s = co_await remote.batch(op); s != KV_FABRIC_OK) co_return from_fabric(s);
    if (sum.old[0] >> kTailShift == 0) co_return Status::kOk;
    for (uint64_t now = sum.old[0]; ((now ^ sum.old[0]) & kMode) == 0;) {
      co_await seat_.executor().sleep_until(monotonic_ns() + kReaderPauseNs);
      kv_op look[1] = {read_op(seat_.offset(lock), &now, 8)};
      if (const uint32_t s = co_await remote.batch(look); s != KV_FABRIC_OK) {
        co_return from_fabric(s);
      }
    }
    co_return Status::kOk;
  }

  Task<Status> release_reader(uint32_t lock) {
    sim::WideAdd sum;
    sum.add[0] = ~kOneReader + 1;
    sum.add[1] = 1;
    kv_op op[1] = {sim::wide_add_op(seat_.offset(lock), sum)};
    co_return from_fabric(co_await seat_.remote(lock).batch(op));
  }

  Seat& seat_;
  const uint64_t own_;
  uint64_t successor_ = 0;
  bool granted_ = false;
  bool must_await_ = false;
  uint64_t in_a_row_ = 0;
  uint64_t mode_ = 0;
  uint64_t releases_ = 0;
  uint64_t awaited_releases_ = 0;
};

}  // namespace

const Kind kShiftLock = {"shiftlock",
                         "ShiftLock, its protocol without leases",
                         16,
                         0,
                         true,
                         true,
                         false,
                         nullptr,
                         [](Seat& seat, Shared*) -> std::unique_ptr<Rival> {
                           return std::make_unique<ShiftLock>(seat);
                         }};

}  // namespace kvstore::rivals
