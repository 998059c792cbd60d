// Carrying the entries of one group to the new subtable: step 4 of a split.

#include <algorithm>
#include <array>

#include "base/assert.hpp"
#include "base/variant.hpp"
#include "index/split.hpp"
#include "layout/object.hpp"

namespace kvstore {

using layout::Bucket;
using layout::BucketHeader;
using layout::Slot;

namespace {

constexpr unsigned kSlots = layout::kSlotsPerGroup;
// A pass ends early only where a writer was faster at one of 21 slots.
constexpr unsigned kPassesMax = 4096;

struct Group {
  Bucket buckets[layout::kBucketsPerGroup];

  BucketHeader header(unsigned bucket) const { return BucketHeader{buckets[bucket].header}; }
  Slot slot(unsigned i) const {
    return Slot{buckets[i / layout::kSlotsPerBucket].slots[i % layout::kSlotsPerBucket]};
  }
};

uint64_t slot_offset(uint64_t group_offset, unsigned i) {
  return group_offset + i / layout::kSlotsPerBucket * layout::kBucketBytes + 8 +
         i % layout::kSlotsPerBucket * 8;
}

// The work on one group; all state of the coroutines below.
struct Carry {
  Remote& remote;
  const layout::Geometry& geometry;
  uint64_t source;  // offsets of the group in both subtables
  uint64_t target;
  Group new_group;  // as it was before the old one was read: what a copy may replace
  Group old_group;
  Group new_group_after;
  bool current = false;  // all of it was read while this split was filling the new group
  std::array<uint64_t, kSlots> stays{};  // slot words whose key is known to stay
};

Task<Status> read_groups(Carry& carry) {
  // The new group first: a copy seen there whose original is not seen afterwards has lost it for
  // good, it is not about to get it. And its headers at last: if they still say that the group is
  // filling, what moves in the old group moves for this split and no later one.
  constexpr uint64_t kBuckets = layout::kBucketsPerGroup;
  uint64_t after[(kBuckets - 1) * layout::kBucketBytes / 8 + 1];
  kv_op ops[4] = {read_op(carry.target, &carry.new_group, layout::kGroupBytes),
                  read_op(carry.source, &carry.old_group, layout::kGroupBytes),
                  read_op(carry.target, &carry.new_group_after, layout::kGroupBytes),
                  read_op(carry.target, after, sizeof after)};
  const Status s = from_fabric(co_await carry.remote.batch(ops));
  carry.current = s == Status::kOk;
  for (unsigned b = 0; b < kBuckets; ++b) {
    carry.current &= after[b * layout::kBucketBytes / 8] == carry.new_group.buckets[b].header;
  }
  co_return s;
}

// A copy that was not yet there at the first look at the new group: who made it may be gone, and
// nobody commits it once the group is filled.
bool uncommitted_copy(const Carry& carry) {
  for (unsigned i = 0; i < kSlots; ++i) {
    if (carry.new_group_after.slot(i).moving()) return true;
  }
  return false;
}

// From here on nobody inserts a key of the new subtable into the old group: whoever tries finds the
// header changed, and withdraws.
Task<Status> raise_depth(Carry& carry) {
  kv_op ops[layout::kBucketsPerGroup];
  unsigned count = 0;
  for (unsigned b = 0; b < layout::kBucketsPerGroup; ++b) {
    const BucketHeader seen = carry.old_group.header(b);
    const unsigned depth = carry.new_group.header(b).depth();
    if (seen.depth() >= depth) continue;
    const BucketHeader raised = BucketHeader::make(depth, seen.suffix(), false);
    ops[count++] = cas_op(carry.source + b * layout::kBucketBytes, seen.word, raised.word);
  }
  if (count == 0) co_return Status::kOk;
  co_return from_fabric(co_await carry.remote.batch({ops, count}));
}

// Which occupied slots have to go: reads the headers of objects not looked at before.
// `unsettled` counts slots that can't be judged now.
Task<Status> choose_movers(Carry& carry, std::array<bool, kSlots>& moves, unsigned& unsettled) {
  const unsigned depth = carry.new_group.header(0).depth();
  layout::ObjectHeader headers[kSlots];
  kv_op ops[kSlots];
  unsigned slots[kSlots];
  unsigned count = 0;
  for (unsigned i = 0; i < kSlots; ++i) {
    const Slot slot = carry.old_group.slot(i);
    moves[i] = slot.moving();
    if (slot.empty() || slot.tentative() || slot.moving() || carry.stays[i] == slot.word) continue;
    if (!carry.geometry.holds_block(slot.offset(), slot.size_class())) continue;
    slots[count] = i;
    ops[count++] = read_op(slot.offset(), &headers[i], layout::kHeaderBytes);
  }
  if (count == 0) co_return Status::kOk;
  if (const uint32_t s = co_await carry.remote.batch({ops, count}); s != KV_FABRIC_OK) {
    co_return from_fabric(s);
  }
  for (unsigned n = 0; n < count; ++n) {
    const unsigned i = slots[n];
    const Slot slot = carry.old_group.slot(i);
    if (!layout::sound(headers[i], slot.address(), slot.size_class())) {
      ++unsettled;  // replaced since the slot was read
    } else if ((headers[i].key_hash >> (depth - 1) & 1) != 0) {
      moves[i] = true;
    } else {
      carry.stays[i] = slot.word;
    }
  }
  co_return Status::kOk;
}

// Kills tentative entries (their inserters begin again) and freezes those that move.
Task<Status> freeze(Carry& carry, const std::array<bool, kSlots>& moves, bool& again) {
  kv_op ops[kSlots];
  unsigned slots[kSlots];
  unsigned count = 0;
  for (unsigned i = 0; i < kSlots; ++i) {
    const Slot slot = carry.old_group.slot(i);
    Slot next;
    if (slot.tentative()) {
      next = slot.emptied();
    } else if (moves[i] && !slot.moving()) {
      if (KV_VARIANT(copy_without_freezing)) {
        carry.old_group.buckets[i / layout::kSlotsPerBucket].slots[i % layout::kSlotsPerBucket] =
            slot.word | Slot::kMoving;
        continue;
      }
      const bool guarded = KV_VARIANT(hosted_splits_bare) ? slot.shared() : slot.guarded();
      next = slot.with_flags(Slot::kMoving | (guarded ? Slot::kShared : 0));
    } else {
      continue;
    }
    slots[count] = i;
    ops[count++] = cas_op(slot_offset(carry.source, i), slot.word, next.word);
  }
  if (count == 0) co_return Status::kOk;
  if (const uint32_t s = co_await carry.remote.batch({ops, count}); s != KV_FABRIC_OK) {
    co_return from_fabric(s);
  }
  for (unsigned n = 0; n < count; ++n) {
    const unsigned i = slots[n];
    Bucket& bucket = carry.old_group.buckets[i / layout::kSlotsPerBucket];
    if (ops[n].result == ops[n].operand) {
      bucket.slots[i % layout::kSlotsPerBucket] = ops[n].desire;
    } else {
      again = true;
    }
  }
  co_return Status::kOk;
}

// Copies frozen entries into the same places of the new group.
Task<Status> copy(Carry& carry, std::array<Slot, kSlots>& copies) {
  kv_op ops[kSlots];
  unsigned slots[kSlots];
  unsigned count = 0;
  for (unsigned i = 0; i < kSlots; ++i) {
    const Slot slot = carry.old_group.slot(i);
    if (!slot.moving()) continue;
    const Slot there = carry.new_group.slot(i);
    if (!there.empty()) {
      copies[i] = there;  // another helper's copy
      continue;
    }
    const uint64_t flags = Slot::kMoving | (slot.flags() & Slot::kShared);
    copies[i] = there.successor(slot.fingerprint(), flags, slot.size_class(), slot.address());
    slots[count] = i;
    ops[count++] = cas_op(slot_offset(carry.target, i), there.word, copies[i].word);
  }
  if (count == 0) co_return Status::kOk;
  if (const uint32_t s = co_await carry.remote.batch({ops, count}); s != KV_FABRIC_OK) {
    co_return from_fabric(s);
  }
  for (unsigned n = 0; n < count; ++n) {
    if (ops[n].result != ops[n].operand) copies[slots[n]] = Slot{ops[n].result};
  }
  co_return Status::kOk;
}

// Empties the old places, then commits the copies: in this order in one batch. Copies whose old
// place is empty already are committed too.
Task<Status> commit(Carry& carry, const std::array<Slot, kSlots>& copies) {
  kv_op ops[2 * kSlots];
  unsigned count = 0;
  for (unsigned i = 0; i < kSlots; ++i) {
    const Slot slot = carry.old_group.slot(i);
    const Slot there = carry.new_group.slot(i);
    if (there.moving() && there.address() != slot.address()) {
      // Its old place was emptied by a helper that broke off before it could commit the copy.
      const Slot live = there.with_flags(there.flags() & Slot::kShared);
      ops[count++] = cas_op(slot_offset(carry.target, i), there.word, live.word);
      continue;
    }
    if (!slot.moving() || copies[i].address() != slot.address()) continue;
    const uint64_t there_word =
        KV_VARIANT(copy_without_freezing) ? slot.word & ~Slot::kMoving : slot.word;
    ops[count++] = cas_op(slot_offset(carry.source, i), there_word, slot.emptied().word);
    if (!copies[i].moving()) continue;
    const uint64_t kept = KV_VARIANT(cache_split_forgets_shared) ? 0 : Slot::kShared;
    const Slot live = copies[i].with_flags(copies[i].flags() & kept);
    ops[count++] = cas_op(slot_offset(carry.target, i), copies[i].word, live.word);
  }
  if (count == 0) co_return Status::kOk;
  co_return from_fabric(co_await carry.remote.batch({ops, count}));
}

// Only of a broken variant: copies come first.
[[maybe_unused]] Task<Status> empty_old(Carry& carry) {
  kv_op ops[kSlots];
  unsigned count = 0;
  for (unsigned i = 0; i < kSlots; ++i) {
    const Slot slot = carry.old_group.slot(i);
    if (!slot.moving()) continue;
    ops[count++] = cas_op(slot_offset(carry.source, i), slot.word, slot.emptied().word);
  }
  if (count == 0) co_return Status::kOk;
  co_return from_fabric(co_await carry.remote.batch({ops, count}));
}

Task<Status> mark_filled(Carry& carry) {
  kv_op ops[layout::kBucketsPerGroup];
  unsigned count = 0;
  for (unsigned b = 0; b < layout::kBucketsPerGroup; ++b) {
    const BucketHeader seen = carry.new_group.header(b);
    if (!seen.filling()) continue;
    const BucketHeader filled = BucketHeader::make(seen.depth(), seen.suffix(), false);
    ops[count++] = cas_op(carry.target + b * layout::kBucketBytes, seen.word, filled.word);
  }
  if (count == 0) co_return Status::kOk;
  co_return from_fabric(co_await carry.remote.batch({ops, count}));
}

bool filling(const Group& group) {
  return group.header(0).filling() || group.header(1).filling() || group.header(2).filling();
}

// Whether the groups are those of one split: nothing is carried from or to any others.
bool belong_together(const Group& old_group, const Group& new_group) {
  for (unsigned b = 0; b < layout::kBucketsPerGroup; ++b) {
    const BucketHeader from = old_group.header(b);
    const BucketHeader to = new_group.header(b);
    if (to.depth() == 0 || to.depth() > 32) return false;
    if (from.depth() != to.depth() && from.depth() + 1 != to.depth()) return false;
    const uint64_t highest = uint64_t{1} << (to.depth() - 1);
    if ((to.suffix() & highest) == 0 || from.suffix() != (to.suffix() ^ highest)) return false;
  }
  return true;
}

uint64_t rare_pause_ns() {
  if (KV_BUGGIFY(long_split)) return 60 * kMillisecond;
  return KV_BUGGIFY(slow_split) ? kMillisecond : 0;
}

}  // namespace

Task<Status> carry_group(Remote& remote, const layout::Geometry& geometry, uint64_t source,
                         uint64_t target, unsigned group, uint64_t deadline_ns) {
  const uint64_t at = group * layout::kGroupBytes;
  Carry carry{remote, geometry, source + at, target + at, {}, {}, {}, false, {}};
  if (const Status s = co_await read_groups(carry); s != Status::kOk) co_return s;
  if (!filling(carry.new_group)) co_return Status::kOk;
  if (!belong_together(carry.old_group, carry.new_group)) co_return Status::kAbsent;
  if (const Status s = co_await raise_depth(carry); s != Status::kOk) co_return s;

  for (unsigned pass = 0; pass < kPassesMax; ++pass) {
    if (const Status s = co_await read_groups(carry); s != Status::kOk) co_return s;
    if (!filling(carry.new_group)) co_return Status::kOk;
    if (monotonic_ns() > deadline_ns) co_return Status::kDeadlineExceeded;
    if (!carry.current) continue;

    std::array<bool, kSlots> moves{};
    unsigned unsettled = 0;
    if (const Status s = co_await choose_movers(carry, moves, unsettled); s != Status::kOk) {
      co_return s;
    }
    bool again = unsettled > 0 && pass + 1 < kPassesMax / 64;
    again |= uncommitted_copy(carry);
    if (const Status s = co_await freeze(carry, moves, again); s != Status::kOk) co_return s;
    std::array<Slot, kSlots> copies{};
    if (const uint64_t pause_ns = rare_pause_ns(); pause_ns != 0) {
      co_await carry.remote.executor().sleep_until(monotonic_ns() + pause_ns);
    }
    if (KV_VARIANT(empty_before_copy)) co_await empty_old(carry);
    if (const Status s = co_await copy(carry, copies); s != Status::kOk) co_return s;
    if (const Status s = co_await commit(carry, copies); s != Status::kOk) co_return s;

    // Nothing was left to do in this pass: every entry that stands in the old group stays there.
    const bool quiet = std::none_of(moves.begin(), moves.end(), [](bool m) { return m; });
    if ((quiet && !again) || KV_VARIANT(filled_too_soon)) co_return co_await mark_filled(carry);
  }
  co_return Status::kCorrupt;
}

}  // namespace kvstore
