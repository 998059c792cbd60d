// Finding a key, and the pauses, helps and resolutions that its operations share.

#include <algorithm>
#include <optional>

#include "base/assert.hpp"
#include "base/variant.hpp"
#include "index/split.hpp"
#include "store/operations.hpp"

namespace kvstore {

using layout::Slot;

namespace {

constexpr unsigned kUnsoundMax = 256;
constexpr unsigned kDamagedAfter = 64;

}  // namespace

Task<Status> back_off(Channel& channel, unsigned attempt) {
  Lane& lane = channel.lane();
  if (lane.cancelled()) co_return Status::kDeadlineExceeded;
  ++lane.counts().cas_conflicts;
  const uint64_t now = monotonic_ns();
  if (now >= lane.deadline_ns()) co_return Status::kDeadlineExceeded;
  if (attempt < 4) co_return Status::kOk;
  // Clients that collide must not wait alike: registration and lane spread them.
  const uint64_t spread = channel.attachment->registration % 7 + lane.index() % 5 + 1;
  const uint64_t pause_ns =
      std::min<uint64_t>(uint64_t{1} << std::min(attempt, 16u), 50'000) * spread / 2;
  co_await lane.executor().sleep_until(now + pause_ns);
  co_return lane.cancelled() ? Status::kDeadlineExceeded : Status::kOk;
}

namespace {

// Whether a remembered slot makes sense: entries of the address cache may be torn.
bool may_lead_to(const layout::Geometry& geometry, Slot slot, const Key& key) {
  return slot.readable() && geometry.holds_block(slot.offset(), slot.size_class()) &&
         layout::kHeaderBytes + key.bytes <= layout::class_bytes(slot.size_class());
}

// What a key's slot led to when it was seen last.
class Guess {
 public:
  Guess(const Attachment& attachment, const Key& key) {
    KnownAddress known;
    if (!attachment.addresses.find(key.hash, known)) return;
    if (!may_lead_to(attachment.geometry, known.slot, key)) return;
    ref_ = {known.slot_offset, known.slot};
    object_.emplace(layout::kHeaderBytes + key.bytes);
  }
  bool made() const { return object_.has_value(); }
  kv_op read() const { return read_op(ref_.slot.offset(), object_->data(), object_->size()); }
  // Once it has been read together with the places.
  bool right(const Places& places, const Key& key, Found& found) const {
    const Slot now = places.at(ref_.offset);
    found.ref = {ref_.offset, now};
    if (KV_VARIANT(trust_guessed_header)) {
      found.ref = ref_;
    } else if (!now.leads_where(ref_.slot)) {
      return false;
    }
    found.subtable = places.subtable();
    return verdict_on(object_->data(), ref_.slot, key, found.header) == Candidate::Verdict::kMatch;
  }

 private:
  SlotRef ref_;
  std::optional<Scratch> object_;
};

}  // namespace

Task<Status> read_places_guessing(Channel& channel, const Key& key, Lookup& lookup,
                                  std::span<kv_op> first, std::span<kv_op> behind, bool& found) {
  Attachment& attachment = *channel.attachment;
  found = false;
  const Guess guess(attachment, key);
  // Behind the slots: one that is what it was vouches for what is read after it.
  kv_op last[kLastOpsMax];
  unsigned count = 0;
  if (guess.made()) {
    KV_ASSERT(behind.size() < kLastOpsMax);
    last[count++] = guess.read();
    for (const kv_op& op : behind) last[count++] = op;
  }
  const Status s = co_await read_places(channel.remote, attachment.directory, key.hash,
                                        lookup.places, first, {last, count});
  for (unsigned i = 1; i < count; ++i) behind[i - 1].result = last[i].result;
  if (s != Status::kOk || !guess.made()) co_return s;
  found = guess.right(lookup.places, key, lookup.found);
  LaneCounts& counts = channel.lane().counts();
  ++(found ? counts.address_hits : counts.address_stale);
  if (!found) attachment.addresses.forget(key.hash);
  co_return s;
}

Task<Status> examine_matches(Channel& channel, const Key& key, Lookup& lookup,
                             std::span<kv_op> first, SlotRef& unsound) {
  uint64_t matches = lookup.places.matches(key.fingerprint());
  lookup.examined_count = 0;
  while (matches != 0) {
    unsigned some = 0;
    while (matches != 0 && some < kCandidatesMax) {
      lookup.examined[some++].ref = lookup.places.numbered(take_lowest(matches));
    }
    lookup.examined_count = some;
    if (const Status s = co_await examine(channel.remote, channel.attachment->geometry, key,
                                          {lookup.examined, some}, first);
        s != Status::kOk) {
      co_return s;
    }
    first = {};
    for (unsigned i = 0; i < some; ++i) {
      const Candidate& candidate = lookup.examined[i];
      if (candidate.verdict == Candidate::Verdict::kUnsound) unsound = candidate.ref;
      if (candidate.verdict != Candidate::Verdict::kMatch) continue;
      lookup.found = Found{candidate.ref, candidate.header, lookup.places.subtable()};
      co_return Status::kOk;
    }
  }
  co_return Status::kAbsent;
}

// A slot that has stayed the same while what it points at did not verify: its object is damaged,
// and would stand in the way of every key with its fingerprint. The block is not trusted with
// anything any more.
static Task<Status> drop_damaged(Channel& channel, SlotRef damaged) {
  if (damaged.slot.moving()) co_return Status::kOk;
  co_return co_await empty_slot(channel, damaged);
}

Task<Status> confirm_miss(Channel& channel, const Key& key, const Places& places,
                          std::span<kv_op> first, bool* tentative) {
  Newcomers newcomers;
  const Status s =
      co_await confirm_absence(channel.remote, places, key.fingerprint(), newcomers, first);
  if (tentative != nullptr) *tentative = newcomers.tentative;
  if (s == Status::kAbsent || newcomers.count > kCandidatesMax) co_return Status::kPending;
  if (s != Status::kOk) co_return s;
  if (newcomers.count == 0) co_return Status::kAbsent;
  // Often the same neighbour, replaced meanwhile: were that no answer, a busy one would hide that
  // the key is absent for as long as it is.
  Candidate found[kCandidatesMax];
  for (unsigned i = 0; i < newcomers.count; ++i) found[i].ref = newcomers.slots[i];
  const Status examined =
      co_await examine(channel.remote, channel.attachment->geometry, key, {found, newcomers.count});
  if (examined != Status::kOk) co_return examined;
  for (unsigned i = 0; i < newcomers.count; ++i) {
    if (found[i].verdict != Candidate::Verdict::kOther) co_return Status::kPending;
  }
  co_return Status::kAbsent;
}

Task<Status> look_up(Channel& channel, const Key& key, Lookup& lookup, bool probe,
                     std::span<kv_op> first) {
  Slot suspect;
  unsigned times = 0;
  for (unsigned attempt = 0; attempt < kUnsoundMax; ++attempt) {
    bool found = false;
    if (const Status s = co_await read_places_guessing(channel, key, lookup, first, {}, found);
        s != Status::kOk || found) {
      co_return s;
    }
    first = {};
    SlotRef unsound;
    const Status s = co_await examine_matches(channel, key, lookup, {}, unsound);
    if (s != Status::kAbsent) co_return s;
    if (unsound.offset == 0) {
      if (probe || KV_VARIANT(absent_after_one_look)) co_return Status::kAbsent;
      const Status confirmed = co_await confirm_miss(channel, key, lookup.places);
      if (confirmed != Status::kPending) co_return confirmed;
    } else {
      ++channel.lane().counts().verify_retries;
      times = unsound.slot == suspect ? times + 1 : 0;
      suspect = unsound.slot;
      if (times >= kDamagedAfter) co_await drop_damaged(channel, unsound);
    }
    if (const Status s = co_await back_off(channel, attempt); s != Status::kOk) co_return s;
  }
  co_return Status::kCorrupt;
}

Task<Status> resolve_lost_cas(Channel& channel, uint64_t slot_offset, Slot before, Slot after) {
  if (KV_VARIANT(lost_cas_applied)) co_return Status::kOk;
  if (KV_VARIANT(lost_cas_not_applied)) co_return Status::kAbsent;
  constexpr unsigned kReconnectsMax = 3;
  for (unsigned attempt = 0; attempt < kReconnectsMax; ++attempt) {
    // The node gives up the old connection before it takes the new one, so an old CAS that is
    // still on its way cannot land after this READ.
    if (channel.ready(channel.lane().deadline_ns()) != Status::kOk) break;
    Slot seen;
    kv_op op[1] = {read_op(slot_offset, &seen.word, 8)};
    if (co_await channel.remote.batch(op) != KV_FABRIC_OK) continue;
    // A copy may have been made of it since.
    if (seen.leads_where(after)) co_return Status::kOk;
    if (seen.leads_where(before)) co_return Status::kAbsent;
    break;  // changed since: before ours or after ours can't be told
  }
  co_return Status::kOutcomeUnknown;
}

Task<Status> help_split(Channel& channel, const Key& key, const Places& places) {
  const Positions positions = positions_of(key.hash);
  for (const Position& position : positions.at) {
    const Status s =
        co_await carry_group(channel.remote, channel.attachment->geometry, places.sibling(),
                             places.subtable(), position.group, channel.lane().deadline_ns());
    if (s != Status::kOk && s != Status::kAbsent) co_return s;
  }
  co_return Status::kOk;
}

namespace {

// One round trip where the slot is remembered: READ slot, READ header and key. kPending: out of
// date.
Task<Status> contains_known(Channel& channel, const Key& key, const KnownAddress& known,
                            kv_call& call) {
  const Slot slot = known.slot;
  if (!may_lead_to(channel.attachment->geometry, slot, key)) co_return Status::kPending;
  Slot now;
  const Scratch object(layout::kHeaderBytes + key.bytes);
  kv_op ops[2] = {read_op(known.slot_offset, &now.word, 8),
                  read_op(slot.offset(), object.data(), layout::kHeaderBytes + key.bytes)};
  if (const uint32_t s = co_await channel.remote.batch(ops); s != KV_FABRIC_OK) {
    co_return from_fabric(s);
  }
  layout::ObjectHeader header;
  const bool same = now.leads_where(slot) &&
                    verdict_on(object.data(), slot, key, header) == Candidate::Verdict::kMatch;
  if (!same) co_return Status::kPending;
  if (expired(*channel.attachment, header)) co_return Status::kAbsent;
  call.version = header.version;
  call.data_bytes = header.value_bytes;
  call.codec = header.codec;
  co_return Status::kOk;
}

}  // namespace

Task<Status> contains(Channel& channel, const Key& key, kv_call& call) {
  KnownAddress known;
  if (channel.attachment->addresses.find(key.hash, known)) {
    const Status s = co_await contains_known(channel, key, known, call);
    if (s != Status::kPending) {
      ++channel.lane().counts().address_hits;
      if (is_use(call)) channel.touch(known.subtable, known.slot_offset, key, call, false);
      co_return s;
    }
    ++channel.lane().counts().address_stale;
    channel.attachment->addresses.forget(key.hash);
  }
  Lookup lookup;
  const Status s = co_await look_up(channel, key, lookup, (call.flags & KV_PROBE) != 0);
  if (s != Status::kOk) co_return s;
  if (expired(*channel.attachment, lookup.found.header)) co_return Status::kAbsent;
  call.version = lookup.found.header.version;
  call.data_bytes = lookup.found.header.value_bytes;
  call.codec = lookup.found.header.codec;
  if (is_use(call)) {
    channel.touch(lookup.found.subtable, lookup.found.ref.offset, key, call, false);
  }
  co_return Status::kOk;
}

}  // namespace kvstore
