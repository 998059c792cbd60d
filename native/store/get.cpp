// get: the value of a key, verified before any of it is believed.

#include <algorithm>

#include "base/crc32c.hpp"
#include "base/variant.hpp"
#include "store/operations.hpp"

namespace kvstore {

using layout::ObjectHeader;
using layout::Slot;

namespace {

constexpr unsigned kAttemptsMax = 256;
// A shorter value is copied twice at less than the cost of a READ of its own.
constexpr uint64_t kOwnReadBytesMin = 512;

enum class Reading {
  kDone,      // the value is where the caller wants it
  kOther,     // a sound object of another key
  kUnsound,   // does not verify: look again
  kTooSmall,  // the buffer is; data_bytes says what is needed
  kExpired,
  kNoMemory,
  kLost
};

struct Target {
  kv_call& call;
  const Key& key;
  uint32_t key_crc;
  // Of what was read: it has a time to live, a fence; the checksum of key and value.
  mutable bool mortal = false;
  mutable bool fenced = false;
  mutable uint32_t value_crc = 0;
};

bool value_verifies(uint32_t crc, const ObjectHeader& header) {
  return crc == header.value_crc || KV_VARIANT(skip_value_checksum);
}

void set_outcome(kv_call& call, const ObjectHeader& header, const void* data) {
  call.data = data;
  call.data_bytes = header.value_bytes;
  call.version = header.version;
  call.codec = header.codec;
}

// Memory for a value without a buffer; nullptr if there is none.
void* place_for(Channel& channel, kv_call& call, uint64_t bytes) {
  if (call.buffer != nullptr) return call.buffer;
  // An earlier attempt has asked already.
  if (call.data != nullptr && call.data_bytes == bytes) return const_cast<void*>(call.data);
  const bool large = bytes > KV_ARENA_VALUE_BYTES || channel.lane().values_through_allocate();
  if (large && call.allocate != nullptr) {
    return call.allocate(call.context, &call, bytes);
  }
  return channel.lane().arena().allocate(bytes);
}

// The header and key are in `object`; says what they mean for this call.
Reading judge(Channel& channel, const Target& target, const unsigned char* object, const Slot& slot,
              ObjectHeader& header) {
  const Candidate::Verdict verdict = verdict_on(object, slot, target.key, header);
  if (verdict == Candidate::Verdict::kUnsound) return Reading::kUnsound;
  if (verdict == Candidate::Verdict::kOther) return Reading::kOther;
  if (expired(*channel.attachment, header)) return Reading::kExpired;
  target.mortal = header.expiry_ticks != 0;
  target.fenced = (header.flags & layout::kObjectFence) != 0;
  target.value_crc = header.value_crc;
  kv_call& call = target.call;
  if (call.buffer != nullptr && header.value_bytes > call.buffer_bytes) {
    set_outcome(call, header, nullptr);
    return Reading::kTooSmall;
  }
  return Reading::kDone;
}

// The whole object is in scratch memory: one fused copy to where the caller wants it.
Reading take_whole(Channel& channel, const Target& target, const unsigned char* object,
                   uint64_t object_bytes, const Slot& slot) {
  ObjectHeader header;
  const Reading verdict = judge(channel, target, object, slot, header);
  if (verdict != Reading::kDone) return verdict;
  const uint64_t at = layout::value_offset(slot.size_class(), target.key.bytes);
  if (at + header.value_bytes > object_bytes) return Reading::kUnsound;  // longer than was known
  void* place = place_for(channel, target.call, header.value_bytes);
  if (place == nullptr) return Reading::kNoMemory;
  const uint32_t crc = crc32c_copy(target.key_crc, place, object + at, header.value_bytes);
  if (!value_verifies(crc, header)) return Reading::kUnsound;
  set_outcome(target.call, header, place);
  return Reading::kDone;
}

// A large object into the caller's buffer: header and key to scratch, the value straight to its
// place, in one batch. `known` is READs to post first.
Task<Reading> read_scattered(Channel& channel, const Target& target, const Slot& slot) {
  kv_call& call = target.call;
  const uint64_t head_bytes = layout::kHeaderBytes + target.key.bytes;
  const uint64_t at = layout::value_offset(slot.size_class(), target.key.bytes);
  const uint64_t room = layout::class_bytes(slot.size_class()) - at;
  const uint64_t take = std::min(call.buffer_bytes, room);
  const Scratch head(head_bytes);
  kv_op ops[2] = {read_op(slot.offset(), head.data(), head_bytes),
                  with_crc(read_op(slot.offset() + at, call.buffer, take), target.key_crc)};
  if (co_await channel.remote.batch(ops) != KV_FABRIC_OK) co_return Reading::kLost;
  ObjectHeader header;
  const Reading verdict = judge(channel, target, head.data(), slot, header);
  if (verdict != Reading::kDone) co_return verdict;
  const uint32_t crc = header.value_bytes == take
                           ? uint32_t(ops[1].result)
                           : crc32c(target.key_crc, call.buffer, header.value_bytes);
  if (!value_verifies(crc, header)) co_return Reading::kUnsound;
  set_outcome(call, header, call.buffer);
  co_return Reading::kDone;
}

// A large object without a buffer: its length first, then the value into memory of that size.
Task<Reading> read_in_two(Channel& channel, const Target& target, const Slot& slot) {
  const uint64_t head_bytes = layout::kHeaderBytes + target.key.bytes;
  const Scratch head(head_bytes);
  kv_op first[1] = {read_op(slot.offset(), head.data(), head_bytes)};
  if (co_await channel.remote.batch(first) != KV_FABRIC_OK) co_return Reading::kLost;
  ObjectHeader header;
  const Reading verdict = judge(channel, target, head.data(), slot, header);
  if (verdict != Reading::kDone) co_return verdict;
  void* place = place_for(channel, target.call, header.value_bytes);
  if (place == nullptr) co_return Reading::kNoMemory;
  target.call.data = place;
  target.call.data_bytes = header.value_bytes;
  if (header.value_bytes > 0) {
    const uint64_t at = layout::value_offset(slot.size_class(), target.key.bytes);
    kv_op value[1] = {
        with_crc(read_op(slot.offset() + at, place, header.value_bytes), target.key_crc)};
    if (co_await channel.remote.batch(value) != KV_FABRIC_OK) co_return Reading::kLost;
    if (!value_verifies(uint32_t(value[0].result), header)) co_return Reading::kUnsound;
  }
  set_outcome(target.call, header, place);
  co_return Reading::kDone;
}

// Whether the slot may lead to the key's object (kDone), or why not.
Reading judge_slot(const Channel& channel, const Target& target, const Slot& slot) {
  if (!channel.attachment->geometry.holds_block(slot.offset(), slot.size_class())) {
    return Reading::kUnsound;
  }
  const uint64_t least = layout::kHeaderBytes + target.key.bytes;
  return layout::class_bytes(slot.size_class()) < least ? Reading::kOther : Reading::kDone;
}

Task<Reading> read_large(Channel& channel, const Target& target, const Slot& slot) {
  const bool into_buffer = target.call.buffer != nullptr && target.call.buffer_bytes > 0;
  return into_buffer ? read_scattered(channel, target, slot) : read_in_two(channel, target, slot);
}

Status outcome_of(Reading reading) {
  switch (reading) {
    case Reading::kDone:
      return Status::kOk;
    case Reading::kTooSmall:
      return Status::kBufferTooSmall;
    case Reading::kExpired:
      return Status::kAbsent;
    case Reading::kNoMemory:
      return Status::kOutOfMemory;
    default:
      return Status::kNodeUnreachable;
  }
}

// Whether an object whose length is known is READ as a whole into scratch memory, for the value to
// be copied from there. Otherwise the value is READ by itself, straight to its place: one READ
// more, but where READs are loads one copy less.
bool reads_whole(const Channel& channel, const kv_call& call, uint64_t object_bytes,
                 uint64_t value_bytes) {
  if (object_bytes > channel.remote.eager_read_bytes()) return false;
  const bool worthwhile = call.buffer != nullptr && channel.remote.loads_from_memory() &&
                          value_bytes >= kOwnReadBytesMin && value_bytes <= call.buffer_bytes;
  return !worthwhile;
}

// The making of a copy while the node is read. What has a time to live is not copied: its end comes
// without anybody's word.
class Copying {
 public:
  Copying(Channel& channel, const Target& target)
      : geometry_(channel.attachment->geometry),
        coherence_(channel.attachment->coherence),
        target_(target),
        may_copy_((target.call.flags & (KV_UNCACHED | KV_PROBE)) == 0) {}

