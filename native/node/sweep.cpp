#include "node/sweep.hpp"

#include <algorithm>
#include <bit>

#include "index/split.hpp"
#include "store/operations.hpp"

namespace kvstore {

using layout::ExtentShape;
using layout::SegmentEntry;

namespace {

constexpr uint64_t kEntriesPerRead = 512;

ExtentShape shape_of(const layout::Geometry& geometry, SegmentEntry head) {
  return layout::extent_shape(layout::class_bytes(head.size_class()), head.run(),
                              geometry.segment_bytes);
}

bool shared(const layout::Geometry& geometry, SegmentEntry head) {
  return layout::shares_extent(layout::class_bytes(head.size_class()), geometry.segment_bytes);
}

// The entries of the segment table, read in pieces.
Task<Status> read_table(Channel& channel, std::vector<uint64_t>& words) {
  const layout::Geometry& geometry = channel.attachment->geometry;
  words.resize(geometry.segment_count);
  for (uint64_t at = 0; at < words.size(); at += kEntriesPerRead) {
    const uint64_t count = std::min<uint64_t>(kEntriesPerRead, words.size() - at);
    kv_op op[1] = {read_op(geometry.entry_offset(at), words.data() + at, count * 8)};
    if (const uint32_t s = co_await channel.remote.batch(op); s != KV_FABRIC_OK) {
      co_return from_fabric(s);
    }
  }
  co_return Status::kOk;
}

Task<Status> read_bitmap(Channel& channel, uint64_t segment, const ExtentShape& shape,
                         std::vector<uint64_t>& bits) {
  bits.assign((shape.blocks + 63) / 64, 0);
  kv_op op[1] = {
      read_op(channel.attachment->geometry.segment_offset(segment), bits.data(), bits.size() * 8)};
  co_return from_fabric(co_await channel.remote.batch(op));
}

uint64_t count_bits(const std::vector<uint64_t>& words) {
  uint64_t count = 0;
  for (const uint64_t word : words) count += uint64_t(std::popcount(word));
  return count;
}

// Sets bits in the bitmap that are not set yet; returns how many it set.
Task<Status> set_bits(Channel& channel, uint64_t segment, const std::vector<uint64_t>& wanted,
                      uint64_t& set) {
  const uint64_t at = channel.attachment->geometry.segment_offset(segment);
  for (size_t w = 0; w < wanted.size(); ++w) {
    if (wanted[w] == 0) continue;
    uint64_t word = 0;
    kv_op read[1] = {read_op(at + w * 8, &word, 8)};
    if (const uint32_t s = co_await channel.remote.batch(read); s != KV_FABRIC_OK) {
      co_return from_fabric(s);
    }
    for (unsigned race = 0; race < 256 && (wanted[w] & ~word) != 0; ++race) {
      kv_op op[1] = {cas_op(at + w * 8, word, word | wanted[w])};
      if (const uint32_t s = co_await channel.remote.batch(op); s != KV_FABRIC_OK) {
        co_return from_fabric(s);
      }
      if (op[0].result == word) {
        set += uint64_t(std::popcount(wanted[w] & ~word));
        break;
      }
      word = op[0].result;
    }
  }
  co_return Status::kOk;
}

}  // namespace

Task<Status> Sweep::settle_subtable(Channel& channel, uint64_t segment, SegmentEntry head) {
  Attachment& attachment = *channel.attachment;
  if (const Status s = co_await attachment.directory.refresh(channel.remote); s != Status::kOk) {
    co_return s;
  }
  const uint64_t offset = attachment.geometry.segment_offset(segment);
  for (uint64_t i = 0; i < attachment.directory.size(); ++i) {
    if (attachment.directory.entry_at(i).offset() == offset) co_return Status::kOk;
  }
  co_return co_await attachment.segments.release(channel.remote, segment, head);
}

Task<Status> Sweep::settle(Channel& channel, uint64_t segment, SegmentEntry head) {
  Attachment& attachment = *channel.attachment;
  switch (head.kind()) {
    case SegmentEntry::kClaiming:
      co_return co_await attachment.segments.dissolve(channel.remote, segment, head);
    case SegmentEntry::kSubtable:
      co_return co_await settle_subtable(channel, segment, head);
    case SegmentEntry::kObjects:
      break;
    default:
      co_return Status::kOk;
  }
  Held held{segment, head, shape_of(attachment.geometry, head), {}};
  if (held.shape.blocks == 0) co_return Status::kCorrupt;
  std::vector<uint64_t> free_bits;
  if (shared(attachment.geometry, head)) {
    const Status s = co_await read_bitmap(channel, segment, held.shape, free_bits);
    if (s != Status::kOk) co_return s;
  }
  const Status s = co_await find_unreferenced(channel, {segment, head.run()}, head.size_class(),
                                              held.shape, free_bits, held.dead);
  if (s != Status::kOk) co_return s;
  held_.push_back(std::move(held));
  co_return Status::kOk;
}

Task<Status> Sweep::look(Channel& channel) {
  Attachment& attachment = *channel.attachment;
  held_.clear();
  const SplitEnvironment environment{attachment.segments, attachment.directory,
                                     attachment.registration, attachment.split_running,
                                     channel.lane().deadline_ns()};
  if (const Status s = co_await resume_split(channel.remote, environment, registration_);
      s != Status::kOk) {
    co_return s;
  }
  std::vector<uint64_t> words;
  if (const Status s = co_await read_table(channel, words); s != Status::kOk) co_return s;
  for (uint64_t i = 0; i < words.size(); ++i) {
    const SegmentEntry entry{words[i]};
    if (entry.owner() != registration_ || entry.kind() == SegmentEntry::kFree ||
        entry.kind() == SegmentEntry::kFollower) {
      continue;
    }
    const Status s = co_await settle(channel, i, entry);
    if (s != Status::kOk && s != Status::kAbsent) co_return s;
  }
  co_return Status::kOk;
}

Task<Status> Sweep::give_back_extent(Channel& channel, Held& held) {
  Attachment& attachment = *channel.attachment;
  std::vector<uint64_t> skip(held.dead.size());
  for (size_t w = 0; w < skip.size(); ++w) skip[w] = ~held.dead[w];
  std::vector<uint64_t> dead;
  const Status s = co_await find_unreferenced(channel, {held.segment, held.head.run()},
                                              held.head.size_class(), held.shape, skip, dead);
  if (s != Status::kOk) co_return s;
  if (!shared(attachment.geometry, held.head)) {
    if (count_bits(dead) == 0) co_return Status::kOk;  // live: whoever retires it releases it
    const Status released =
        co_await attachment.segments.release(channel.remote, held.segment, held.head);
    if (released == Status::kOk) ++blocks_freed_;
    co_return released;
  }
  if (const Status set = co_await set_bits(channel, held.segment, dead, blocks_freed_);
      set != Status::kOk) {
    co_return set;
  }
  const SegmentEntry adoptable =
      held.head.successor(SegmentEntry::kAdoptable, 0, held.head.run(), held.head.size_class());
  kv_op op[1] = {
      cas_op(attachment.geometry.entry_offset(held.segment), held.head.word, adoptable.word)};
  co_return from_fabric(co_await channel.remote.batch(op));
}

Task<Status> Sweep::give_back(Channel& channel) {
  for (Held& held : held_) {
    const Status s = co_await give_back_extent(channel, held);
    if (s != Status::kOk && s != Status::kAbsent) co_return s;
  }
  held_.clear();
  co_return co_await release_abandoned(channel);
}

Task<Status> release_abandoned(Channel& channel) {
  Attachment& attachment = *channel.attachment;
  std::vector<uint64_t> words;
  if (const Status s = co_await read_table(channel, words); s != Status::kOk) co_return s;
  for (uint64_t i = 0; i < words.size(); ++i) {
    const SegmentEntry entry{words[i]};
    if (entry.kind() != SegmentEntry::kAdoptable) continue;
    const ExtentShape shape = shape_of(attachment.geometry, entry);
    std::vector<uint64_t> bits;
    if (const Status s = co_await read_bitmap(channel, i, shape, bits); s != Status::kOk) {
      co_return s;
    }
    if (count_bits(bits) != shape.blocks) continue;
    const Status s = co_await attachment.segments.release(channel.remote, i, entry);
    if (s != Status::kOk && s != Status::kAbsent) co_return s;
  }
  co_return Status::kOk;
}

}  // namespace kvstore
