#include "sim/block_watch.hpp"

#include <cstring>

namespace kvstore::sim {

using layout::SegmentEntry;
using layout::Slot;

uint64_t BlockWatch::word_at(uint64_t offset) const {
  uint64_t word = 0;
  std::memcpy(&word, region_ + offset, 8);
  return word;
}

SegmentEntry BlockWatch::extent_of(uint64_t offset, uint64_t& begin) const {
  uint64_t segment = geometry_.segment_of(offset);
  SegmentEntry entry{word_at(geometry_.entry_offset(segment))};
  if (entry.kind() == SegmentEntry::kFollower && entry.run() <= segment) {
    segment -= entry.run();
    entry.word = word_at(geometry_.entry_offset(segment));
  }
  begin = geometry_.segment_offset(segment);
  return entry;
}

void BlockWatch::change(Slot slot, int by) {
  if (slot.empty()) return;
  Block& block = blocks_[slot.offset()];
  block.referenced += uint32_t(by);
  if (slot.readable()) block.readable += uint32_t(by);
  if (by < 0) block.unlinked_ns = schedule_.now_ns();
}

void BlockWatch::swapped(uint64_t offset, uint64_t before, uint64_t after) {
  if (offset < geometry_.first_segment_offset) return;
  uint64_t begin = 0;
  if (extent_of(offset, begin).kind() != SegmentEntry::kSubtable) return;
  const bool is_slot =
      offset - begin < layout::kSubtableBucketBytes && (offset - begin) % layout::kBucketBytes != 0;
  if (!is_slot) return;
  change(Slot{after}, 1);
  change(Slot{before}, -1);
}

void BlockWatch::report(uint64_t offset, uint32_t registration, const std::string& what) {
  char where[96];
  std::snprintf(where, sizeof where, "node %u, block at 0x%llx written by client line %u: ", node_,
                static_cast<unsigned long long>(offset), registration);
  users_.block_misused(where + what);
}

void BlockWatch::judge(const Block& block, uint32_t registration, uint32_t lane, uint64_t offset) {
  if (block.readable > 0) {
    report(offset, registration, "the index points at it");
    return;
  }
  if (block.unlinked_ns > 0) {
    const std::string holder = users_.holder_since(node_, block.unlinked_ns);
    if (!holder.empty()) {
      report(offset, registration, "reused while " + holder + " may still hold its address");
    }
  }
  const bool another = block.registration != registration || block.lane != lane;
  const bool published = block.unlinked_ns >= block.written_ns;
  if (!another || published || block.operation == 0) return;
  if (users_.operation_of(node_, block.registration, block.lane) == block.operation) {
    report(offset, registration,
           "client line " + std::to_string(block.registration) + " is at it too");
  }
}

void BlockWatch::written(uint32_t registration, uint32_t lane, uint64_t offset, uint64_t bytes) {
  (void)bytes;
  if (offset < geometry_.first_segment_offset) return;
  uint64_t begin = 0;
  const SegmentEntry head = extent_of(offset, begin);
  if (head.is_free()) {
    report(offset, registration, "its segment belongs to nobody");
    return;
  }
  if (head.kind() != SegmentEntry::kObjects && head.kind() != SegmentEntry::kAdoptable) return;
  const layout::ExtentShape shape = geometry_.shape_of(geometry_.segment_of(begin), head);
  if (shape.blocks == 0 || offset < begin + shape.first_block_offset) return;
  const uint64_t block_bytes = layout::class_bytes(head.size_class());
  const uint64_t index = (offset - begin - shape.first_block_offset) / block_bytes;
  const uint64_t block_offset = begin + shape.first_block_offset + index * block_bytes;
  const bool shared = geometry_.shares_extent(head.size_class());
  if (shared && (word_at(begin + index / 64 * 8) >> (index % 64) & 1) != 0) {
    report(block_offset, registration, "its bit says that it is free");
    return;
  }
  Block& block = blocks_[block_offset];
  judge(block, registration, lane, block_offset);
  block.registration = registration;
  block.lane = lane;
  block.operation = users_.operation_of(node_, registration, lane);
  block.written_ns = schedule_.now_ns();
}

}  // namespace kvstore::sim