  // Decides, and if so begins: a copy of the value that is remembered there.
  void begin(const KnownAddress& known) {
    ClientCache* const cache = coherence_.cache();
    if (cache == nullptr || !may_copy_) return;
    if (known.slot.frozen() && !KV_VARIANT(cache_installs_frozen)) return;
    if (!cache->wants(target_.key, known.value_bytes)) return;
    begin_under(*cache, geometry_.record_of(target_.key.hash));
  }
  // The same of the key's absence, after a look at these places that has not found it.
  void begin_absence(const Places& places) {
    ClientCache* const cache = coherence_.cache();
    if (cache == nullptr || !may_copy_ || places.filling()) return;
    // It would not be kept; and registrations in vain would keep the inserter from clearing a
    // record for whose readers it may have waited a lease.
    const bool unsettled = places.tentative(target_.key.fingerprint());
    if (unsettled && !KV_VARIANT(cache_installs_tentative)) return;
    if (!cache->wants_absence(target_.key)) return;
    begin_under(*cache, geometry_.absent_record_of(target_.key.hash));
  }

  bool begun() const { return fill_.begun(); }
  void found_changed() { fill_.found_changed(); }
  // What the slot must say, if it says this, for a copy to be kept; `hosted` only if it is thought
  // to be so by this host.
  Slot guarded(Slot slot) const {
    HostStamps* const host = coherence_.host();
    const uint64_t hash = target_.key.hash;
    if (slot.shared()) return slot;
    if (slot.hosted()) {
      const bool ours = host != nullptr && host->hosted_version(hash) != 0;
      return ours || KV_VARIANT(hosted_trusts_any) ? slot : slot.with_shared();
    }
    const bool alone = coherence_.guard_flag(coherence_.guess(record_)) == Slot::kHosted;
    return alone ? slot.with_hosted() : slot.with_shared();
  }
  // Whether a copy may be kept while the slot says this. `set`: this client has made it say so.
  bool is_guarded(Slot slot, bool set) const {
    if (slot.frozen()) return KV_VARIANT(cache_installs_frozen);
    if (!slot.hosted()) return slot.shared();
    HostStamps* const host = coherence_.host();
    const uint64_t hash = target_.key.hash;
    if (host == nullptr) return false;
    if (set) host->note_hosted(hash, target_.call.version);
    const uint64_t known = host->hosted_version(hash);
    if (known == target_.call.version || KV_VARIANT(hosted_trusts_any)) return true;
    host->forget_hosted(hash, known);
    return false;
  }
  bool guessed_wrong() const { return guessed_wrong_; }
  // Goes ahead of all else. Where the bit is thought to be set only the count is raised, which no
  // other client can be in the way of: it keeps the bit from being cleared by who has not seen it.
  std::span<kv_op> registration() { return {&registration_, begun() ? 1u : 0u}; }
  // Whether the copy may be kept as far as the record is concerned.
  bool registered(const kv_op& posted) {
    const layout::CoherenceRecord before{posted.result};
    const bool counted = posted.kind == KV_OP_FAA;
    const bool done = counted ? coherence_.is_owner(before) : posted.result == posted.operand;
    const uint64_t counted_word = posted.result + posted.operand;
    coherence_.saw(record_, layout::CoherenceRecord{counted ? counted_word
                                                    : done  ? posted.desire
                                                            : posted.result});
    guessed_wrong_ = !done && !coherence_.is_owner(coherence_.guess(record_));
    return done;
  }
  // After a wrong guess: sets the bit as the record is now, for the next read. Where many clients
  // register at once guesses are hardly ever right.
  Task<Status> register_for_next(Channel& channel) {
    constexpr unsigned kTries = 3;
    for (unsigned i = 0; guessed_wrong_ && i < kTries; ++i) {
      const layout::CoherenceRecord seen = coherence_.guess(record_);
      kv_op op[1] = {cas_op(geometry_.record_offset(record_), seen.word,
                            seen.with_owner(coherence_.group()).word)};
      const uint32_t posted = co_await channel.remote.batch(op);
      if (posted != KV_FABRIC_OK) co_return from_fabric(posted);
      registered(op[0]);
    }
    co_return Status::kOk;
  }
  void finish(const KnownAddress& known, Slot slot) {
    const kv_call& call = target_.call;
    if (target_.mortal) {
      fill_.found_mortal(target_.key.hash);
      return;
    }
    CopyFacts facts;
    facts.value_bytes = call.data_bytes;
    facts.version = call.version;
    facts.slot_offset = known.slot_offset;
    facts.subtable = known.subtable;
    facts.record = record_;
    facts.codec = call.codec;
    if (slot.hosted() && !target_.fenced) facts.hosted = slot;
    fill_.finish(target_.key, facts, call.data, target_.value_crc);
  }
  void finish_absence() {
    CopyFacts facts;
    facts.record = record_;
    facts.absent = true;
    fill_.finish(target_.key, facts, nullptr, target_.key_crc);
  }

