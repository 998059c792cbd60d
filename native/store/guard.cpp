// Replacing what a guarded slot points at: a slot of which clients have copies, or which a writer
// has frozen.

#include "layout/object.hpp"
#include "store/client.hpp"
#include "store/operations.hpp"

namespace kvstore {

using layout::CoherenceRecord;
using layout::Slot;

namespace {

// This client's end of messages, opened if need be; nullptr if it can't be reached.
Task<Status> open_postbox(Channel& channel, Postbox*& postbox) {
  LockSpace& locks = channel.attachment->locks;
  postbox = locks.postbox();
  if (postbox != nullptr) co_return Status::kOk;
  const Status s = co_await locks.open_postbox(channel.remote);
  if (s != Status::kOk && s != Status::kRefused) co_return s;
  postbox = locks.postbox();
  co_return Status::kOk;
}

// What a writer must know of the owners, as two READs.
void read_owners(const layout::Geometry& geometry, uint32_t record, CoherenceRecord& owners,
                 layout::NodeLine& node, std::span<kv_op, 2> ops) {
  ops[0] = read_op(geometry.record_offset(record), &owners.word, 8);
  ops[1] = read_op(layout::kNodeLineOffset, &node, sizeof node);
}

// Groups that have nothing under the record any more need not be asked again.
kv_op clearing(const layout::Geometry& geometry, const Coherence::Copies& copies) {
  const CoherenceRecord cleared = KV_VARIANT(cache_clears_blindly)
                                      ? CoherenceRecord{copies.owners.word & ~copies.empty_groups}
                                      : copies.owners.without_owners(copies.empty_groups);
  return cas_op(geometry.record_offset(copies.record), copies.owners.word, cleared.word);
}

void clear_empty(const layout::Geometry& geometry, const Coherence::Copies& copies,
                 CopiesEnded& ended) {
  if (copies.empty_groups == 0) return;
  ended.clear = clearing(geometry, copies);
  ended.clears = true;
}

// What the slot will hold, for who is told that its copy has ended.
void announce(const SlotRef& ref, const Replacement& replacement, uint64_t guard,
              Coherence::Copies& copies) {
  const Slot to = replacement.slot;
  copies.successor = ref.slot.successor(to.fingerprint(), guard, to.size_class(), to.address());
  copies.value_bytes = replacement.value_bytes;
}

// kAbsent: somebody has changed the slot.
Task<Status> freeze(Channel& channel, SlotRef& ref, Coherence::Copies& copies) {
  const layout::Geometry& geometry = channel.attachment->geometry;
  const Slot before = ref.slot;
  const Slot frozen = before.frozen() ? before : before.with_flags(Slot::kShared | Slot::kFrozen);
  const bool freezes = !before.frozen() && !KV_VARIANT(cache_writes_unfrozen);
  kv_op ops[3];
  unsigned count = 0;
  if (freezes) ops[count++] = cas_op(ref.offset, before.word, frozen.word);
  read_owners(geometry, copies.record, copies.owners, copies.node,
              std::span(ops).subspan(count).first<2>());
  count += 2;
  const uint32_t posted = co_await channel.remote.batch({ops, count});
  if (posted != KV_FABRIC_OK) co_return from_fabric(posted);
  if (freezes && ops[0].result != before.word) co_return Status::kAbsent;
  if (freezes) ref.slot = frozen;
  co_return Status::kOk;
}

// If this client's copy was worth having, begins one of what is about to be written. Between the
// two there is no moment without either, so nobody is told that there is nothing under the record,
// and this client stays registered.
void begin_own(Coherence& coherence, const Replacement* replacement,
               const Coherence::Copies& copies, ClientCache::Fill& kept) {
  ClientCache* const cache = coherence.cache();
  if (cache == nullptr || replacement == nullptr || !replacement->may_be_kept) return;
  if (!cache->takes(replacement->value_bytes)) return;
  cache->begin_rewrite(copies.hash, copies.record, coherence.term(), kept);
}

// Once the owners have been read: what this client itself has of the key ends, unless it is kept.
void end_own(Coherence& coherence, Coherence::Copies& copies, ClientCache::Fill& kept) {
  if (kept.begun()) {
    copies.mine_empty = false;
    // Who has waited for this client's lease may have cleared its bit.
    if (!coherence.is_owner(copies.owners)) kept.abandon();
  } else if (ClientCache* const cache = coherence.cache()) {
    copies.mine_empty = cache->drop(copies.hash, copies.record, ClientCache::By::kOwnWrite);
  }
}

Coherence::Bounds bounds_of(const Channel& channel) {
  return {channel.lane().deadline_ns(), channel.lane().cancelled()};
}

}  // namespace

EarlyGuard::EarlyGuard(Channel& channel, const Key& key, bool certain) {
  const Attachment& attachment = *channel.attachment;
  freezes_ = !attachment.coherence.is_regular();
  if (freezes_ && (!certain || KV_VARIANT(cache_writes_unfrozen))) return;
  KnownAddress known;
  if (attachment.coherence.cache() == nullptr) return;
  if (!attachment.addresses.find(key.hash, known)) return;
  const Slot slot = known.slot;
  if (!slot.readable() || !slot.guarded() || slot.frozen()) return;
  ref_ = {known.slot_offset, slot};
  const uint32_t record = attachment.geometry.record_of(key.hash);
  if (!freezes_) {
    read_owners(attachment.geometry, record, owners_, node_, std::span(ops_).first<2>());
    count_ = 2;
    return;
  }
  // An owner that the record does not show when the slot is frozen has no copy.
  freezing_ = KV_VARIANT(cache_counts_owners_early) ? 2 : 0;
  ops_[freezing_] =
      cas_op(ref_.offset, slot.word, slot.with_flags(Slot::kShared | Slot::kFrozen).word);
  read_owners(attachment.geometry, record, owners_, node_,
              std::span(ops_).subspan(freezing_ == 0 ? 1 : 0).first<2>());
  count_ = 3;
}

Task<Status> end_copies(Channel& channel, uint64_t key_hash, SlotRef& ref,
                        const Replacement* replacement, CopiesEnded& ended,
                        const EarlyGuard* early) {
  if (!ref.slot.guarded()) co_return Status::kOk;
  Attachment& attachment = *channel.attachment;
  Coherence& coherence = attachment.coherence;
  ClientCache* const cache = coherence.cache();
  Coherence::Copies copies;
  copies.hash = key_hash;
  copies.record = attachment.geometry.record_of(key_hash);
  const uint64_t began_ns = cache != nullptr ? monotonic_ns() : 0;
  Postbox* postbox = nullptr;
  if (const Status s = co_await open_postbox(channel, postbox); s != Status::kOk) co_return s;
  begin_own(coherence, replacement, copies, ended.kept);
  if (early != nullptr && early->froze(ref)) {
    ref.slot = early->frozen();
    copies.owners = early->owners();
    copies.node = early->node();
  } else if (const Status s = co_await freeze(channel, ref, copies); s != Status::kOk) {
    co_return s;
  }
  end_own(coherence, copies, ended.kept);
  if (ended.kept.begun()) ended.guard = coherence.guard_flag(copies.owners);
  if (replacement != nullptr) announce(ref, *replacement, ended.guard, copies);
  const Status s =
      co_await coherence.end_copies(channel.remote, postbox, copies, bounds_of(channel));
  if (cache != nullptr) cache->note_ending(monotonic_ns() - began_ns);
  ended.kept.follow(copies.renewed);
  if (s == Status::kOk) clear_empty(attachment.geometry, copies, ended);
  co_return s;
}

CopiesEndedLate::CopiesEndedLate(Channel& channel, uint64_t key_hash, const SlotRef& ref,
                                 const Replacement& replacement)
    : channel_(channel),
      coherence_(channel.attachment->coherence),
      question_(coherence_, channel.remote.executor()),
      replacement_(replacement) {
  const layout::Geometry& geometry = channel.attachment->geometry;
  copies_.hash = key_hash;
  copies_.record = geometry.record_of(key_hash);
  announce(ref, replacement, Slot::kShared, copies_);
  read_owners(geometry, copies_.record, owners_, node_, ops_);
}

Task<Status> CopiesEndedLate::begin(const EarlyGuard* early) {
  if (const Status s = co_await open_postbox(channel_, postbox_); s != Status::kOk) co_return s;
  if (early == nullptr || !early->has_read()) co_return Status::kOk;
  copies_.owners = early->owners();
  copies_.node = early->node();
  // Only here: a stamp that is renewed after the replacement may be later than that of the next
  // writer.
  begin_own(coherence_, &replacement_, copies_, kept_);
  end_own(coherence_, copies_, kept_);
  told_ = true;
  const Status s = co_await coherence_.begin_ending(channel_.remote, postbox_, copies_, question_);
  kept_.follow(copies_.renewed);
  co_return s;
}

// Who had a copy of what was there had registered before it was replaced: it is among the owners
// that were told if nobody has registered since those were read.
Task<Status> CopiesEndedLate::finish(bool executed) {
  if (KV_VARIANT(regular_returns_at_once)) co_return Status::kOk;
  ClientCache* const cache = coherence_.cache();
  const uint64_t began_ns = cache != nullptr ? monotonic_ns() : 0;
  Status s = Status::kOutcomeUnknown;
  const bool same = owners_.word == copies_.owners.word || KV_VARIANT(regular_trusts_early_owners);
  if (executed && told_ && same) {
    s = co_await coherence_.finish_ending(channel_.remote, postbox_, copies_, question_,
                                          bounds_of(channel_));
  } else if (executed) {
    s = co_await end_those_read();
  }
  if (cache != nullptr) cache->note_ending(monotonic_ns() - began_ns);
  if (s != Status::kOk) {
    kept_.abandon();
    if (!executed) channel_.note_lost();
    coherence_.owe(executed ? copies_.unended_groups : ~uint64_t{0});
  } else if (copies_.empty_groups != 0) {
    // Else every later write would ask them. That it fails is no matter.
    kv_op clear[1] = {clearing(channel_.attachment->geometry, copies_)};
    if (!coherence_.clear_later(clear[0])) co_await channel_.remote.batch(clear);
  }
  co_return s;
}

Task<Status> CopiesEndedLate::end_those_read() {
  kept_.abandon();
  copies_.owners = owners_;
  copies_.node = node_;
  end_own(coherence_, copies_, kept_);
  co_return co_await coherence_.end_copies(channel_.remote, postbox_, copies_, bounds_of(channel_));
}

Task<Status> end_copies_of_absence(Channel& channel, uint64_t key_hash, CopiesEnded& ended) {
  Attachment& attachment = *channel.attachment;
  Coherence& coherence = attachment.coherence;
  ClientCache* const cache = coherence.cache();
  Coherence::Copies copies;
  copies.hash = key_hash;
  copies.record = attachment.geometry.absent_record_of(key_hash);
  const uint64_t began_ns = cache != nullptr ? monotonic_ns() : 0;
  Postbox* postbox = nullptr;
  if (const Status s = co_await open_postbox(channel, postbox); s != Status::kOk) co_return s;
  kv_op ops[2];
  read_owners(attachment.geometry, copies.record, copies.owners, copies.node, ops);
  const uint32_t posted = co_await channel.remote.batch(ops);
  if (posted != KV_FABRIC_OK) co_return from_fabric(posted);
  if (cache != nullptr) {
    // Its own bit has cost this insert a round trip, like a question of somebody else's.
    if (coherence.is_owner(copies.owners)) cache->note_absence_asked();
    copies.mine_empty = cache->drop(key_hash, copies.record, ClientCache::By::kOwnWrite);
  }
  const Status s =
      co_await coherence.end_copies(channel.remote, postbox, copies, bounds_of(channel));
  if (cache != nullptr) cache->note_ending(monotonic_ns() - began_ns);
  if (s == Status::kOk) clear_empty(attachment.geometry, copies, ended);
  co_return s;
}

Task<Status> empty_slot(Channel& channel, SlotRef ref) {
  Attachment& attachment = *channel.attachment;
  CopiesEnded ended;
  if (ref.slot.guarded() && !KV_VARIANT(cache_evicts_shared)) {
    layout::ObjectHeader header{};
    if (attachment.geometry.holds_block(ref.slot.offset(), ref.slot.size_class())) {
      kv_op read[1] = {read_op(ref.slot.offset(), &header, sizeof header)};
      const uint32_t posted = co_await channel.remote.batch(read);
      if (posted != KV_FABRIC_OK) co_return from_fabric(posted);
    }
    // What is damaged does not tell its key.
    const bool known = layout::sound(header, ref.slot.address(), ref.slot.size_class());
    Status s = Status::kOk;
    if (known) {
      s = co_await end_copies(channel, header.key_hash, ref, nullptr, ended);
    } else {
      s = co_await attachment.coherence.end_all_copies(channel.remote, bounds_of(channel));
    }
    if (s != Status::kOk) co_return s;
  }
  kv_op ops[2] = {cas_op(ref.offset, ref.slot.word, ref.slot.emptied().word), ended.clear};
  const uint32_t posted = co_await channel.remote.batch({ops, ended.clears ? 2u : 1u});
  if (posted != KV_FABRIC_OK) {
    // An unlinked block may be left behind.
    channel.want_scrub();
    co_return from_fabric(posted);
  }
  co_return ops[0].result == ref.slot.word ? Status::kOk : Status::kAbsent;
}

}  // namespace kvstore
