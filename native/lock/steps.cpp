// Entering and leaving the queue of a lock, and telling those whose turn it is: DecLock
// (arXiv 2505.17641), with a ring that is read only where somebody is likely to wait.
//
//   enter, free or all readers   FAA
//   enter otherwise              FAA, WRITE entry
//   leave                        FAA; where others were met last time, READ ring in the same batch
//
// Of one's own waiting request a release need not read.

#include <algorithm>

#include "base/variant.hpp"
#include "lock/space.hpp"

namespace kvstore {

using layout::LockEntry;
using layout::LockHeader;
using layout::LockTableShape;

namespace {

// A waiter's entry may be on its way: looked for again at once so often, then with growing pauses
// so often. Then the waiter finds out by itself.
constexpr unsigned kLooksAtOnce = 16;
constexpr unsigned kLooks = 24;
constexpr uint64_t kPauseNs = 10'000;
constexpr unsigned kTriesIfFree = 4;

// The entries behind a release, as far as they say whose turn it is.
class RingScan {
 public:
  RingScan(const LockTableShape& shape, LockHeader before, bool exclusive)
      : shape_(shape),
        next_(before.head() + 1),
        first_(next_),
        // Those further back have not had room for their entry.
        end_(std::min(before.tail(), next_ + shape.ring_capacity)),
        exclusive_waiters_(before.exclusive() - (exclusive ? 1 : 0)),
        by_reader_(!exclusive) {}

  struct Turn {
    uint64_t index;
    uint32_t registration;
  };

  // Adds those whose turn is known now; false if an entry is missing that must come yet.
  bool look(const std::vector<uint64_t>& ring, std::vector<Turn>& turns) {
    return by_reader_ ? look_for_writer(ring, turns) : look_for_group(ring, turns);
  }

 private:
  LockEntry entry(const std::vector<uint64_t>& ring, uint64_t index) const {
    return LockEntry{ring[index % shape_.ring_capacity]};
  }
  bool is_valid(LockEntry found, uint64_t index) const {
    if (KV_VARIANT(lock_ignores_lap)) return found.written();
    return found.is_of_lap(shape_.lap_of(index));
  }
  // Its place has been used again: so it was served, or finds out by itself.
  bool is_past(LockEntry found, uint64_t index) const {
    return found.is_newer_than(shape_.lap_of(index));
  }

  // After a writer: the writer behind it, or all readers up to the next writer.
  bool look_for_group(const std::vector<uint64_t>& ring, std::vector<Turn>& turns) {
    for (; next_ < end_; ++next_) {
      const LockEntry found = entry(ring, next_);
      if (is_past(found, next_)) continue;
      if (!is_valid(found, next_)) return false;
      if (found.exclusive() && next_ > first_) return true;
      turns.push_back({next_, found.registration()});
      if (found.exclusive()) return true;
    }
    return true;
  }

  // After a reader: the writer right behind it, if that is one. A missing entry is that of a reader
  // which never waited once all writers have been found further back.
  bool look_for_writer(const std::vector<uint64_t>& ring, std::vector<Turn>& turns) {
    const LockEntry found = entry(ring, next_);
    if (is_past(found, next_)) return true;
    if (is_valid(found, next_)) {
      if (found.exclusive()) turns.push_back({next_, found.registration()});
      return true;
    }
    uint64_t writers = 0;
    for (uint64_t index = next_ + 1; index < end_; ++index) {
      const LockEntry other = entry(ring, index);
      writers += is_valid(other, index) && other.exclusive() ? 1 : 0;
    }
    return writers == exclusive_waiters_;
  }

