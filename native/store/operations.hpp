// The operations on one key: coroutines over a channel to the key's node. Each returns when the
// outcome is known, the lane's deadline has passed or the connection is lost; it never waits
// without looking at the deadline.
//
// Prices, without conflicts, in verbs / round trips:
//   get, address known      2 READ                                            1
//   get                     2 READ, READ object                               2
//   get, absent             2 READ, 4 READ                                    2
//   put, existing           WRITE 2 READ, READ header, CAS                    3
//   put, address known      WRITE 2 READ READ header, CAS                     2
//   put of what this client has a copy of, and only clients of its host: WRITE CAS
//                                                                             1
//   put, new                WRITE 2 READ, CAS 5 READ, CAS                     3
//   contains, address known 2 READ                                            1
//   delete                  2 READ, READ header, CAS                          3
//   delete, address known   2 READ READ header, CAS                           2
// A fence takes one WRITE more, and where the key has one already, one READ and round trip; a
// delete then costs what a put does.
//   get, making a copy      FAA or CAS record, CAS slot, READ                 1
//   get, keeping an absence 2 READ, FAA or CAS record, 4 READ                 2
//   put, new, while others have kept its absence: 2 READ and the same messages before the last CAS
//   put, delete of what others have copies of: CAS, READ record, READ node line, a message to each
//   and the wait for its answer before the last CAS, and CAS record with it
// An object that is longer than the fabric's eager read takes one READ more, and over shm a value
// of 512 bytes or more that goes to a buffer of the caller's; a value too long to be assembled in
// scratch memory takes one WRITE more (value and header apart).

#pragma once

#include "index/candidate.hpp"
#include "index/insert.hpp"
#include "store/lane.hpp"

namespace kvstore {

Task<Status> get(Channel& channel, const Key& key, kv_call& call);
Task<Status> put(Channel& channel, const Key& key, kv_call& call);
Task<Status> remove(Channel& channel, const Key& key, kv_call& call);
Task<Status> contains(Channel& channel, const Key& key, kv_call& call);

// A probe keeps nothing from eviction: whoever only asks, or copies, does not use.
inline bool is_use(const kv_call& call) {
  return (call.flags & KV_PROBE) == 0 || call.pin_s != 0;
}

// Where a key was found: its slot and the header of its object.
struct Found {
  SlotRef ref;
  layout::ObjectHeader header;
  uint64_t subtable = 0;
};

// The first half of put, remove and contains: the places of the key, and its object's header if it
// is there. kOk, kAbsent (final unless `probe`), or an error. `first` goes ahead of the first
// READs.
struct Lookup {
  Places places;
  Found found;
  Candidate examined[kCandidatesMax];
  unsigned examined_count = 0;
};
Task<Status> look_up(Channel& channel, const Key& key, Lookup& lookup, bool probe,
                     std::span<kv_op> first = {});

// Reads the places of the key and, where its slot is remembered, in the same batch what that led
// to: if the slot has not changed, `found` says so, a round trip sooner. `first` goes ahead,
// `behind`, if anything is remembered, goes behind.
Task<Status> read_places_guessing(Channel& channel, const Key& key, Lookup& lookup,
                                  std::span<kv_op> first, std::span<kv_op> behind, bool& found);

// Looks at the slots in `lookup.places` that carry the key's fingerprint, a few at a time. kOk:
// found. kAbsent: none of them is the key's; `unsound` if one did not verify. `first` goes ahead of
// the first READs, if there are any.
Task<Status> examine_matches(Channel& channel, const Key& key, Lookup& lookup,
                             std::span<kv_op> first, SlotRef& unsound);

// Whether a key that is in none of `places` is absent for good. kAbsent: it is. kPending: look for
// it again. Otherwise an error. `first`, one at most, goes ahead of the second look, and
// `tentative` says whether that met somebody who may be about to insert the key.
Task<Status> confirm_miss(Channel& channel, const Key& key, const Places& places,
                          std::span<kv_op> first = {}, bool* tentative = nullptr);

// What became of a CAS whose completion was lost: READ the slot over a new connection.
// kOk: it was applied, if only this client can have written `after`. kAbsent: it was not, and can't
// be any more. kOutcomeUnknown otherwise.
Task<Status> resolve_lost_cas(Channel& channel, uint64_t slot_offset, layout::Slot before,
                              layout::Slot after);

// What is to take the place of a slot's object, and whether this client may keep a copy of it.
struct Replacement {
  layout::Slot slot;  // fingerprint, class and address
  uint64_t value_bytes = 0;
  bool may_be_kept = false;
};

// What a put does with the look-up of a key whose slot is remembered as guarded, a round trip
// sooner: it reads the owners of copies and, unless the node is regular, freezes the slot ahead of
// that.
class EarlyGuard {
 public:
  // `certain`: that it will replace what is there, whatever it is. A slot that is frozen stays so.
  EarlyGuard(Channel& channel, const Key& key, bool certain);
  EarlyGuard(const EarlyGuard&) = delete;
  EarlyGuard& operator=(const EarlyGuard&) = delete;
  // To be posted behind the READ of the slot; none if nobody is known to guard it.
  std::span<kv_op> ops() { return {ops_, count_}; }
  // Once they have been executed: whether the slot, read ahead of them, has been frozen by them.
  bool froze(const SlotRef& seen) const {
    const kv_op& freezing = ops_[freezing_];
    return count_ > 0 && freezes_ && seen.offset == ref_.offset &&
           freezing.result == seen.slot.word && freezing.result == freezing.operand;
  }
  // A node that has a client has admitted one.
  bool has_read() const { return node_.admissions != 0; }
  layout::Slot frozen() const { return layout::Slot{ops_[freezing_].desire}; }
  layout::CoherenceRecord owners() const { return owners_; }
  const layout::NodeLine& node() const { return node_; }

