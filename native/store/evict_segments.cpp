// Emptying whole extents, so that their owners can return them: how memory moves from one size
// class to another, or from a client that filled the node to one that came later.

#include <algorithm>
#include <vector>

#include "store/extent_objects.hpp"
#include "store/operations.hpp"

namespace kvstore {

using layout::SegmentEntry;
using layout::Slot;

namespace {

// Evicts the object of a block, if the index leads to it.
Task<Status> evict_block(Channel& channel, BlockHeader found) {
  if (!found.sound) co_return Status::kOk;
  Places places;
  if (const Status s = co_await read_places(channel.remote, channel.attachment->directory,
                                            found.key_hash, places);
      s != Status::kOk) {
    co_return s;
  }
  for (const CombinedBucket& combined : places.all()) {
    for (unsigned i = 0; i < kSlotsPerCombined; ++i) {
      const Slot slot = combined.slot(i);
      if (slot.address() != found.address || !slot.readable()) continue;
      if (slot.moving()) continue;
      co_await evict_slot(channel, {combined.slot_offset(i), slot});
      co_return channel.remote.broken() ? Status::kNodeUnreachable : Status::kOk;
    }
  }
  co_return Status::kOk;
}

Task<Status> evict_extent(Channel& channel, ExtentBlocks& blocks) {
  const auto visit = [&](BlockHeader found) { return evict_block(channel, found); };
  while (!blocks.done()) {
    const Status s = co_await visit_blocks(channel, blocks, visit);
    if (s != Status::kOk) co_return s;
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

  std::vector<ExtentBlocks> extents;
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
    extents.push_back(blocks_of(geometry, segment + at, entry));
    if (extents.back().shape.blocks == 0) co_return Status::kAbsent;
    at += entry.run();
  }
  for (ExtentBlocks& extent : extents) {
    // What has no owner would not be returned by one.
    const SegmentEntry entry{words[extent.extent.segment - segment]};
    const bool shared = geometry.shares_extent(extent.size_class);
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
