#include "store/walk.hpp"

#include <algorithm>
#include <bit>
#include <cstring>
#include <vector>

#include "layout/object.hpp"

namespace kvstore {

using layout::DirectoryEntry;
using layout::Slot;

namespace {

constexpr unsigned kGroupsPerRead = 8;
constexpr uint64_t kMovingPollNs = kMillisecond / 2;

// The cursor: index of a directory entry read with the bits reversed, so that halves of a subtable
// that splits during the walk come next to each other, then the group.
struct Cursor {
  uint64_t reversed;  // of kCursorBits bits
  unsigned group;
};
constexpr unsigned kCursorBits = 32;

uint64_t reverse(uint64_t value) {
  uint64_t result = 0;
  for (unsigned i = 0; i < kCursorBits; ++i) result |= (value >> i & 1) << (kCursorBits - 1 - i);
  return result;
}

// Where the walk goes on after the subtable that covers `reversed` with `depth` bits.
uint64_t after(uint64_t reversed, unsigned depth) {
  const uint64_t step = uint64_t{1} << (kCursorBits - depth);
  return (reversed / step + 1) * step;
}

struct Page {
  layout::Bucket buckets[kGroupsPerRead * layout::kBucketsPerGroup];
};

Task<Status> read_groups(Channel& channel, uint64_t subtable, unsigned group, unsigned groups,
                         Page& page) {
  kv_op op[1] = {
      read_op(subtable + group * layout::kGroupBytes, page.buckets, groups * layout::kGroupBytes)};
  co_return from_fabric(co_await channel.remote.batch(op));
}

// Readable slots of some groups. A moving entry stands in two places: the copy, where the header
// says `filling`, is left out unless `copies`.
unsigned live_slots(const Page& page, unsigned groups, uint64_t offset, bool copies,
                    std::vector<SlotRef>& slots) {
  slots.clear();
  for (unsigned b = 0; b < groups * layout::kBucketsPerGroup; ++b) {
    for (unsigned s = 0; s < layout::kSlotsPerBucket; ++s) {
      const Slot slot{page.buckets[b].slots[s]};
      const bool copy = slot.moving() && layout::BucketHeader{page.buckets[b].header}.filling();
      if (!slot.readable() || (copy && !copies)) continue;
      slots.push_back({offset + b * layout::kBucketBytes + 8 + s * 8, slot});
    }
  }
  return unsigned(slots.size());
}

struct Walk {
  Cursor at;
  uint64_t subtable = 0;
  unsigned depth = 0;
  unsigned groups = 0;
};

bool aim(Channel& channel, uint64_t cursor, Walk& walk) {
  walk.at = {cursor >> 16, unsigned(cursor & 0xffff)};
  if (walk.at.reversed >= uint64_t{1} << kCursorBits) return false;
  if (walk.at.group >= layout::kGroupsPerSubtable) return false;
  const DirectoryEntry entry = channel.attachment->directory.entry_of(reverse(walk.at.reversed));
  walk.subtable = entry.offset();
  walk.depth = entry.depth();
  walk.groups = std::min(kGroupsPerRead, layout::kGroupsPerSubtable - walk.at.group);
  return true;
}

uint64_t next_cursor(const Walk& walk) {
  const unsigned group = walk.at.group + walk.groups;
  if (group < layout::kGroupsPerSubtable) return walk.at.reversed << 16 | group;
  const uint64_t next = after(walk.at.reversed, walk.depth);
  return next >= uint64_t{1} << kCursorBits ? UINT64_MAX : next << 16;
}

// Between pages no address is held: the walk does not hold back reclamation, however long it takes.
Status end_page(Channel& channel) {
  Lane& lane = channel.lane();
  lane.begin_activity();
  if (lane.cancelled() || monotonic_ns() >= lane.deadline_ns()) return Status::kDeadlineExceeded;
  return Executor::interrupted() ? Status::kInterrupted : Status::kOk;
}

Task<Status> read_entry(Channel& channel, const SlotRef& ref, kv_scan_entry& entry, bool& sound) {
  const uint64_t bytes = std::min<uint64_t>(layout::class_bytes(ref.slot.size_class()),
                                            layout::kHeaderBytes + layout::kKeyBytesMax);
  const Scratch object(bytes);
  sound = false;
  if (!channel.attachment->geometry.holds_block(ref.slot.offset(), ref.slot.size_class())) {
    co_return Status::kOk;
  }
  kv_op op[1] = {read_op(ref.slot.offset(), object.data(), bytes)};
  if (const uint32_t s = co_await channel.remote.batch(op); s != KV_FABRIC_OK) {
    co_return from_fabric(s);
  }
  const layout::ObjectHeader header = layout::load_header(object.data());
  if (!layout::sound(header, ref.slot.address(), ref.slot.size_class()) ||
      expired(*channel.attachment, header)) {
    co_return Status::kOk;
  }
  entry.version = header.version;
  entry.value_bytes = header.value_bytes;
  entry.key_bytes = header.key_bytes;
  std::memcpy(entry.key, object.data() + layout::kHeaderBytes, header.key_bytes);
  // The header says that it is whole, not that the key is: its hash tells.
  sound = make_key(entry.key, entry.key_bytes).hash == header.key_hash;
  co_return Status::kOk;
}

}  // namespace

Task<Status> scan_page(Channel& channel, uint64_t& cursor, kv_scan_entry* entries,
                       uint32_t capacity, uint32_t& count) {
  count = 0;
  std::vector<SlotRef> slots;
  Page page;
  constexpr uint32_t kPageSlotsMax = kGroupsPerRead * layout::kSlotsPerGroup;
  if (capacity < kPageSlotsMax) co_return Status::kInvalid;
  if (cursor == 0) {
    if (const Status s = co_await channel.attachment->directory.refresh(channel.remote);
        s != Status::kOk) {
      co_return s;
    }
  }
  Walk walk;
  while (cursor != UINT64_MAX && count + kPageSlotsMax <= capacity && aim(channel, cursor, walk)) {
    if (const Status s =
            co_await read_groups(channel, walk.subtable, walk.at.group, walk.groups, page);
        s != Status::kOk) {
      co_return s;
    }
    // A subtable that has split since the directory was read holds half of what it did.
    if (layout::BucketHeader{page.buckets[0].header}.depth() != walk.depth) {
      const Status s = co_await channel.attachment->directory.refresh(channel.remote);
      if (s != Status::kOk) co_return s;
      aim(channel, cursor, walk);
    }
    live_slots(page, walk.groups, walk.subtable + walk.at.group * layout::kGroupBytes, false,
               slots);
    for (const SlotRef& ref : slots) {
      bool sound = false;
      const Status s = co_await read_entry(channel, ref, entries[count], sound);
      if (s != Status::kOk) co_return s;
      if (sound) ++count;
    }
    cursor = next_cursor(walk);
    if (const Status s = end_page(channel); s != Status::kOk) co_return s;
  }
  co_return Status::kOk;
}

Task<Status> count_keys(Channel& channel, uint64_t& keys) {
  keys = 0;
  if (const Status s = co_await channel.attachment->directory.refresh(channel.remote);
      s != Status::kOk) {
    co_return s;
  }
  std::vector<SlotRef> slots;
  Page page;
  Walk walk;
  for (uint64_t cursor = 0; cursor != UINT64_MAX && aim(channel, cursor, walk);) {
    if (const Status s =
            co_await read_groups(channel, walk.subtable, walk.at.group, walk.groups, page);
        s != Status::kOk) {
      co_return s;
    }
    keys += live_slots(page, walk.groups, 0, false, slots);
    cursor = next_cursor(walk);
    if (const Status s = end_page(channel); s != Status::kOk) co_return s;
  }
  co_return Status::kOk;
}

namespace {

// `all` turns false where a slot was replaced or is on its way: its group has to be read again.
Task<Status> clear_slots(Channel& channel, const std::vector<SlotRef>& slots, uint64_t& deleted,
                         bool& all) {
  std::vector<kv_op> ops;
  std::vector<Block> blocks;
  for (const SlotRef& ref : slots) {
    if (ref.slot.moving()) {
      all = false;
      continue;
    }
    if (ref.slot.guarded()) {
      const Status s = co_await empty_slot(channel, ref);
      if (s != Status::kOk && s != Status::kAbsent) co_return s;
      all &= s == Status::kOk;
      if (s != Status::kOk) continue;
      ++deleted;
      if (channel.attachment->geometry.holds_block(ref.slot.offset(), ref.slot.size_class())) {
        channel.attachment->limbo.retire({ref.slot.offset(), ref.slot.size_class()});
      }
      continue;
    }
    ops.push_back(cas_op(ref.offset, ref.slot.word, ref.slot.emptied().word));
    blocks.push_back({ref.slot.offset(), ref.slot.size_class()});
  }
  if (ops.empty()) co_return Status::kOk;
  if (const uint32_t s = co_await channel.remote.batch(ops); s != KV_FABRIC_OK) {
    channel.want_scrub();
    co_return from_fabric(s);
  }
  for (size_t i = 0; i < ops.size(); ++i) {
    if (ops[i].result != ops[i].operand) {
      all = false;
      continue;
    }
    ++deleted;
    const bool block =
        channel.attachment->geometry.holds_block(blocks[i].offset, blocks[i].size_class);
    if (block) channel.attachment->limbo.retire(blocks[i]);
  }
  co_return Status::kOk;
}

}  // namespace

Task<Status> clear_keys(Channel& channel, uint64_t& deleted) {
  deleted = 0;
  if (const Status s = co_await channel.attachment->directory.refresh(channel.remote);
      s != Status::kOk) {
    co_return s;
  }
  std::vector<SlotRef> slots;
  Page page;
  Walk walk;
  for (uint64_t cursor = 0; cursor != UINT64_MAX && aim(channel, cursor, walk);) {
    if (const Status s =
            co_await read_groups(channel, walk.subtable, walk.at.group, walk.groups, page);
        s != Status::kOk) {
      co_return s;
    }
    live_slots(page, walk.groups, walk.subtable + walk.at.group * layout::kGroupBytes, true, slots);
    bool all = true;
    if (const Status s = co_await clear_slots(channel, slots, deleted, all); s != Status::kOk) {
      co_return s;
    }
    if (!all) co_await channel.lane().executor().sleep_until(monotonic_ns() + kMovingPollNs);
    if (all) cursor = next_cursor(walk);
    if (const Status s = end_page(channel); s != Status::kOk) co_return s;
  }
  co_return Status::kOk;
}

}  // namespace kvstore