 private:
  SlotRef ref_;
  kv_op ops_[3];
  unsigned count_ = 0;
  bool freezes_ = false;
  unsigned freezing_ = 0;  // which of them
  layout::CoherenceRecord owners_;
  layout::NodeLine node_{};
};

// Before the slot of a key is replaced: sees to it that no client can read a copy of what it points
// at. A slot that nobody guards is left as it is, at no cost. Otherwise `ref` becomes the frozen
// word that the replacing CAS must expect, and `ended.clear` may go into the batch behind it.
// Where a copy of the replacement has been begun the slot must become what `ended.guard` says: this
// client is registered already. `replacement` is null where the slot will be emptied.
// `early`, if it was posted with the look-up that found the slot, saves a round trip.
// kAbsent: somebody has changed the slot; look the key up again.
struct CopiesEnded {
  bool clears = false;
  kv_op clear{};
  ClientCache::Fill kept;
  uint64_t guard = 0;  // a flag of the slot
};
Task<Status> end_copies(Channel& channel, uint64_t key_hash, SlotRef& ref,
                        const Replacement* replacement, CopiesEnded& ended,
                        const EarlyGuard* early = nullptr);

// The same of a regular node, where the slot is not frozen: the copies of what a write replaces end
// beside it, and before it returns. The slot must stay `shared`: until then the next writer has to
// end them too.
class CopiesEndedLate {
 public:
  CopiesEndedLate(Channel& channel, uint64_t key_hash, const SlotRef& ref,
                  const Replacement& replacement);
  CopiesEndedLate(const CopiesEndedLate&) = delete;
  CopiesEndedLate& operator=(const CopiesEndedLate&) = delete;

  // Before the slot is replaced. Owners that the look-up has read are told at once.
  Task<Status> begin(const EarlyGuard* early);
  // READs, to be posted behind the replacing CAS.
  std::span<kv_op> ops() { return ops_; }
  // Once the slot has been replaced. Unless it returns kOk, copies of what was there may be read
  // until this client has paid what it owes. `executed`: whether the READs have been.
  Task<Status> finish(bool executed);
  ClientCache::Fill& kept() { return kept_; }

 private:
  Task<Status> end_those_read();

  Channel& channel_;
  Coherence& coherence_;
  Coherence::Copies copies_;  // as far as it was known before
  bool told_ = false;
  Coherence::Question question_;
  layout::CoherenceRecord owners_;  // read afterwards
  layout::NodeLine node_;
  std::array<kv_op, 2> ops_;
  Postbox* postbox_ = nullptr;
  const Replacement& replacement_;
  ClientCache::Fill kept_;
};

// Before an insert whose tentative entry stands is committed: sees to it that no client can read a
// copy of the key's absence. Owners of such copies have been seen in the key's absent record.
Task<Status> end_copies_of_absence(Channel& channel, uint64_t key_hash, CopiesEnded& ended);

// Empties a slot, copies or not. kAbsent: somebody has changed it. What it pointed at is the
// caller's to retire.
Task<Status> empty_slot(Channel& channel, SlotRef ref);

// A block for an object: allocates, evicts, waits for reclamation, in this order, until the
// deadline.
Task<TakeResult> allocate(Channel& channel, unsigned size_class);

// Unlinks what a slot points at and retires its block. False if somebody was faster, or the answer
// was lost.
Task<bool> evict_slot(Channel& channel, SlotRef ref);

// Evicts some of those that the node's policy ranks lowest among sampled entries, first those whose
// blocks this client can use for the class.
struct Evicted {
  unsigned total = 0;
  unsigned useful = 0;
};
Task<Evicted> evict_sampled(Channel& channel, unsigned size_class, unsigned wanted);

// Evicts all that lies in the extents from `segment` on, `run` segments. kAbsent if something else
// than objects is among them: then nothing was evicted.
Task<Status> evict_segments(Channel& channel, uint64_t segment, uint32_t run);

// Evicts the entry of the key's own buckets that the policy ranks lowest, where neither a slot nor
// a new subtable is to be had.
Task<Status> evict_in_places(Channel& channel, const Key& key);

// Pauses a protocol loop after somebody else was faster, longer each time. kDeadlineExceeded when
// the lane's deadline has passed.
Task<Status> back_off(Channel& channel, unsigned attempt);

// Carries the groups of a key that a split is filling.
Task<Status> help_split(Channel& channel, const Key& key, const Places& places);

inline uint32_t expiry_ticks(const Attachment& attachment, uint64_t ttl_ms) {
  if (ttl_ms == 0) return 0;
  const uint64_t ticks = (attachment.node_clock_ms() + ttl_ms) / layout::kExpiryTickMs + 1;
  return ticks > UINT32_MAX ? UINT32_MAX : uint32_t(ticks);
}
// Whether the object says that its key is not there, or not any more.
inline bool expired(const Attachment& attachment, const layout::ObjectHeader& header) {
  if ((header.flags & layout::kObjectTombstone) != 0) return true;
  return header.expiry_ticks != 0 &&
         attachment.node_clock_ms() / layout::kExpiryTickMs >= header.expiry_ticks;
}

}  // namespace kvstore
