// get: the value of a key, verified before any of it is believed.

#include <algorithm>
#include <cstring>

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
};

bool value_verifies(uint32_t crc, const ObjectHeader& header) {
  return crc == header.value_crc || KV_VARIANT(skip_value_checksum);
}

bool is_of(const unsigned char* object, const ObjectHeader& header, const Key& key) {
  return header.key_hash == key.hash && header.key_bytes == key.bytes &&
         std::memcmp(object + layout::kHeaderBytes, key.data, key.bytes) == 0;
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
  header = layout::load_header(object);
  if (!layout::sound(header, slot.address(), slot.size_class())) return Reading::kUnsound;
  if (!is_of(object, header, target.key)) return Reading::kOther;
  if (expired(*channel.attachment, header)) return Reading::kExpired;
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

Task<Reading> read_object(Channel& channel, const Target& target, const Slot& slot) {
  const layout::Geometry& geometry = channel.attachment->geometry;
  if (!geometry.holds_block(slot.offset(), slot.size_class())) co_return Reading::kUnsound;
  const uint64_t bytes = layout::class_bytes(slot.size_class());
  if (bytes < layout::kHeaderBytes + target.key.bytes) co_return Reading::kOther;
  if (bytes > channel.remote.eager_read_bytes()) {
    if (target.call.buffer != nullptr && target.call.buffer_bytes > 0) {
      co_return co_await read_scattered(channel, target, slot);
    }
    co_return co_await read_in_two(channel, target, slot);
  }
  const Scratch object(bytes);
  kv_op op[1] = {read_op(slot.offset(), object.data(), bytes)};
  if (co_await channel.remote.batch(op) != KV_FABRIC_OK) co_return Reading::kLost;
  co_return take_whole(channel, target, object.data(), bytes, slot);
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

// One round trip where the slot and the object's length are remembered: READ slot, READ object.
class KnownRead {
 public:
  KnownRead(Channel& channel, const Target& target, const KnownAddress& known)
      : channel_(channel),
        target_(target),
        known_(known),
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
    ops_[0] = read_op(known_.slot_offset, &now_.word, 8);
    ops_[1] = read_op(slot.offset(), object_.data(), object_.size());
    if (whole_) return Reading::kDone;
    kv_call& call = target_.call;
    if (call.buffer != nullptr && call.buffer_bytes < known_.value_bytes) return Reading::kUnsound;
    place_ = place_for(channel_, call, known_.value_bytes);
    if (place_ == nullptr) return Reading::kNoMemory;
    ops_[2] =
        with_crc(read_op(slot.offset() + value_at_, place_, known_.value_bytes), target_.key_crc);
    return Reading::kDone;
  }

  std::span<kv_op> ops() { return {ops_, whole_ ? 2u : 3u}; }

  // What the operations have brought, given how they completed. kUnsound: out of date.
  Reading result(uint32_t posted) {
    if (posted != KV_FABRIC_OK) return Reading::kLost;
    if (now_ != known_.slot && !KV_VARIANT(trust_known_address)) return Reading::kUnsound;
    if (whole_) return take_whole(channel_, target_, object_.data(), object_.size(), known_.slot);
    ObjectHeader header;
    const Reading verdict = judge(channel_, target_, object_.data(), known_.slot, header);
    if (verdict != Reading::kDone) return verdict;
    if (header.value_bytes != known_.value_bytes ||
        !value_verifies(uint32_t(ops_[2].result), header)) {
      return Reading::kUnsound;
    }
    set_outcome(target_.call, header, place_);
    return Reading::kDone;
  }

 private:
  Channel& channel_;
  const Target& target_;
  const KnownAddress& known_;
  const uint64_t value_at_;
  const bool whole_;
  const Scratch object_;
  void* place_ = nullptr;
  Slot now_;
  kv_op ops_[3];
};

// Memory from `allocate` is asked for only once the object is known to be the right one.
bool may_try_known(Channel& channel, const kv_call& call, const KnownAddress& known) {
  return call.buffer != nullptr || call.allocate == nullptr ||
         known.value_bytes <=
             std::min<uint64_t>(KV_ARENA_VALUE_BYTES, channel.remote.eager_read_bytes());
}

// The get of a key whose address is not known, or not any more.
Task<Status> find_and_read(Channel& channel, const Target& target) {
  Attachment& attachment = *channel.attachment;
  kv_call& call = target.call;
  const uint64_t hash = target.key.hash;
  for (unsigned attempt = 0; attempt < kAttemptsMax; ++attempt) {
    Places places;
    if (const Status s = co_await read_places(channel.remote, attachment.directory, hash, places);
        s != Status::kOk) {
      co_return s;
    }
    SlotRef matches[kMatchesMax];
    const unsigned count = places.matches(target.key.fingerprint(), matches);
    bool unsound = false;
    for (unsigned i = 0; i < count; ++i) {
      const Reading reading = co_await read_object(channel, target, matches[i].slot);
      if (reading == Reading::kUnsound) unsound = true;
      if (reading == Reading::kUnsound || reading == Reading::kOther) continue;
      if (reading == Reading::kDone) {
        channel.touch(places.subtable(), matches[i].offset, target.key, call, false);
        attachment.addresses.remember(
            hash, {matches[i].offset, matches[i].slot, places.subtable(), call.data_bytes});
      }
      co_return outcome_of(reading);
    }
    if (!unsound) {
      const bool probe = (call.flags & KV_PROBE) != 0;
      if (probe || KV_VARIANT(absent_after_one_look)) co_return Status::kAbsent;
      const Status s = co_await confirm_headers(channel.remote, places);
      if (s == Status::kOk) co_return Status::kAbsent;
      if (s != Status::kAbsent) co_return s;
    } else {
      ++channel.lane().counts().verify_retries;
    }
    if (const Status s = co_await back_off(channel, attempt); s != Status::kOk) co_return s;
  }
  co_return Status::kCorrupt;
}

}  // namespace

Task<Status> get(Channel& channel, const Key& key, kv_call& call) {
  AddressCache& addresses = channel.attachment->addresses;
  const Target target{call, key, crc32c(0, key.data, key.bytes)};
  LaneCounts& counts = channel.lane().counts();
  KnownAddress known;
  if (addresses.find(key.hash, known) && may_try_known(channel, call, known)) {
    KnownRead read(channel, target, known);
    Reading reading = read.prepare();
    if (reading == Reading::kDone) {
      const uint32_t posted = co_await channel.remote.batch(read.ops());
      reading = read.result(posted);
    }
    if (reading != Reading::kUnsound && reading != Reading::kOther) {
      ++counts.address_hits;
      channel.touch(known.subtable, known.slot_offset, key, call, false);
      co_return outcome_of(reading);
    }
    ++counts.address_stale;
    addresses.forget(key.hash);
  }
  co_return co_await find_and_read(channel, target);
}

}  // namespace kvstore