 private:
  static constexpr uint64_t kOneChange = layout::CoherenceRecord{}.changed(0).word;

  void begin_under(ClientCache& cache, uint32_t record) {
    record_ = record;
    const uint64_t hash = target_.key.hash;
    if (!cache.begin_fill(hash, record, coherence_.term(), coherence_.stamp_of(hash), fill_)) {
      return;
    }
    const layout::CoherenceRecord guessed = coherence_.guess(record);
    const uint64_t at = geometry_.record_offset(record);
    if (coherence_.is_owner(guessed)) {
      registration_ = faa_op(at, KV_VARIANT(cache_clears_blindly) ? 0 : kOneChange);
    } else {
      registration_ = cas_op(at, guessed.word, guessed.with_owner(coherence_.group()).word);
    }
  }

  const layout::Geometry& geometry_;
  Coherence& coherence_;
  const Target& target_;
  const bool may_copy_;
  ClientCache::Fill fill_;
  uint32_t record_ = 0;
  kv_op registration_{};
  bool guessed_wrong_ = false;
};

// One round trip where the slot and the object's length are remembered: READ slot, READ object.
// Where a copy is made: CAS record, CAS slot to set `hosted` or `shared`, READ object.
class KnownRead {
 public:
  KnownRead(Channel& channel, const Target& target, const KnownAddress& known, Copying& copying)
      : channel_(channel),
        target_(target),
        known_(known),
        copying_(copying),
        value_at_(layout::value_offset(known.slot.size_class(), target.key.bytes)),
        whole_(reads_whole(channel, target.call, value_at_ + known.value_bytes, known.value_bytes)),
        object_(whole_ ? value_at_ + known.value_bytes : layout::kHeaderBytes + target.key.bytes) {}

