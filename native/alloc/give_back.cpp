// Giving blocks back to extents of others, taking in what others gave back, adopting extents
// without an owner, and returning empty ones.

#include <algorithm>
#include <bit>

#include "alloc/allocator.hpp"
#include "base/assert.hpp"

namespace kvstore {

using layout::ExtentShape;
using layout::SegmentEntry;

namespace {

// Setting one bit races with at most the 63 other blocks of the word.
constexpr unsigned kBitRacesMax = 256;

}  // namespace

Task<Status> BlockAllocator::set_foreign_bit(Remote& remote, Block block) {
  const layout::Geometry& geometry = segments_.geometry();
  uint64_t segment = geometry.segment_of(block.offset);
  SegmentEntry head;
  if (const Status s = co_await segments_.read_entry(remote, segment, head); s != Status::kOk) {
    co_return s;
  }
  if (head.kind() == SegmentEntry::kFollower) {
    if (head.run() > segment) co_return Status::kCorrupt;
    segment -= head.run();
    if (const Status s = co_await segments_.read_entry(remote, segment, head); s != Status::kOk) {
      co_return s;
    }
  }
  const bool objects =
      head.kind() == SegmentEntry::kObjects || head.kind() == SegmentEntry::kAdoptable;
  if (!objects || head.size_class() != block.size_class) co_return Status::kAbsent;
  if (!layout::shares_extent(block.bytes(), geometry.segment_bytes)) {
    co_return co_await segments_.release(remote, segment, head);
  }
  const ExtentShape shape = layout::extent_shape(block.bytes(), head.run(), geometry.segment_bytes);
  const uint64_t start = geometry.segment_offset(segment);
  const uint64_t index = (block.offset - start - shape.first_block_offset) / block.bytes();
  if (index >= shape.blocks) co_return Status::kCorrupt;
  const uint64_t bit = uint64_t{1} << (index % 64);
  const uint64_t word_offset = start + index / 64 * 8;
  uint64_t word = 0;
  kv_op read[1] = {read_op(word_offset, &word, 8)};
  if (const uint32_t s = co_await remote.batch(read); s != KV_FABRIC_OK) {
    co_return from_fabric(s);
  }
  for (unsigned race = 0; race < kBitRacesMax && (word & bit) == 0; ++race) {
    kv_op op[1] = {cas_op(word_offset, word, word | bit)};
    if (const uint32_t s = co_await remote.batch(op); s != KV_FABRIC_OK) co_return from_fabric(s);
    if (op[0].result == word) co_return Status::kOk;
    word = op[0].result;
  }
  co_return Status::kOk;
}

Task<Status> BlockAllocator::give_back(Remote& remote, const std::vector<Block>& blocks) {
  Status worst = Status::kOk;
  for (const Block& block : blocks) {
    if (free_if_owned(block)) continue;
    const Status s = co_await set_foreign_bit(remote, block);
    if (s != Status::kOk) worst = s;
    if (remote.broken()) co_return s;
  }
  co_return worst;
}

Task<Status> BlockAllocator::harvest_extent(Remote& remote, uint64_t segment) {
  const layout::Geometry& geometry = segments_.geometry();
  uint32_t blocks = 0;
  {
    const std::lock_guard lock(mutex_);
    const OwnedExtent* extent = extent_of_segment_[segment];
    if (extent == nullptr || extent->leaving) co_return Status::kOk;
    blocks = extent->shape.blocks;
  }
  std::vector<uint64_t> words((blocks + 63) / 64);
  const uint64_t at = geometry.segment_offset(segment);
  kv_op read[1] = {read_op(at, words.data(), words.size() * 8)};
  if (const uint32_t s = co_await remote.batch(read); s != KV_FABRIC_OK) {
    co_return from_fabric(s);
  }
  for (size_t w = 0; w < words.size(); ++w) {
    if (words[w] == 0) continue;
    // Only the owner clears bits, and what it clears is set: the subtraction borrows from nobody.
    kv_op op[1] = {faa_op(at + w * 8, uint64_t{0} - words[w])};
    if (const uint32_t s = co_await remote.batch(op); s != KV_FABRIC_OK) co_return from_fabric(s);
    const std::lock_guard lock(mutex_);
    OwnedExtent* extent = extent_of_segment_[segment];
    if (extent == nullptr) co_return Status::kOk;
    for (uint64_t bits = words[w]; bits != 0; bits &= bits - 1) {
      const uint32_t index = uint32_t(w * 64 + unsigned(std::countr_zero(bits)));
      const bool known =
          index < extent->shape.blocks && (extent->free_bits[w] >> (index % 64) & 1) == 0;
      if (known) free_locked(*extent, index);  // else remote memory says what cannot be
    }
  }
  co_return Status::kOk;
}

Task<Status> BlockAllocator::harvest(Remote& remote, unsigned extents_max) {
  std::vector<uint64_t> segments;
  {
    const std::lock_guard lock(mutex_);
    const size_t count = std::min<size_t>(extents_max, extents_.size());
    for (size_t i = 0; i < count; ++i) {
      segments.push_back(extents_[harvest_next_++ % extents_.size()]->extent.segment);
    }
  }
  for (const uint64_t segment : segments) {
    if (const Status s = co_await harvest_extent(remote, segment); s != Status::kOk) co_return s;
  }
  co_return Status::kOk;
}

Task<Status> BlockAllocator::adopt(Remote& remote, unsigned size_class) {
  const layout::Geometry& geometry = segments_.geometry();
  constexpr uint64_t kEntriesPerRead = 512;
  std::vector<uint64_t> words(kEntriesPerRead);
  for (uint64_t at = 0; at < geometry.segment_count; at += kEntriesPerRead) {
    const uint64_t count = std::min(kEntriesPerRead, geometry.segment_count - at);
    kv_op read[1] = {read_op(geometry.entry_offset(at), words.data(), count * 8)};
    if (const uint32_t s = co_await remote.batch(read); s != KV_FABRIC_OK) {
      co_return from_fabric(s);
    }
    for (uint64_t i = 0; i < count; ++i) {
      const SegmentEntry entry{words[i]};
      if (entry.kind() != SegmentEntry::kAdoptable || entry.size_class() != size_class) continue;
      const uint64_t segment = at + i;
      if (entry.run() > geometry.segment_count - segment) co_return Status::kCorrupt;
      const SegmentEntry mine = entry.successor(SegmentEntry::kObjects, segments_.registration(),
                                                entry.run(), size_class);
      kv_op op[1] = {cas_op(geometry.entry_offset(segment), entry.word, mine.word)};
      if (const uint32_t s = co_await remote.batch(op); s != KV_FABRIC_OK) {
        co_return from_fabric(s);
      }
      if (op[0].result != entry.word) continue;
      const ExtentShape shape = layout::extent_shape(layout::class_bytes(size_class), entry.run(),
                                                     geometry.segment_bytes);
      {
        const std::lock_guard lock(mutex_);
        add_extent({segment, entry.run()}, size_class, shape,
                   std::vector<uint64_t>((shape.blocks + 63) / 64, 0));
      }
      if (const Status s = co_await harvest_extent(remote, segment); s != Status::kOk) co_return s;
      if (free_blocks(size_class) > 0) co_return Status::kOk;
    }
  }
  co_return Status::kOutOfMemory;
}

Task<Status> BlockAllocator::release_empty(Remote& remote) {
  for (;;) {
    OwnedExtent* extent = nullptr;
    {
      const std::lock_guard lock(mutex_);
      if (empty_.empty()) co_return Status::kOk;
      extent = empty_.back();
      empty_.pop_back();
    }
    const Extent gone = extent->extent;
    {
      const std::lock_guard lock(mutex_);
      Class& c = classes_[extent->size_class];
      std::erase(c.with_free, extent);
      c.owned_blocks -= extent->shape.blocks;
      c.owned_segments -= gone.run;
      for (uint32_t i = 0; i < gone.run; ++i) extent_of_segment_[gone.segment + i] = nullptr;
      std::erase_if(extents_, [extent](const auto& owned) { return owned.get() == extent; });
    }
    SegmentEntry head;
    if (const Status s = co_await segments_.read_entry(remote, gone.segment, head);
        s != Status::kOk) {
      co_return s;
    }
    if (head.owner() != segments_.registration()) co_return Status::kFenced;
    if (const Status s = co_await segments_.release(remote, gone.segment, head); s != Status::kOk) {
      co_return s;
    }
  }
}

std::vector<BlockAllocator::ExtentView> BlockAllocator::begin_scrub() {
  const std::lock_guard lock(mutex_);
  std::vector<ExtentView> views;
  views.reserve(extents_.size());
  for (const auto& extent : extents_) {
    if (extent->leaving) continue;
    std::fill(extent->touched_bits.begin(), extent->touched_bits.end(), 0);
    views.push_back({extent->extent, extent->size_class, extent->shape, extent->free_bits});
  }
  return views;
}

uint64_t BlockAllocator::end_scrub(uint64_t segment, const std::vector<uint64_t>& dead_bits) {
  const std::lock_guard lock(mutex_);
  OwnedExtent* extent = extent_of_segment_[segment];
  if (extent == nullptr || extent->extent.segment != segment || extent->leaving) return 0;
  uint64_t freed = 0;
  for (size_t w = 0; w < dead_bits.size() && w < extent->free_bits.size(); ++w) {
    uint64_t bits = dead_bits[w] & ~extent->free_bits[w] & ~extent->touched_bits[w];
    for (; bits != 0; bits &= bits - 1) {
      free_locked(*extent, uint32_t(w * 64 + unsigned(std::countr_zero(bits))));
      ++freed;
    }
  }
  return freed;
}

}  // namespace kvstore
