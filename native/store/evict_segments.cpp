// Emptying whole extents, so that their owners can return them: how memory moves from one size
// class to another, or from a client that filled the node to one that came later.

#include <algorithm>
#include <vector>

#include "layout/object.hpp"
#include "store/operations.hpp"
#include "store/unreferenced.hpp"

namespace kvstore {

using layout::SegmentEntry;
using layout::Slot;

namespace {

constexpr unsigned kHeadersPerBatch = 64;

// Unlinks the object at `address`, if the index leads to it and nobody is faster.
Task<Status> unlink_block(Channel& channel, uint64_t key_hash, uint64_t address) {
  Places places;
  if (const Status s =
          co_await read_places(channel.remote, channel.attachment->directory, key_hash, places);
      s != Status::kOk) {
    co_return s;
  }
  for (const CombinedBucket& combined : places.all()) {
    for (unsigned i = 0; i < kSlotsPerCombined; ++i) {
      const Slot slot = combined.slot(i);
      if (slot.address() != address || !slot.readable() || slot.moving() || slot.frozen()) continue;
      kv_op op[1] = {cas_op(combined.slot_offset(i), slot.word, slot.emptied().word)};
      if (const uint32_t s = co_await channel.remote.batch(op); s != KV_FABRIC_OK) {
        co_return from_fabric(s);
      }
      if (op[0].result != slot.word) co_return Status::kOk;
      channel.attachment->limbo.retire({slot.offset(), slot.size_class()});
      ++channel.lane().counts().evictions;
      co_return Status::kOk;
    }
  }
  co_return Status::kOk;
}

Task<Status> evict_extent(Channel& channel, const UnreferencedSearch& extent) {
  const uint64_t block_bytes = layout::class_bytes(extent.size_class);
  const uint64_t first = channel.attachment->geometry.segment_offset(extent.extent.segment) +
                         extent.shape.first_block_offset;
  layout::ObjectHeader headers[kHeadersPerBatch];
  kv_op ops[kHeadersPerBatch];
  for (uint32_t begin = 0; begin < extent.shape.blocks; begin += kHeadersPerBatch) {
    const uint32_t count = std::min(kHeadersPerBatch, extent.shape.blocks - begin);
    for (uint32_t i = 0; i < count; ++i) {
      ops[i] = read_op(first + (begin + i) * block_bytes, &headers[i], layout::kHeaderBytes);
    }
    if (const uint32_t s = co_await channel.remote.batch({ops, count}); s != KV_FABRIC_OK) {
      co_return from_fabric(s);
    }
    Status worst = Status::kOk;
    const Remote::FanOut fan_out(channel.remote, kHeadersPerBatch);
    for (uint32_t i = 0; i < count;) {
      std::vector<Task<Status>> tasks;
      for (; i < count && tasks.size() < fan_out.width(); ++i) {
        const uint64_t address = (first + (begin + i) * block_bytes) / layout::kUnitBytes;
        if (!layout::sound(headers[i], address, extent.size_class)) continue;
        tasks.push_back(unlink_block(channel, headers[i].key_hash, address));
      }
      for (Task<Status>& task : tasks) {
        if (const Status s = co_await task; s != Status::kOk) worst = s;
      }
    }
    if (worst != Status::kOk) co_return worst;
  }
  co_return Status::kOk;
}

}  // namespace

Task<Status> evict_segments(Channel& channel, uint64_t segment, uint32_t run) {
  Attachment& attachment = *channel.attachment;
  const layout::Geometry& geometry = attachment.geometry;
  if (run > geometry.segment_count) co_return Status::kAbsent;
  segment = std::min(segment, geometry.segment_count - run);
  SegmentEntry head;
  if (const Status s = co_await attachment.segments.read_entry(channel.remote, segment, head);
      s != Status::kOk) {
    co_return s;
  }
  if (head.kind() == SegmentEntry::kFollower && head.run() <= segment) segment -= head.run();

  std::vector<UnreferencedSearch> extents;
  const uint64_t end = std::min(segment + 2 * uint64_t{run}, geometry.segment_count);
  std::vector<uint64_t> words(end - segment);
  kv_op read[1] = {read_op(geometry.entry_offset(segment), words.data(), words.size() * 8)};
  if (const uint32_t s = co_await channel.remote.batch(read); s != KV_FABRIC_OK) {
    co_return from_fabric(s);
  }
  for (uint64_t at = 0; at < words.size() && at < run;) {
    const SegmentEntry entry{words[at]};
    if (entry.is_free()) {
      ++at;
      continue;
    }
    const bool objects =
        entry.kind() == SegmentEntry::kObjects || entry.kind() == SegmentEntry::kAdoptable;
    if (!objects) co_return Status::kAbsent;
    extents.push_back(search_of(geometry, segment + at, entry));
    if (extents.back().shape.blocks == 0) co_return Status::kAbsent;
    at += entry.run();
  }
  for (const UnreferencedSearch& extent : extents) {
    // What has no owner would not be returned by one.
    const SegmentEntry entry{words[extent.extent.segment - segment]};
    const bool shared =
        layout::shares_extent(layout::class_bytes(extent.size_class), geometry.segment_bytes);
    if (entry.kind() == SegmentEntry::kAdoptable && shared) {
      const Status adopted =
          co_await attachment.allocator.adopt_extent(channel.remote, extent.extent.segment, entry);
      if (adopted != Status::kOk && adopted != Status::kAbsent) co_return adopted;
    }
    if (const Status s = co_await evict_extent(channel, extent); s != Status::kOk) co_return s;
    if (channel.lane().cancelled()) co_return Status::kDeadlineExceeded;
  }
  co_return Status::kOk;
}

}  // namespace kvstore