  // kDone: the operations may be posted. kUnsound: what is remembered makes no sense.
  Reading prepare() {
    const Slot slot = known_.slot;
    const uint64_t block_bytes = layout::class_bytes(slot.size_class());
    if (!slot.readable() ||
        !channel_.attachment->geometry.holds_block(slot.offset(), slot.size_class()) ||
        value_at_ > block_bytes || known_.value_bytes > block_bytes - value_at_) {
      return Reading::kUnsound;
    }
    for (const kv_op& op : copying_.registration()) ops_[count_++] = op;
    slot_op_ = count_;
    const Slot guarded = copying_.begun() ? copying_.guarded(slot) : slot;
    ops_[count_++] = guarded != slot ? cas_op(known_.slot_offset, slot.word, guarded.word)
                                     : read_op(known_.slot_offset, &now_.word, 8);
    ops_[count_++] = read_op(slot.offset(), object_.data(), object_.size());
    if (whole_) return Reading::kDone;
    kv_call& call = target_.call;
    if (call.buffer != nullptr && call.buffer_bytes < known_.value_bytes) return Reading::kUnsound;
    place_ = place_for(channel_, call, known_.value_bytes);
    if (place_ == nullptr) return Reading::kNoMemory;
    value_op_ = count_;
    ops_[count_++] =
        with_crc(read_op(slot.offset() + value_at_, place_, known_.value_bytes), target_.key_crc);
    return Reading::kDone;
  }

  std::span<kv_op> ops() { return {ops_, count_}; }
  bool is_frozen() const { return now_.frozen(); }
  // As it is once the operations have been executed.
  Slot slot() const { return now_; }

  // What the operations have brought, given how they completed. kUnsound: out of date.
  Reading result(uint32_t posted) {
    if (posted != KV_FABRIC_OK) return Reading::kLost;
    const bool registered = copying_.begun() && copying_.registered(ops_[0]);
    const kv_op& slot_op = ops_[slot_op_];
    const bool set = slot_op.kind == KV_OP_CAS && slot_op.result == slot_op.operand;
    if (slot_op.kind == KV_OP_CAS) now_.word = set ? slot_op.desire : slot_op.result;
    if (!now_.leads_where(known_.slot) && !KV_VARIANT(trust_known_address)) {
      return Reading::kUnsound;
    }
    const Reading reading = result_of_value();
    // What a writer has said of the slot may not have come true.
    if (reading == Reading::kDone && copying_.begun() && copying_.is_guarded(now_, set) &&
        registered) {
      copying_.finish(known_, now_);
    }
    return reading;
  }