  const LockTableShape shape_;
  uint64_t next_;
  const uint64_t first_;
  const uint64_t end_;
  const uint64_t exclusive_waiters_;
  const bool by_reader_;
};

}  // namespace

// Only if nobody stands against it: then by CAS, for what FAA has added can't be taken back.
Task<Status> LockSpace::try_enter(Remote& remote, LocalLock& lock, bool exclusive, uint64_t guess) {
  const uint64_t record = table_.record_offset(lock.number());
  LockHeader seen{guess};
  if (!seen.grants(exclusive)) {  // when last seen
    kv_op op[1] = {read_op(record, &seen.word, 8)};
    if (const uint32_t s = co_await remote.batch(op); s != KV_FABRIC_OK) {
      lock.not_entered(exclusive, from_fabric(s));
      co_return from_fabric(s);
    }
  }
  for (unsigned tries = 0; tries < kTriesIfFree; ++tries) {
    if (seen.resetting() || !seen.grants(exclusive)) break;
    const uint64_t desire = seen.word + LockHeader::acquisition(exclusive);
    kv_op op[1] = {cas_op(record, seen.word, desire)};
    const uint32_t posted = co_await remote.batch(op);
    if (posted == KV_FABRIC_LOST) co_return Status::kOutcomeUnknown;
    if (posted != KV_FABRIC_OK) {
      lock.not_entered(exclusive, from_fabric(posted));
      co_return from_fabric(posted);
    }
    if (op[0].result == seen.word) {
      lock.entered(exclusive, seen);
      co_return Status::kOk;
    }
    seen = LockHeader{op[0].result};
  }
  lock.not_entered(exclusive, Status::kBusy);
  co_return Status::kBusy;
}

Task<Status> LockSpace::enter(Remote& remote, LocalLock& lock, bool exclusive) {
  const LocalLock::Entry entry = lock.entry(exclusive);
  if (entry.only_if_free) co_return co_await try_enter(remote, lock, exclusive, entry.guess);
  const uint64_t record = table_.record_offset(lock.number());
  kv_op op[1] = {faa_op(record, LockHeader::acquisition(exclusive))};
  const uint32_t posted = co_await remote.batch(op);
  if (posted == KV_FABRIC_LOST) co_return Status::kOutcomeUnknown;
  if (posted != KV_FABRIC_OK) {
    lock.not_entered(exclusive, from_fabric(posted));
    co_return from_fabric(posted);
  }
  const LockHeader before{op[0].result};
  if (before.resetting() && !KV_VARIANT(lock_enters_over_bar)) {
    lock.barred(exclusive);  // the reset takes the request away with all others
    co_return Status::kOk;
  }
  const uint64_t index = before.tail();
  if (before.grants(exclusive)) {
    lock.entered(exclusive, before);
    co_return Status::kOk;
  }
  bool written = false;
  if (index < before.head() + table_.shape().ring_capacity) {
    const LockEntry own = LockEntry::make(exclusive, registration_, table_.shape().lap_of(index));
    kv_op write[1] = {write_op(record + table_.shape().entry_offset(index), &own.word, 8)};
    written = co_await remote.batch(write) == KV_FABRIC_OK;
  }
  // Without an entry nobody tells us; we look for ourselves.
  lock.queued(exclusive, before, written);
  co_return Status::kOk;
}

Task<Status> LockSpace::leave(Remote& remote, LocalLock& lock, bool exclusive) {
  const bool contended = lock.contended();
  const uint64_t record = table_.record_offset(lock.number());
  const LockTableShape& shape = table_.shape();
  std::vector<uint64_t> ring;
  const bool counted = exclusive && !KV_VARIANT(lock_release_forgets_writer);
  kv_op ops[2] = {faa_op(record, LockHeader::release(counted))};
  if (contended) {
    ring.resize(shape.ring_capacity);
    ops[1] = read_op(record + layout::kLockRingOffset, ring.data(), ring.size() * 8);
  }
  const uint32_t posted = co_await remote.batch({ops, contended ? 2u : 1u});
  if (posted == KV_FABRIC_LOST) co_return Status::kOutcomeUnknown;
  if (posted != KV_FABRIC_OK) {
    lock.leave_later(exclusive);
    co_return from_fabric(posted);
  }
  const LockHeader before{ops[0].result};
  lock.left(exclusive, before);
  // In a reset nobody is granted anything; those who wait will enter anew.
  if (before.resetting() || before.size() <= 1) co_return Status::kOk;
  if (!exclusive && before.exclusive() == 0) co_return Status::kOk;
  // The only one left, behind this one: after a reader it is a writer.
  if (before.size() == 2 && lock.granted(before.head() + 1)) co_return Status::kOk;
  co_return co_await notify(remote, lock, before, exclusive, ring, contended);
}

Task<Status> LockSpace::notify(Remote& remote, LocalLock& lock, LockHeader before, bool exclusive,
                               std::vector<uint64_t>& ring, bool have_ring) {
  const uint64_t at = table_.record_offset(lock.number()) + layout::kLockRingOffset;
  RingScan scan(table_.shape(), before, exclusive);
  std::vector<RingScan::Turn> turns;
  ring.resize(table_.shape().ring_capacity);
  for (unsigned looks = 0; looks < kLooks; ++looks) {
    if (looks > kLooksAtOnce) {
      co_await remote.executor().sleep_until(monotonic_ns() + (kPauseNs << (looks - kLooksAtOnce)));
    }
    if (looks > 0 || !have_ring) {
      if (looks > 0) counts_.ring_looks.fetch_add(1, std::memory_order_relaxed);
      kv_op op[1] = {read_op(at, ring.data(), ring.size() * 8)};
      if (const uint32_t s = co_await remote.batch(op); s != KV_FABRIC_OK) co_return from_fabric(s);
    }
    turns.clear();
    const bool complete = scan.look(ring, turns);
    for (const RingScan::Turn& turn : turns) {
      const LockMessage grant{LockMessage::kGrant, 0, 0, lock.number(), turn.index, 0};
      counts_.grants_sent.fetch_add(1, std::memory_order_relaxed);
      if (turn.registration == registration_) {
        lock.granted(turn.index);  // a thread of ours came to wait meanwhile
      } else {
        co_await send(remote, turn.registration, grant);
      }
    }
    if (complete) break;
  }
  co_return remote.broken() ? Status::kNodeUnreachable : Status::kOk;
}

}  // namespace kvstore
