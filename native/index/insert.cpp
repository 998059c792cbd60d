#include "index/insert.hpp"

#include <algorithm>

#include "base/assert.hpp"
#include "base/variant.hpp"

namespace kvstore {

using layout::Slot;

namespace {

// The emptiest combined bucket first, and in it the main bucket before the overflow bucket, which
// two combined buckets share (RACE section 3.2).
SlotRef choose_slot(const Places& places, uint64_t hash) {
  const Positions positions = positions_of(hash);
  unsigned used[2] = {0, 0};
  for (unsigned c = 0; c < 2; ++c) {
    for (unsigned i = 0; i < kSlotsPerCombined; ++i) used[c] += !places.own()[c].slot(i).empty();
  }
  const unsigned order[2] = {used[0] <= used[1] ? 0u : 1u, used[0] <= used[1] ? 1u : 0u};
  for (const unsigned c : order) {
    const CombinedBucket& combined = places.own()[c];
    const bool main_first = positions.at[c].side == 0;
    for (unsigned n = 0; n < kSlotsPerCombined; ++n) {
      const unsigned i = main_first ? n : kSlotsPerCombined - 1 - n;
      if (combined.slot(i).empty()) return SlotRef{combined.slot_offset(i), combined.slot(i)};
    }
  }
  return SlotRef{};
}

bool known_other(std::span<const Candidate> examined, const SlotRef& ref) {
  return std::any_of(examined.begin(), examined.end(), [&](const Candidate& candidate) {
    return candidate.ref.offset == ref.offset && candidate.ref.slot == ref.slot;
  });
}

// Slots with the key's fingerprint that appeared since the key was looked up.
unsigned newcomers(std::span<const CombinedBucket> seen, const Key& key, uint64_t own_slot,
                   std::span<const Candidate> examined, std::span<Candidate> found) {
  unsigned count = 0;
  for (const CombinedBucket& combined : seen) {
    for (unsigned i = 0; i < kSlotsPerCombined; ++i) {
      const SlotRef ref{combined.slot_offset(i), combined.slot(i)};
      if (ref.slot.empty() || ref.slot.fingerprint() != key.fingerprint()) continue;
      if (ref.offset == own_slot || known_other(examined, ref)) continue;
      KV_ASSERT(count < found.size());
      found[count++].ref = ref;
    }
  }
  return count;
}

Task<bool> swap_word(Remote& remote, uint64_t offset, Slot expect, Slot desire) {
  kv_op op[1] = {cas_op(offset, expect.word, desire.word)};
  const uint32_t s = co_await remote.batch(op);
  co_return s == KV_FABRIC_OK&& op[0].result == expect.word;
}

// Of the newcomers, which may be of the key: those that are tentative, and those that do not
// verify, whose inserter died. A live one means that this inserter lost. kOk: none is live,
// kAbsent: one is, or it can't be told.
Task<Status> find_rivals(Remote& remote, const layout::Geometry& geometry, const Key& key,
                         std::span<Candidate> found, Rivals& rivals) {
  for (size_t at = 0; at < found.size(); at += kCandidatesMax) {
    const std::span<Candidate> some =
        found.subspan(at, std::min<size_t>(kCandidatesMax, found.size() - at));
    if (const Status s = co_await examine(remote, geometry, key, some); s != Status::kOk) {
      co_return s;
    }
  }
  for (const Candidate& candidate : found) {
    if (candidate.verdict == Candidate::Verdict::kOther) continue;
    if (!candidate.ref.slot.tentative()) co_return Status::kAbsent;
    if (KV_VARIANT(leave_tentative_copies)) continue;
    rivals.entries[rivals.count++] = candidate.ref;
  }
  co_return Status::kOk;
}

// False: one has committed or moved on, look again.
Task<bool> kill(Remote& remote, const Rivals& rivals) {
  for (unsigned i = 0; i < rivals.count; ++i) {
    const SlotRef& rival = rivals.entries[i];
    if (!co_await swap_word(remote, rival.offset, rival.slot, rival.slot.emptied())) {
      co_return false;
    }
  }
  co_return true;
}

}  // namespace

Task<InsertResult> begin_insert(Remote& remote, Directory& directory,
                                const layout::Geometry& geometry, const Key& key,
                                const Places& places, Slot contents,
                                std::span<const Candidate> examined, Rivals& rivals,
                                std::span<kv_op> first, std::span<const kv_op> behind) {
  rivals.count = 0;
  // Rare paths end somewhere: a table of many subtables would be full of nothing.
  constexpr unsigned kEarlyDepthMax = 4;
  if (directory.entry_of(key.hash).depth() < kEarlyDepthMax && KV_BUGGIFY(early_split)) {
    co_return InsertResult{InsertOutcome::kFull, {}};
  }
  if (places.filling()) co_return InsertResult{InsertOutcome::kFilling, {}};
  const SlotRef target = choose_slot(places, key.hash);
  if (target.offset == 0) co_return InsertResult{InsertOutcome::kFull, {}};

  const uint64_t flags = KV_VARIANT(commit_without_tentative) ? 0 : Slot::kTentative;
  const Slot tentative =
      target.slot.successor(key.fingerprint(), flags, contents.size_class(), contents.address());
  CombinedBucket seen[2];
  HeaderSpan after[2];
  kv_op ops[9];
  unsigned count = 0;
  KV_ASSERT(first.size() <= 3);
  KV_ASSERT(behind.size() <= 1);
  for (const kv_op& op : first) ops[count++] = op;
  const bool too_early = KV_VARIANT(cache_reads_early);
  for (const kv_op& op : behind.first(too_early ? behind.size() : 0)) ops[count++] = op;
  const unsigned cas_at = count;
  ops[count++] = cas_op(target.offset, target.slot.word, tentative.word);
  for (const kv_op& op : behind.first(too_early ? 0 : behind.size())) ops[count++] = op;
  for (unsigned c = 0; c < 2; ++c) {
    seen[c].offset = places.own()[c].offset;
    ops[count++] = read_op(seen[c].offset, seen[c].buckets, layout::kCombinedBytes);
  }
  for (unsigned c = 0; c < 2; ++c) ops[count++] = after[c].read_of(seen[c]);
  if (const uint32_t s = co_await remote.batch({ops, count}); s != KV_FABRIC_OK) {
    co_return InsertResult{InsertOutcome::kLost, {}};
  }
  if (ops[cas_at].result != target.slot.word) co_return InsertResult{InsertOutcome::kConflict, {}};

  if (KV_VARIANT(commit_without_tentative)) {
    co_return InsertResult{InsertOutcome::kInserted, {target.offset, tentative}};
  }
  // A header that changed, from before to after the slots were read, means that a split began: it
  // may have passed this slot by already, so the entry must not commit here, and it may have taken
  // another copy of the key along.
  bool unchanged = !KV_BUGGIFY(spurious_conflict);
  for (unsigned c = 0; c < 2; ++c) {
    unchanged &= after[c].same_as(places.own()[c]) || KV_VARIANT(commit_over_split);
  }
  Candidate found[2 * kSlotsPerCombined];
  const unsigned copies =
      KV_VARIANT(forget_duplicate_check) ? 0 : newcomers(seen, key, target.offset, examined, found);
  if (unchanged && copies > 0) {
    const Status s = co_await find_rivals(remote, geometry, key, {found, copies}, rivals);
    unchanged = s == Status::kOk;
  }
  const SlotRef entry{target.offset, tentative};
  if (!unchanged) {
    co_await withdraw_insert(remote, entry);
    co_return InsertResult{remote.broken() ? InsertOutcome::kLost : InsertOutcome::kConflict, {}};
  }
  co_return InsertResult{InsertOutcome::kTentative, entry, copies > 0};
}

Task<InsertResult> commit_insert(Remote& remote, InsertResult begun, const Rivals& rivals,
                                 std::span<const kv_op> behind) {
  const SlotRef entry = begun.slot;
  if (!co_await kill(remote, rivals)) {
    co_await withdraw_insert(remote, entry);
    co_return InsertResult{remote.broken() ? InsertOutcome::kLost : InsertOutcome::kConflict, {}};
  }
  const SlotRef live{entry.offset, entry.slot.with_flags(0)};
  kv_op ops[2] = {cas_op(entry.offset, entry.slot.word, live.slot.word)};
  unsigned count = 1;
  KV_ASSERT(behind.size() <= 1);
  for (const kv_op& op : behind) ops[count++] = op;
  const uint32_t s = co_await remote.batch({ops, count});
  if (s == KV_FABRIC_DOWN) co_return InsertResult{InsertOutcome::kLost, {}};
  if (s != KV_FABRIC_OK) co_return InsertResult{InsertOutcome::kUnknown, live};
  if (ops[0].result != entry.slot.word) co_return InsertResult{InsertOutcome::kConflict, {}};
  co_return InsertResult{InsertOutcome::kInserted, live, begun.met_others};
}

Task<bool> withdraw_insert(Remote& remote, SlotRef entry) {
  return swap_word(remote, entry.offset, entry.slot, entry.slot.emptied());
}

}  // namespace kvstore