 private:
  Reading result_of_value() {
    if (whole_) return take_whole(channel_, target_, object_.data(), object_.size(), known_.slot);
    ObjectHeader header;
    const Reading verdict = judge(channel_, target_, object_.data(), known_.slot, header);
    if (verdict != Reading::kDone) return verdict;
    if (header.value_bytes != known_.value_bytes ||
        !value_verifies(uint32_t(ops_[value_op_].result), header)) {
      return Reading::kUnsound;
    }
    set_outcome(target_.call, header, place_);
    return Reading::kDone;
  }

  Channel& channel_;
  const Target& target_;
  const KnownAddress& known_;
  Copying& copying_;
  const uint64_t value_at_;
  const bool whole_;
  const Scratch object_;
  void* place_ = nullptr;
  Slot now_;
  kv_op ops_[4];
  unsigned count_ = 0;
  unsigned slot_op_ = 0;
  unsigned value_op_ = 0;
};

// Memory from `allocate` is asked for only once the object is known to be the right one.
bool may_try_known(Channel& channel, const kv_call& call, const KnownAddress& known) {
  return call.buffer != nullptr || call.allocate == nullptr ||
         known.value_bytes <=
             std::min<uint64_t>(KV_ARENA_VALUE_BYTES, channel.remote.eager_read_bytes());
}

// Whether a key that is in none of `places` is absent for good, as confirm_miss; if it pays that is
// remembered here.
Task<Status> confirm_and_keep(Channel& channel, const Target& target, const Places& places) {
  Copying copying(channel, target);
  copying.begin_absence(places);
  bool tentative = false;
  const bool too_late = KV_VARIANT(cache_registers_late);
  const Status confirmed =
      co_await confirm_miss(channel, target.key, places,
                            too_late ? std::span<kv_op>{} : copying.registration(), &tentative);
  if (too_late && copying.begun() && !channel.remote.broken()) {
    co_await channel.remote.batch(copying.registration());
  }
  if (!copying.begun() || channel.remote.broken()) co_return confirmed;
  const bool registered = copying.registered(copying.registration()[0]);
  const bool settled = !tentative || KV_VARIANT(cache_installs_tentative);
  // After a wrong guess the next miss guesses right: a bit with no copy behind it would cost the
  // next insert under the record a message.
  if (confirmed == Status::kAbsent && registered && settled) copying.finish_absence();
  co_return confirmed;
}

// The get of a key whose address is not known, or not any more.
Task<Status> find_and_read(Channel& channel, Target target) {
  Attachment& attachment = *channel.attachment;
  kv_call& call = target.call;
  const uint64_t hash = target.key.hash;
  for (unsigned attempt = 0; attempt < kAttemptsMax; ++attempt) {
    Places places;
    if (const Status s = co_await read_places(channel.remote, attachment.directory, hash, places);
        s != Status::kOk) {
      co_return s;
    }
    uint64_t matches = places.matches(target.key.fingerprint());
    bool unsound = false;
    while (matches != 0) {
      const SlotRef match = places.numbered(take_lowest(matches));
      Reading reading = judge_slot(channel, target, match.slot);
      const uint64_t bytes = layout::class_bytes(match.slot.size_class());
      if (reading == Reading::kDone && bytes <= channel.remote.eager_read_bytes()) {
        const Scratch object(bytes);
        kv_op op[1] = {read_op(match.slot.offset(), object.data(), bytes)};
        if (co_await channel.remote.batch(op) != KV_FABRIC_OK) co_return Status::kNodeUnreachable;
        reading = take_whole(channel, target, object.data(), bytes, match.slot);
      } else if (reading == Reading::kDone) {
        reading = co_await read_large(channel, target, match.slot);
      }
      if (reading == Reading::kUnsound) unsound = true;
      if (reading == Reading::kUnsound || reading == Reading::kOther) continue;
      if (reading == Reading::kDone) {
        if (is_use(call)) {
          channel.touch(places.subtable(), match.offset, target.key, call, false);
        }
        attachment.addresses.remember(
            hash, {match.offset, match.slot, places.subtable(), call.data_bytes});
        if (ClientCache* const cache = attachment.coherence.cache()) {
          cache->met(hash);
          if (match.slot.frozen()) cache->met_writer(hash);
        }
      }
      co_return outcome_of(reading);
    }
    if (!unsound) {
      const bool probe = (call.flags & KV_PROBE) != 0;
      if (probe || KV_VARIANT(absent_after_one_look)) co_return Status::kAbsent;
      const Status confirmed = co_await confirm_and_keep(channel, target, places);
      if (confirmed != Status::kPending) co_return confirmed;
    } else {
      ++channel.lane().counts().verify_retries;
    }
    if (const Status s = co_await back_off(channel, attempt); s != Status::kOk) co_return s;
  }
  co_return Status::kCorrupt;
}

// The get of a key whose address is remembered.
Task<Status> read_known(Channel& channel, Target target, KnownAddress known) {
  AddressCache& addresses = channel.attachment->addresses;
  ClientCache* const cache = channel.attachment->coherence.cache();
  LaneCounts& counts = channel.lane().counts();
  const uint64_t hash = target.key.hash;
  bool first = false;
  {
    // What makes a copy ends here: the longer way below may begin one itself.
    Copying copying(channel, target);
    copying.begin(known);
    const bool copies = copying.begun();
    const bool measures = cache != nullptr && (copies || cache->measures_get());
    const uint64_t began_ns = measures ? monotonic_ns() : 0;
    KnownRead read(channel, target, known, copying);
    Reading reading = read.prepare();
    const bool posts = reading == Reading::kDone;
    if (posts) {
      const uint32_t posted = co_await channel.remote.batch(read.ops());
      reading = read.result(posted);
      if (measures) {
        const uint64_t took_ns = monotonic_ns() - began_ns;
        copies ? cache->note_making(took_ns) : cache->note_get(took_ns);
      }
      if (copies && reading == Reading::kDone && known.slot != read.slot()) {
        // As it is now: a write of this client freezes it with its look-up.
        known.slot = read.slot();
        addresses.remember(hash, known);
      }
      if (copying.guessed_wrong()) co_await copying.register_for_next(channel);
    }
    if (reading != Reading::kUnsound && reading != Reading::kOther) {
      ++counts.address_hits;
      if (cache != nullptr && reading == Reading::kDone) {
        read.is_frozen() ? cache->met_writer(hash) : cache->unchanged(hash);
      }
      if (is_use(target.call)) {
        channel.touch(known.subtable, known.slot_offset, target.key, target.call, false);
      }
      co_return outcome_of(reading);
    }
    // Of several reads under way the first one tells.
    KnownAddress still;
    first = addresses.find(hash, still) && still.slot.word == known.slot.word;
    if (first && posts) copying.found_changed();
  }
  ++counts.address_stale;
  if (cache != nullptr && first) cache->changed(hash);
  addresses.forget(hash);
  co_return co_await find_and_read(channel, target);
}

// Serves a get from what another client of this host has handed over. The node is told of such
// uses as it is of all reads from copies.
bool serve_handed(Channel& channel, ClientCache& cache, const Key& key, kv_call& call) {
  if ((call.flags & KV_UNCACHED) != 0 || !channel.attachment->take_handed(key)) return false;
  const auto place = [&channel](kv_call& asking, uint64_t bytes) {
    return place_for(channel, asking, bytes);
  };
  if (!cache.get(key, call, place)) return false;
  if (call.status == KV_OK) cache.note_handed();
  return true;
}

Task<Status> known_outcome(Status status) {
  co_return status;
}

}  // namespace

Task<Status> get(Channel& channel, const Key& key, kv_call& call) {
  const Target target{call, key, crc32c(0, key.data, key.bytes)};
  ClientCache* const cache = channel.attachment->coherence.cache();
  if (cache != nullptr && cache->met_ended()) {
    if (serve_handed(channel, *cache, key, call)) return known_outcome(Status(call.status));
    channel.attachment->drop_ended(key);
  }
  if (cache != nullptr) cache->prefetch(key.hash);
  KnownAddress known;
  const bool remembered =
      channel.attachment->addresses.find(key.hash, known) && may_try_known(channel, call, known);
  return remembered ? read_known(channel, target, known) : find_and_read(channel, target);
}

}  // namespace kvstore
