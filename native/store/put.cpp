// put and delete: an immutable object is written out of place and published by one CAS on the
// index slot, the linearization point. The delete of a key that has a fence publishes an object
// too, a tombstone, so that the fence stays.

#include <array>
#include <optional>

#include "base/variant.hpp"
#include "index/split.hpp"
#include "layout/object.hpp"
#include "store/client.hpp"
#include "store/draft.hpp"
#include "store/operations.hpp"

namespace kvstore {

using layout::Slot;

namespace {

constexpr unsigned kAttemptsMax = 100'000;
enum class Step {
  kDone,     // published
  kAgain,    // somebody else was faster, or a split is under way: look up again
  kRefused,  // a condition does not hold
  kFenced,   // what is there was written by a later holder
  kForeign,  // or under another lock
  kGone,     // nothing is there that a tombstone should stand for
  kCarry,    // it has a fence that the draft must carry on
  kFull,     // the subtable has no room for the key
  kLost,     // connection lost, nothing applied
  kDamaged,  // what is at the node can't be
  kUnended,  // published, but copies of what was there may still be read
  kUnknown   // connection lost on the publishing CAS, and it can't be told
};

struct PutProgress {
  SlotRef slot;
  uint64_t subtable = 0;
  layout::Fence fence;  // that was met
  bool published = false;
};

// The look-up that a put begins with. The object's WRITEs travel along: the first with the bucket
// READs, the second, which needs the first's checksum, with the header READ.
Task<Status> look_up_writing(Channel& channel, const Key& key, Draft& draft, EarlyGuard& early,
                             Lookup& lookup) {
  bool found = false;
  if (const Status s =
          co_await read_places_guessing(channel, key, lookup, draft.first(), early.ops(), found);
      s != Status::kOk) {
    co_return s;
  }
  draft.first_completed();
  if (found) co_return Status::kOk;
  SlotRef unsound;
  const Status s = co_await examine_matches(channel, key, lookup, draft.pending(), unsound);
  if (lookup.examined_count > 0) draft.posted();
  if (s == Status::kAbsent && unsound.offset != 0) co_return Status::kPending;
  co_return s;
}

Step step_of(Status not_ended) {
  const bool again = not_ended == Status::kAbsent || not_ended == Status::kDeadlineExceeded;
  return again ? Step::kAgain : Step::kLost;
}

// Has the slot point at the draft by one CAS, with `behind` behind it. kDone: it does. Otherwise
// kAgain, kLost or kUnknown. `executed`: whether all has been.
Task<Step> swing(Channel& channel, const SlotRef& ref, Slot after, Draft& draft,
                 std::span<kv_op> behind, bool& executed) {
  const Slot before = ref.slot;
  kv_op ops[4];
  unsigned count = 0;
  for (const kv_op& op : draft.pending()) ops[count++] = op;
  draft.posted();
  kv_op& publishing = ops[count++];
  publishing = cas_op(ref.offset, before.word, after.word);
  for (const kv_op& op : behind) ops[count++] = op;
  const uint32_t s = co_await channel.remote.batch({ops, count});
  executed = s == KV_FABRIC_OK;
  if (s == KV_FABRIC_DOWN) co_return Step::kLost;
  Status fate = Status::kOk;
  if (s != KV_FABRIC_OK) {
    fate = co_await resolve_lost_cas(channel, ref.offset, before, after);
    // What else was in the batch may not have been executed: this draft must not be published.
    if (fate == Status::kAbsent) co_return Step::kLost;
  } else if (publishing.result != before.word && KV_VARIANT(patch_after_failed_cas)) {
    ops[0] = cas_op(ref.offset, publishing.result, after.word);
    if (co_await channel.remote.batch({ops, 1}) != KV_FABRIC_OK) co_return Step::kUnknown;
    if (ops[0].result != ops[0].operand) co_return Step::kAgain;
  } else if (publishing.result != before.word && !KV_VARIANT(ignore_failed_cas)) {
    co_return Step::kAgain;
  }
  co_return fate == Status::kOk ? Step::kDone : Step::kUnknown;
}

void retire(Channel& channel, Slot before) {
  if (KV_VARIANT(forget_retired_block)) return;
  channel.attachment->limbo.retire({before.offset(), before.size_class()});
}

// The same for a slot that clients have copies of, on a regular node: see CopiesEndedLate.
Task<Step> replace_first(Channel& channel, const Key& key, SlotRef& ref, uint64_t subtable,
                         const EarlyGuard* early, Draft& draft) {
  const Replacement to = draft.replacement(key);
  CopiesEndedLate ended(channel, key.hash, ref, to);
  if (const Status s = co_await ended.begin(early); s != Status::kOk) co_return step_of(s);
  const Slot before = ref.slot;
  const Slot after =
      before.successor(key.fingerprint(), KV_VARIANT(regular_forgets_shared) ? 0 : Slot::kShared,
                       to.slot.size_class(), to.slot.address());
  bool executed = false;
  const Step step = co_await swing(channel, ref, after, draft, ended.ops(), executed);
  if (step != Step::kDone && step != Step::kUnknown) co_return step;
  ref.slot = after;
  const Status status = co_await ended.finish(executed);
  if (step == Step::kUnknown) co_return step;
  retire(channel, before);
  if (status != Status::kOk) co_return Step::kUnended;
  if (ended.kept().begun()) {
    draft.finish_copy(ended.kept(), *channel.attachment, key, ref, subtable);
  }
  co_return Step::kDone;
}

// Replaces the object that a slot points at. `ref` becomes what the slot holds then.
Task<Step> replace(Channel& channel, const Key& key, SlotRef& ref, uint64_t subtable,
                   const EarlyGuard* early, Draft& draft) {
  // Where nobody is registered any more it is frozen all the same, to be `shared` no longer.
  const bool has_owners = early == nullptr || !early->has_read() || early->owners().owners() != 0;
  const bool may_be_late = channel.attachment->coherence.is_regular() && !draft.buries();
  if (ref.slot.guarded() && has_owners && may_be_late) {
    co_return co_await replace_first(channel, key, ref, subtable, early, draft);
  }
  CopiesEnded ended;
  const Replacement to = draft.replacement(key);
  if (const Status s = co_await end_copies(channel, key.hash, ref, &to, ended, early);
      s != Status::kOk) {
    co_return step_of(s);
  }
  const Slot before = ref.slot;
  const uint64_t guard = KV_VARIANT(cache_keeps_unshared) ? 0 : ended.guard;
  const Slot after =
      before.successor(key.fingerprint(), guard, to.slot.size_class(), to.slot.address());
  if (KV_VARIANT(cache_hands_early) && ended.kept.begun()) draft.hand_early(ended.kept, key);
  bool executed = false;
  const Step step =
      co_await swing(channel, ref, after, draft, {&ended.clear, ended.clears ? 1u : 0u}, executed);
  ref.slot = after;
  if (step != Step::kDone) co_return step;
  if (KV_VARIANT(cache_renews_late)) channel.attachment->coherence.renew_stamp(key.hash, {});
  if (after.hosted()) {
    channel.attachment->coherence.host()->note_hosted(key.hash, draft.version());
  }
  if (ended.kept.begun()) draft.finish_copy(ended.kept, *channel.attachment, key, ref, subtable);
  retire(channel, before);
  co_return Step::kDone;
}

// A put of what this client has a copy of, and nobody but clients of its host.
struct HostedWrite {
  ClientCache::HostedCopy copy;
  ClientCache::Fill kept;  // of what is written, if that pays
  Slot after;
  Stamp opened;
  uint64_t local_ns = 0;  // what copies have cost here
};

// Ends the copies of this host. False: it is no such put.
bool begin_hosted(Attachment& attachment, const Key& key, const Draft& draft, HostedWrite& write) {
  Coherence& coherence = attachment.coherence;
  ClientCache* const cache = coherence.cache();
  if (cache == nullptr || coherence.host() == nullptr) return false;
  if (!draft.is_whole() || draft.buries()) return false;
  if (!cache->find_hosted(key, coherence.term(), write.copy)) return false;
  const uint64_t began_ns = monotonic_ns();
  const Replacement to = draft.replacement(key);
  const uint32_t record = attachment.geometry.record_of(key.hash);
  if (to.may_be_kept && cache->takes(to.value_bytes)) {
    cache->begin_rewrite(key.hash, record, coherence.term(), write.kept);
  }
  if (!write.kept.begun()) cache->drop(key.hash, record, ClientCache::By::kOwnWrite);
  write.after = write.copy.slot.successor(key.fingerprint(), write.kept.begun() ? Slot::kHosted : 0,
                                          to.slot.size_class(), to.slot.address());
  const Successor successor{write.after.word, to.value_bytes};
  if (!KV_VARIANT(hosted_writes_openly)) {
    write.opened = coherence.host()->begin_write(key.hash, successor);
  }
  write.local_ns = monotonic_ns() - began_ns;
  return true;
}

// Once it is known whether the slot was replaced: copies may be made again.
void end_hosted(Attachment& attachment, const Key& key, const Draft& draft, HostedWrite& write,
                bool replaced) {
  HostStamps& host = *attachment.coherence.host();
  // Whoever makes a copy from here on must know whose the slot is.
  if (replaced && write.after.hosted()) host.note_hosted(key.hash, draft.version());
  const bool opened = write.opened.line != nullptr;
  write.kept.follow(opened ? host.end_write(key.hash, write.opened) : host.renew(key.hash, {}));
}

// Replaces it in one round trip: the copies of this host have ended before, and none are made until
// the slot has been replaced; whoever else makes one changes the slot. kAgain: it is no such put,
// or not any more.
Task<Step> replace_hosted(Channel& channel, const Key& key, Draft& draft, PutProgress& progress) {
  Attachment& attachment = *channel.attachment;
  HostedWrite write;
  if (!begin_hosted(attachment, key, draft, write)) co_return Step::kAgain;
  const SlotRef before{write.copy.slot_offset, write.copy.slot};
  bool executed = false;
  const Step step = co_await swing(channel, before, write.after, draft, {}, executed);
  if (step == Step::kUnknown) {
    // It may still come to be executed.
    channel.note_lost();
    attachment.coherence.end_write_later(key.hash, write.opened);
    co_return step;
  }
  const uint64_t answered_ns = monotonic_ns();
  end_hosted(attachment, key, draft, write, step == Step::kDone);
  // Most likely a client of another host has made a copy.
  if (step == Step::kAgain) attachment.expect_shared(key.hash, before.slot);
  if (step != Step::kDone) co_return step;
  retire(channel, before.slot);
  progress.slot = {before.offset, write.after};
  progress.subtable = write.copy.subtable;
  if (write.kept.begun()) {
    draft.finish_copy(write.kept, attachment, key, progress.slot, progress.subtable);
  }
  attachment.coherence.note_write_at_once();
  // What it takes here others take again, for the copies that they make anew.
  attachment.coherence.cache()->note_ending(2 * (write.local_ns + monotonic_ns() - answered_ns));
  co_return Step::kDone;
}

// Also tells the version that is there: a caller whose condition fails wants to know it.
bool condition_holds(const Attachment& attachment, kv_call& call, const Found& found) {
  const bool present = !expired(attachment, found.header);
  call.version = present ? found.header.version : 0;
  if ((call.flags & KV_IF_ABSENT) != 0 && present) return false;
  if ((call.flags & KV_IF_VERSION) != 0) {
    return present && found.header.version == call.if_version;
  }
  return true;
}

// Commits a tentative entry, once nobody can read a copy of the key's absence. `seen` is the key's
// absent record, read when the entry stood: whoever registers later meets the entry.
Task<InsertResult> appear(Channel& channel, const Key& key, InsertResult begun,
                          const Rivals& rivals, layout::CoherenceRecord seen) {
  CopiesEnded ended;
  if (seen.owners() != 0 && !KV_VARIANT(cache_inserts_unseen)) {
    const Status s = co_await end_copies_of_absence(channel, key.hash, ended);
    if (s != Status::kOk) {
      co_await withdraw_insert(channel.remote, begun.slot);
      const bool lost = channel.remote.broken() || step_of(s) == Step::kLost;
      co_return InsertResult{lost ? InsertOutcome::kLost : InsertOutcome::kConflict, {}};
    }
  }
  const std::span<const kv_op> clear(&ended.clear, ended.clears ? 1 : 0);
  co_return co_await commit_insert(channel.remote, begun, rivals, clear);
}

Task<Step> insert_new(Channel& channel, const Key& key, Draft& draft, Lookup& lookup,
                      SlotRef& slot) {
  const layout::Geometry& geometry = channel.attachment->geometry;
  layout::CoherenceRecord seen;
  const kv_op look[1] = {
      read_op(geometry.record_offset(geometry.absent_record_of(key.hash)), &seen.word, 8)};
  Rivals rivals;
  InsertResult result = co_await begin_insert(
      channel.remote, channel.attachment->directory, geometry, key, lookup.places,
      draft.replacement(key).slot, {lookup.examined, lookup.examined_count}, rivals,
      draft.pending(), look);
  const bool nothing_posted =
      result.outcome == InsertOutcome::kFull || result.outcome == InsertOutcome::kFilling;
  if (!nothing_posted) draft.posted();
  if (result.outcome == InsertOutcome::kTentative) {
    result = co_await appear(channel, key, result, rivals, seen);
  }
  slot = result.slot;
  if (result.met_others) ++channel.lane().counts().cas_conflicts;
  switch (result.outcome) {
    case InsertOutcome::kInserted:
      co_return Step::kDone;
    case InsertOutcome::kConflict:
      co_return Step::kAgain;
    case InsertOutcome::kFull:
      co_return Step::kFull;
    case InsertOutcome::kLost:
      co_return Step::kLost;
    case InsertOutcome::kFilling: {
      const Status s = co_await help_split(channel, key, lookup.places);
      co_return s == Status::kOk || s == Status::kDeadlineExceeded ? Step::kAgain : Step::kLost;
    }
    case InsertOutcome::kTentative:
    case InsertOutcome::kUnknown:
      break;
  }
  // The commit's answer was lost. Before it the slot held the tentative word, one version earlier.
  const Slot live = result.slot.slot;
  const unsigned earlier =
      (live.version() + (1u << Slot::kVersionBits) - 2) & ((1u << Slot::kVersionBits) - 1);
  const Slot tentative = Slot{uint64_t{earlier} << Slot::kVersionShift}.successor(
      key.fingerprint(), Slot::kTentative, live.size_class(), live.address());
  const Status fate = co_await resolve_lost_cas(channel, result.slot.offset, tentative, live);
  if (fate == Status::kOk) co_return Step::kDone;
  if (fate == Status::kAbsent) {
    // Not committed: take the tentative entry out, so that nobody has to.
    kv_op undo[1] = {cas_op(result.slot.offset, tentative.word, tentative.emptied().word)};
    co_await channel.remote.batch(undo);
    co_return Step::kLost;
  }
  co_return Step::kUnknown;
}

// Whether the fence of what is there lets a draft with these contents take its place: kDone.
Task<Step> pass_fence(Channel& channel, const Key& key, const kv_call& call, const Found& found,
                      const Contents& contents, layout::Fence& there) {
  if ((found.header.flags & layout::kObjectFence) == 0) co_return Step::kDone;
  const Slot slot = found.ref.slot;
  const uint64_t at =
      layout::extension_offset(slot.size_class(), key.bytes, found.header.value_bytes);
  layout::FenceExtension extension;
  if (at + sizeof extension > layout::class_bytes(slot.size_class())) co_return Step::kDamaged;
  kv_op op[1] = {read_op(slot.offset() + at, &extension, sizeof extension)};
  if (co_await channel.remote.batch(op) != KV_FABRIC_OK) co_return Step::kLost;
  if (extension.checksum != layout::fence_checksum(extension.fence)) co_return Step::kDamaged;
  there = extension.fence;
  if (KV_VARIANT(ignore_fence)) co_return Step::kDone;
  if ((call.flags & KV_WITH_FENCE) == 0) {
    const bool carried = contents.fenced && contents.fence == there;
    co_return carried || KV_VARIANT(drop_fence) ? Step::kDone : Step::kCarry;
  }
  if (!contents.fence.same_lock(there)) co_return Step::kForeign;
  co_return contents.fence.is_older_than(there) ? Step::kFenced : Step::kDone;
}

// One attempt, from look-up to publication.
Task<Step> attempt_put(Channel& channel, const Key& key, kv_call& call, const Contents& contents,
                       Draft& draft, bool first_attempt, PutProgress& progress) {
  Lookup lookup;
  Status s;
  std::optional<EarlyGuard> early;
  // What is refused must leave the slot as it is.
  const bool certain = (call.flags & (KV_IF_ABSENT | KV_IF_VERSION | KV_WITH_FENCE)) == 0;
  if (first_attempt && certain) {
    const Step at_once = co_await replace_hosted(channel, key, draft, progress);
    if (at_once != Step::kAgain) co_return at_once;
  }
  if (first_attempt) {
    if (certain) channel.attachment->drop_ended(key);
    early.emplace(channel, key, certain);
    s = co_await look_up_writing(channel, key, draft, *early, lookup);
  } else {
    s = co_await look_up(channel, key, lookup, true, draft.pending());
    draft.posted();
  }
  progress.subtable = lookup.places.subtable();
  if (s == Status::kPending || s == Status::kDeadlineExceeded) co_return Step::kAgain;
  const bool buries = contents.tombstone && (call.flags & KV_WITH_FENCE) == 0;
  const bool needs_final_miss = (call.flags & KV_IF_VERSION) != 0 || buries;
  if (s == Status::kOk) {
    const Step passed =
        co_await pass_fence(channel, key, call, lookup.found, contents, progress.fence);
    if (passed != Step::kDone) co_return passed;
    if (!condition_holds(*channel.attachment, call, lookup.found)) co_return Step::kRefused;
    if (lookup.found.ref.slot.moving()) {
      if (lookup.places.filling()) co_await help_split(channel, key, lookup.places);
      co_return channel.remote.broken() ? Step::kLost : Step::kAgain;
    }
    progress.slot = lookup.found.ref;
    co_return co_await replace(channel, key, progress.slot, progress.subtable,
                               early ? &*early : nullptr, draft);
  }
  if (s == Status::kCorrupt) co_return Step::kDamaged;
  if (s != Status::kAbsent) co_return Step::kLost;
  // Nothing is there any more, whatever an earlier attempt met.
  if (!KV_VARIANT(stale_version_on_refusal)) call.version = 0;
  if (needs_final_miss) {
    const Status confirmed = co_await confirm_miss(channel, key, lookup.places);
    if (confirmed != Status::kAbsent) {
      co_return confirmed == Status::kPending ? Step::kAgain : Step::kLost;
    }
    co_return (call.flags & KV_IF_VERSION) != 0 ? Step::kRefused : Step::kGone;
  }
  co_return co_await insert_new(channel, key, draft, lookup, progress.slot);
}

// Makes room in the key's subtable. Where no subtable can be had any more, entries are evicted.
Task<Status> make_room(Channel& channel, const Key& key) {
  Attachment& attachment = *channel.attachment;
  ++channel.lane().counts().splits;
  const SplitEnvironment environment{
      attachment.segments,          attachment.directory,
      attachment.registration,      attachment.split_running,
      channel.lane().deadline_ns(), !channel.lane().client().any_unfenced(channel.member())};
  const Status s = co_await split_subtable(channel.remote, environment, key.hash);
  if (channel.remote.broken()) {
    channel.want_scrub();
    attachment.split_left.store(true, std::memory_order_release);
  }
  if (s != Status::kOutOfMemory || !attachment.evicts()) co_return s;
  attachment.full.store(true, std::memory_order_relaxed);
  co_return co_await evict_in_places(channel, key);
}

// Only of a broken variant: what this thread deleted a while ago is retired once more.
[[maybe_unused]] void retire_again(Attachment& attachment, Slot before) {
  static thread_local std::array<Block, 32> deleted;
  static thread_local size_t count = 0;
  Block& place = deleted[count++ % deleted.size()];
  if (place.offset != 0) attachment.limbo.retire(place);
  place = {before.offset(), before.size_class()};
}

// kPending: what is there has a fence, now in `progress`, that the draft does not carry.
Task<Status> publish(Channel& channel, const Key& key, kv_call& call, const Contents& contents,
                     Draft& draft, PutProgress& progress) {
  for (unsigned attempt = 0; attempt < kAttemptsMax; ++attempt) {
    const Step step =
        co_await attempt_put(channel, key, call, contents, draft, attempt == 0, progress);
    switch (step) {
      case Step::kDone:
        if (KV_VARIANT(publish_before_write)) co_await channel.remote.batch(draft.withheld());
        co_return Status::kOk;
      case Step::kRefused:
        co_return Status::kConditionFailed;
      case Step::kFenced:
        co_return Status::kFencedWrite;
      case Step::kForeign:
        co_return Status::kFenceMismatch;
      case Step::kGone:
        co_return Status::kAbsent;
      case Step::kCarry:
        co_return Status::kPending;
      case Step::kLost:
        co_return Status::kNodeUnreachable;
      case Step::kDamaged:
        co_return Status::kCorrupt;
      case Step::kUnended:
        progress.published = true;
        co_return Status::kOutcomeUnknown;
      case Step::kUnknown:
        co_return Status::kOutcomeUnknown;
      case Step::kFull:
        if (const Status s = co_await make_room(channel, key); s != Status::kOk) co_return s;
        if (channel.lane().cancelled()) co_return Status::kDeadlineExceeded;
        break;
      case Step::kAgain:
        if (const Status s = co_await back_off(channel, attempt); s != Status::kOk) co_return s;
    }
  }
  co_return Status::kDeadlineExceeded;
}

// Puts an object with these contents in the place of the key's, or inserts it. `version` becomes
// its version.
Task<Status> put_contents(Channel& channel, const Key& key, kv_call& call, const Contents& contents,
                          PutProgress& progress, uint64_t& version) {
  Attachment& attachment = *channel.attachment;
  const unsigned size_class = contents.size_class(key);
  const layout::Geometry& geometry = attachment.geometry;
  if (size_class == 0 ||
      layout::class_bytes(size_class) > (geometry.segment_count - 4) * geometry.segment_bytes) {
    co_return Status::kValueTooLarge;
  }
  const TakeResult taken = co_await allocate(channel, size_class);
  if (taken.status != Status::kOk) co_return taken.status;

  Draft draft(attachment, key, contents, taken.block, attachment.next_version());
  const Status status = co_await publish(channel, key, call, contents, draft, progress);
  switch (status) {
    case Status::kOk:
      version = draft.version();
      channel.touch(progress.subtable, progress.slot.offset, key, call, true);
      break;
    case Status::kOutcomeUnknown:
    case Status::kNodeUnreachable:
      // The block may be published, or still be written to: the scrub tells.
      if (!progress.published) channel.want_scrub();
      if (KV_VARIANT(free_lost_draft)) attachment.limbo.retire(taken.block);
      break;
    default:
      // A tentative entry may have shown the block to other inserters, so it waits its epoch.
      attachment.limbo.retire(taken.block);
  }
  co_return status;
}

// The same with the caller's fence, or with that of what is there.
Task<Status> put_fenced(Channel& channel, const Key& key, kv_call& call, Contents contents,
                        PutProgress& progress, uint64_t& version) {
  contents.fenced = (call.flags & KV_WITH_FENCE) != 0;
  if (contents.fenced) contents.fence = {call.fence.lock, call.fence.token};
  for (unsigned attempt = 0; attempt < kAttemptsMax; ++attempt) {
    const Status status = co_await put_contents(channel, key, call, contents, progress, version);
    if (status != Status::kPending) co_return status;
    contents.fenced = true;
    contents.fence = progress.fence;
    if (channel.lane().cancelled()) break;
  }
  co_return Status::kDeadlineExceeded;
}

// A delete that leaves a tombstone with the fence. Of a key that is not there it does so too: who
// held the lock before must not bring it back.
Task<Status> bury(Channel& channel, const Key& key, kv_call& call) {
  Contents contents;
  contents.tombstone = true;
  PutProgress progress;
  uint64_t ignored = 0;
  const Status status = co_await put_fenced(channel, key, call, contents, progress, ignored);
  if (status != Status::kOk) co_return status;
  channel.attachment->addresses.forget(key.hash);
  // The attempt has told which version it met.
  co_return call.version == 0 ? Status::kAbsent : Status::kOk;
}

// Deletes what was found. kPending: somebody else was faster.
Task<Status> remove_found(Channel& channel, const Key& key, const Found& found, kv_call& call) {
  Attachment& attachment = *channel.attachment;
  SlotRef ref = found.ref;
  CopiesEnded ended;
  const Status guarded = co_await end_copies(channel, key.hash, ref, nullptr, ended);
  if (guarded == Status::kAbsent) co_return Status::kPending;
  if (guarded != Status::kOk) co_return guarded;
  const Slot before = ref.slot;
  const Slot after = before.emptied();
  kv_op ops[2] = {cas_op(ref.offset, before.word, after.word), ended.clear};
  const uint32_t posted = co_await channel.remote.batch({ops, ended.clears ? 2u : 1u});
  if (posted == KV_FABRIC_DOWN) co_return Status::kNodeUnreachable;
  if (posted != KV_FABRIC_OK) {
    // An empty word says not who emptied it, so the block is left to the scrub.
    channel.want_scrub();
    const Status fate = co_await resolve_lost_cas(channel, ref.offset, before, after);
    if (fate == Status::kOk && KV_VARIANT(lost_delete_acknowledged)) co_return fate;
    co_return fate == Status::kAbsent ? Status::kNodeUnreachable : Status::kOutcomeUnknown;
  }
  if (ops[0].result != before.word) co_return Status::kPending;
  attachment.limbo.retire({before.offset(), before.size_class()});
  if (KV_VARIANT(retire_twice)) retire_again(attachment, before);
  attachment.addresses.forget(key.hash);
  call.version = found.header.version;
  co_return expired(attachment, found.header) ? Status::kAbsent : Status::kOk;
}

}  // namespace

Task<Status> put(Channel& channel, const Key& key, kv_call& call) {
  channel.attachment->addresses.prefetch(key.hash);
  if (ClientCache* const cache = channel.attachment->coherence.cache()) cache->prefetch(key.hash);
  const Contents contents{.value = call.value,
                          .value_bytes = call.value_bytes,
                          .codec = uint8_t(call.codec),
                          .ttl_ms = call.ttl_ms};
  PutProgress progress;
  uint64_t version = 0;
  const Status status = co_await put_fenced(channel, key, call, contents, progress, version);
  if (status == Status::kOk) {
    call.version = version;
    channel.attachment->addresses.remember(
        key.hash, {progress.slot.offset, progress.slot.slot, progress.subtable, call.value_bytes});
    if (ClientCache* const cache = channel.attachment->coherence.cache()) cache->changed(key.hash);
  }
  co_return status;
}

Task<Status> remove(Channel& channel, const Key& key, kv_call& call) {
  Attachment& attachment = *channel.attachment;
  if ((call.flags & KV_WITH_FENCE) != 0) co_return co_await bury(channel, key, call);
  for (unsigned attempt = 0; attempt < kAttemptsMax; ++attempt) {
    Lookup lookup;
    const Status s = co_await look_up(channel, key, lookup, false);
    if (s != Status::kOk) {
      call.version = 0;
      const bool wanted = s == Status::kAbsent && (call.flags & KV_IF_VERSION) != 0;
      co_return wanted ? Status::kConditionFailed : s;
    }
    const Found& found = lookup.found;
    if (!condition_holds(attachment, call, found)) co_return Status::kConditionFailed;
    if ((found.header.flags & layout::kObjectTombstone) != 0) co_return Status::kAbsent;
    const bool fenced = (found.header.flags & layout::kObjectFence) != 0;
    if (fenced && !KV_VARIANT(delete_fence)) co_return co_await bury(channel, key, call);
    if (found.ref.slot.moving()) {
      if (lookup.places.filling()) {
        const Status helped = co_await help_split(channel, key, lookup.places);
        if (helped != Status::kOk) co_return helped;
      }
    } else {
      const Status removed = co_await remove_found(channel, key, found, call);
      if (removed != Status::kPending) co_return removed;
    }
    if (const Status b = co_await back_off(channel, attempt); b != Status::kOk) co_return b;
  }
  co_return Status::kDeadlineExceeded;
}

}  // namespace kvstore
