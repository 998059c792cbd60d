#include "sim/memory_check.hpp"

#include <algorithm>
#include <cstring>
#include <set>
#include <string>

#include "layout/object.hpp"

namespace kvstore::sim {

using layout::BucketHeader;
using layout::DirectoryEntry;
using layout::ExtentShape;
using layout::SegmentEntry;
using layout::Slot;

namespace {

std::string at(const char* what, uint64_t offset) {
  char text[128];
  std::snprintf(text, sizeof text, "%s at 0x%llx", what, static_cast<unsigned long long>(offset));
  return text;
}

// A block must be exactly one of these two.
std::string judge_block(const IndexView& index, uint64_t offset, bool is_free) {
  const bool in_use = index.points_at(offset);
  if (in_use && is_free) return at("the index points at a free block", offset);
  if (!in_use && !is_free) return at("leaked: nothing points at the block", offset);
  return {};
}

}  // namespace

IndexView::IndexView(const uint8_t* region, const layout::Geometry& geometry)
    : region_(region), geometry_(geometry) {
  const uint64_t depth = word_at(layout::kGlobalDepthOffset);
  std::set<uint64_t> subtables;
  for (uint64_t i = 0; i < uint64_t{1} << depth; ++i) {
    subtables.insert(DirectoryEntry{word_at(geometry.directory_offset + i * 8)}.offset());
  }
  for (const uint64_t subtable : subtables) read_subtable(subtable);
  std::sort(slots_.begin(), slots_.end(), [](Slot a, Slot b) { return a.address() < b.address(); });
}

uint64_t IndexView::word_at(uint64_t offset) const {
  uint64_t word = 0;
  std::memcpy(&word, region_ + offset, 8);
  return word;
}

void IndexView::read_subtable(uint64_t offset) {
  const unsigned buckets = layout::kGroupsPerSubtable * layout::kBucketsPerGroup;
  for (unsigned b = 0; b < buckets; ++b) {
    const uint64_t bucket = offset + b * layout::kBucketBytes;
    if (BucketHeader{word_at(bucket)}.filling())
      unfinished_ = at("a split is not finished", bucket);
    for (unsigned s = 1; s <= layout::kSlotsPerBucket; ++s) {
      const Slot slot{word_at(bucket + s * 8)};
      if (!slot.empty()) slots_.push_back(slot);
    }
  }
}

bool IndexView::points_at(uint64_t offset) const {
  const auto found =
      std::lower_bound(slots_.begin(), slots_.end(), offset / layout::kUnitBytes,
                       [](Slot slot, uint64_t address) { return slot.address() < address; });
  return found != slots_.end() && found->offset() == offset;
}

std::string IndexView::check(bool splits_finished) const {
  if (splits_finished && !unfinished_.empty()) return unfinished_;
  if (!splits_finished && !unfinished_.empty()) return {};
  std::set<std::string> keys;
  for (size_t i = 0; i < slots_.size(); ++i) {
    const Slot slot = slots_[i];
    if (slot.tentative()) return at("a tentative slot for the block", slot.offset());
    // One that is only frozen was left by a writer that ended copies; the next one takes it up.
    if (slot.moving()) return at("a moving slot for the block", slot.offset());
    if (i > 0 && slots_[i - 1].address() == slot.address()) {
      return at("two slots for the block", slot.offset());
    }
    if (!geometry_.holds_block(slot.offset(), slot.size_class())) {
      return at("a slot that leads out of the segments,", slot.offset());
    }
    const layout::ObjectHeader header = layout::load_header(region_ + slot.offset());
    if (header.address() != slot.address() || header.header_crc != layout::header_crc(header)) {
      return at("a slot for what is no object,", slot.offset());
    }
    const auto* key = reinterpret_cast<const char*>(region_ + slot.offset()) + layout::kHeaderBytes;
    if (!keys.emplace(key, header.key_bytes).second) {
      return at(("two objects of '" + std::string(key, header.key_bytes) + "', one").c_str(),
                slot.offset());
    }
  }
  return {};
}

std::string check_extents(const IndexView& index, uint32_t registration,
                          std::span<const BlockAllocator::ExtentView> extents) {
  const layout::Geometry& geometry = index.geometry();
  for (const BlockAllocator::ExtentView& view : extents) {
    const uint64_t begin = geometry.segment_offset(view.extent.segment);
    const SegmentEntry head{index.word_at(geometry.entry_offset(view.extent.segment))};
    if (head.kind() != SegmentEntry::kObjects || head.owner() != registration) {
      return at("a client has an extent that is not its own,", begin);
    }
    for (uint32_t i = 0; i < view.shape.blocks; ++i) {
      const uint64_t given_back = index.word_at(begin + i / 64 * 8) >> (i % 64) & 1;
      const uint64_t local = view.free_bits[i / 64] >> (i % 64) & 1;
      const uint64_t block =
          begin + view.shape.first_block_offset + i * layout::class_bytes(view.size_class);
      if (given_back + local == 2) return at("free twice: the block", block);
      const std::string wrong = judge_block(index, block, given_back + local != 0);
      if (!wrong.empty()) return wrong;
    }
  }
  return {};
}

std::string check_deserted(const IndexView& index) {
  const layout::Geometry& geometry = index.geometry();
  uint64_t in_extents = 0;
  for (uint64_t segment = 0; segment < geometry.segment_count;) {
    const SegmentEntry head{index.word_at(geometry.entry_offset(segment))};
    const uint64_t begin = geometry.segment_offset(segment);
    const bool left_alone = head.is_free() || head.kind() == SegmentEntry::kLocks;
    segment += left_alone ? 1 : std::max<uint64_t>(head.run(), 1);
    if (left_alone || head.kind() == SegmentEntry::kSubtable) continue;
    if (head.kind() != SegmentEntry::kAdoptable) {
      const ExtentShape shape = geometry.shape_of(geometry.segment_of(begin), head);
      const bool run = head.kind() == SegmentEntry::kObjects && shape.blocks == 1;
      if (!run || !index.points_at(begin)) return at("an extent of somebody who is gone", begin);
    }
    const ExtentShape shape = geometry.shape_of(geometry.segment_of(begin), head);
    for (uint32_t i = 0; i < shape.blocks; ++i) {
      const uint64_t block =
          begin + shape.first_block_offset + i * layout::class_bytes(head.size_class());
      const bool shared = geometry.shares_extent(head.size_class());
      const bool is_free = shared && (index.word_at(begin + i / 64 * 8) >> (i % 64) & 1) != 0;
      const std::string wrong = judge_block(index, block, is_free);
      if (!wrong.empty()) return wrong;
      in_extents += !is_free;
    }
  }
  return in_extents == index.slots().size() ? "" : "a slot leads to a block of no extent";
}

}  // namespace kvstore::sim
