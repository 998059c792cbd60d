#include "alloc/allocator.hpp"

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <utility>

#include "base/assert.hpp"
#include "base/variant.hpp"

namespace kvstore {

using layout::ExtentShape;
using layout::SegmentEntry;

namespace {

// A full table is looked at again after this long, not by every put.
constexpr uint64_t kFullScanPauseNs = 2 * kMillisecond;
// Extents grow up to this many segments, or this many blocks where those are more.
constexpr uint32_t kRunMax = 16;
constexpr uint32_t kLargeBlocksPerExtent = 8;
// How often an operation waits for another that is growing the class, and looks whether there is
// anything for it.
constexpr unsigned kGrowthRoundsMax = 4096;
constexpr uint64_t kGrowthPollNs = 50'000;

size_t words_for(uint32_t blocks) {
  return (blocks + 63) / 64;
}

std::vector<uint64_t> all_free(uint32_t blocks) {
  std::vector<uint64_t> bits(words_for(blocks), ~uint64_t{0});
  if (blocks % 64 != 0) bits.back() = (uint64_t{1} << (blocks % 64)) - 1;
  return bits;
}

}  // namespace

BlockAllocator::BlockAllocator(SegmentTable& segments)
    : segments_(segments), classes_(layout::kSizeClasses) {
  extent_of_segment_ = static_cast<OwnedExtent**>(
      std::calloc(segments.geometry().segment_count, sizeof(OwnedExtent*)));
  KV_ASSERT(extent_of_segment_ != nullptr);
}

BlockAllocator::~BlockAllocator() {
  std::free(extent_of_segment_);
}

std::optional<Block> BlockAllocator::take_locked(unsigned size_class) {
  Class& c = classes_[size_class];
  while (!c.with_free.empty()) {
    OwnedExtent& extent = *c.with_free.back();
    if (extent.free_count == 0 || extent.leaving) {
      extent.listed = false;
      c.with_free.pop_back();
      continue;
    }
    for (size_t w = 0; w < extent.free_bits.size(); ++w) {
      if (extent.free_bits[w] == 0) continue;
      const unsigned bit = unsigned(std::countr_zero(extent.free_bits[w]));
      extent.free_bits[w] &= extent.free_bits[w] - 1;
      extent.touched_bits[w] |= uint64_t{1} << bit;
      --extent.free_count;
      --c.free_blocks;
      c.unneeded_blocks = std::min(c.unneeded_blocks, c.free_blocks);
      return Block{extent.block_offset(segments_.geometry(), uint32_t(w * 64 + bit)), size_class};
    }
    KV_ASSERT(!"free_count says that a bit is set");
  }
  return std::nullopt;
}

std::optional<Block> BlockAllocator::take_local(unsigned size_class) {
  const std::lock_guard lock(mutex_);
  return take_locked(size_class);
}

void BlockAllocator::free_locked(OwnedExtent& extent, uint32_t index) {
  const uint64_t bit = uint64_t{1} << (index % 64);
  KV_ASSERT(index < extent.shape.blocks);
  KV_ASSERT((extent.free_bits[index / 64] & bit) == 0);
  extent.free_bits[index / 64] |= bit;
  ++extent.free_count;
  Class& c = classes_[extent.size_class];
  ++c.free_blocks;
  if (!extent.listed) {
    extent.listed = true;
    c.with_free.push_back(&extent);
  }
}

Status BlockAllocator::free_if_owned(Block block) {
  const layout::Geometry& geometry = segments_.geometry();
  // Block and class may come from a slot of the node: they are believed only as far as they fit.
  if (!geometry.holds_block(block.offset, block.size_class)) return Status::kCorrupt;
  const std::lock_guard lock(mutex_);
  OwnedExtent* extent = extent_of_segment_[geometry.segment_of(block.offset)];
  if (extent == nullptr || extent->leaving) return Status::kAbsent;
  const uint64_t first = extent->block_offset(geometry, 0);
  if (extent->size_class != block.size_class || block.offset < first) return Status::kCorrupt;
  const uint64_t index = (block.offset - first) / block.bytes();
  if (index >= extent->shape.blocks ||
      extent->block_offset(geometry, uint32_t(index)) != block.offset ||
      (extent->free_bits[index / 64] >> (index % 64) & 1) != 0) {
    return Status::kCorrupt;
  }
  free_locked(*extent, uint32_t(index));
  return Status::kOk;
}

bool BlockAllocator::owns(uint64_t offset) const {
  const std::lock_guard lock(mutex_);
  return extent_of_segment_[segments_.geometry().segment_of(offset)] != nullptr;
}

uint64_t BlockAllocator::free_blocks(unsigned size_class) const {
  const std::lock_guard lock(mutex_);
  return classes_[size_class].free_blocks;
}

uint64_t BlockAllocator::owned_blocks(unsigned size_class) const {
  const std::lock_guard lock(mutex_);
  return classes_[size_class].owned_blocks;
}

OwnedExtent* BlockAllocator::add_extent(const Extent& extent, unsigned size_class,
                                        const ExtentShape& shape,
                                        const std::vector<uint64_t>& free_bits) {
  auto owned = std::make_unique<OwnedExtent>();
  owned->extent = extent;
  owned->size_class = size_class;
  owned->number = ++ownerships_;
  owned->shape = shape;
  owned->free_bits = free_bits;
  owned->touched_bits.assign(free_bits.size(), 0);
  for (const uint64_t word : free_bits) owned->free_count += uint32_t(std::popcount(word));
  owned->listed = true;
  Class& c = classes_[size_class];
  c.with_free.push_back(owned.get());
  c.free_blocks += owned->free_count;
  c.owned_blocks += shape.blocks;
  c.owned_segments += extent.run;
  for (uint32_t i = 0; i < extent.run; ++i) extent_of_segment_[extent.segment + i] = owned.get();
  extents_.push_back(std::move(owned));
  return extents_.back().get();
}

// Small extents at first, then as large as the class has grown, so that a class with few objects
// holds little memory and one with many takes few round trips. Among those, one that wastes less
// than a sixteenth where there is one.
uint32_t BlockAllocator::wanted_run(unsigned size_class) const {
  const layout::Geometry& geometry = segments_.geometry();
  const uint64_t bytes = layout::class_bytes(size_class);
  const uint32_t least = geometry.segments_for(bytes + layout::kLineBytes);
  if (KV_BUGGIFY(small_extents)) return least;
  const uint64_t owned = classes_[size_class].owned_segments;
  const uint64_t most = std::max<uint64_t>(kRunMax, uint64_t{least} * kLargeBlocksPerExtent);
  const uint32_t wish = uint32_t(std::min(std::bit_ceil(owned + 1), most));
  const uint32_t from = std::max(least, wish);
  uint32_t best = from;
  uint64_t best_waste = UINT64_MAX;
  for (uint32_t run = from; run <= from + kRunMax; ++run) {
    const ExtentShape shape = layout::extent_shape(bytes, run, geometry.segment_bytes);
    if (shape.blocks == 0) continue;
    const uint64_t total = run * geometry.segment_bytes;
    const uint64_t waste = (total - shape.blocks * bytes) * 1024 / total;
    if (waste < best_waste) {
      best = run;
      best_waste = waste;
    }
    if (waste <= 64) break;
  }
  return best;
}

Task<Status> BlockAllocator::grow(Remote& remote, unsigned size_class) {
  const layout::Geometry& geometry = segments_.geometry();
  const uint64_t bytes = layout::class_bytes(size_class);
  uint32_t run;
  {
    const std::lock_guard lock(mutex_);
    run = wanted_run(size_class);
  }
  const uint32_t least = geometry.segments_for(bytes + layout::kLineBytes);
  if (KV_BUGGIFY(segment_exhaustion)) co_return Status::kOutOfMemory;
  for (;;) {
    const ExtentShape shape = layout::extent_shape(bytes, run, geometry.segment_bytes);
    KV_ASSERT(shape.blocks > 0);
    const uint64_t clear_bytes = KV_VARIANT(dirty_bitmap) ? 0 : shape.first_block_offset;
    const ClaimResult claimed =
        co_await segments_.claim(remote, run, SegmentEntry::kObjects, size_class, clear_bytes);
    if (claimed.status == Status::kOk) {
      const std::lock_guard lock(mutex_);
      add_extent(claimed.extent, size_class, shape, all_free(shape.blocks));
      co_return Status::kOk;
    }
    if (claimed.status != Status::kOutOfMemory || run == least) co_return claimed.status;
    run = std::max(least, run / 2);
  }
}

Task<TakeResult> BlockAllocator::take_run(Remote& remote, unsigned size_class) {
  const layout::Geometry& geometry = segments_.geometry();
  const uint32_t run = geometry.segments_for(layout::class_bytes(size_class));
  const ClaimResult claimed =
      co_await segments_.claim(remote, run, SegmentEntry::kObjects, size_class, 0);
  if (claimed.status != Status::kOk) co_return TakeResult{claimed.status, {}};
  const std::lock_guard lock(mutex_);
  runs_taken_.insert(claimed.extent.segment);
  co_return TakeResult{
      Status::kOk, {geometry.segment_offset(claimed.extent.segment), size_class}, true};
}

bool BlockAllocator::took_run(uint64_t segment) const {
  const std::lock_guard lock(mutex_);
  return runs_taken_.contains(segment);
}

Task<TakeResult> BlockAllocator::take(Remote& remote, unsigned size_class) {
  const layout::Geometry& geometry = segments_.geometry();
  if (!geometry.shares_extent(size_class)) {
    co_return co_await take_run(remote, size_class);
  }
  if (const std::optional<Block> block = take_local(size_class)) {
    co_return TakeResult{Status::kOk, *block};
  }
  for (unsigned round = 0; round < kGrowthRoundsMax; ++round) {
    if (monotonic_ns() < table_full_until_ns_.load(std::memory_order_relaxed)) break;
    bool grown = false;
    Status status = Status::kPending;
    if (begin_growing(size_class)) {
      status = co_await find_more(remote, size_class, grown);
      end_growing(size_class);
    } else {
      co_await remote.executor().sleep_until(monotonic_ns() + kGrowthPollNs);
      if (remote.broken()) co_return TakeResult{Status::kNodeUnreachable, {}};
    }
    if (status != Status::kOk && status != Status::kPending) co_return TakeResult{status, {}};
    // Another operation may have emptied the new extent already.
    if (const std::optional<Block> block = take_local(size_class)) {
      co_return TakeResult{Status::kOk, *block, grown};
    }
  }
  co_return TakeResult{};
}

bool BlockAllocator::begin_growing(unsigned size_class) {
  const std::lock_guard lock(mutex_);
  return !std::exchange(classes_[size_class].growing, true);
}

void BlockAllocator::end_growing(unsigned size_class) {
  const std::lock_guard lock(mutex_);
  classes_[size_class].growing = false;
}

// Blocks of a new extent, or that others gave back, or of an adopted extent.
Task<Status> BlockAllocator::find_more(Remote& remote, unsigned size_class, bool& grown) {
  if (free_blocks(size_class) > 0) co_return Status::kOk;
  Status status = co_await grow(remote, size_class);
  grown = status == Status::kOk;
  if (status != Status::kOutOfMemory) co_return status;
  status = co_await harvest(remote, 64);
  if (status != Status::kOk || free_blocks(size_class) > 0) co_return status;
  status = co_await adopt(remote, size_class);
  if (status == Status::kOutOfMemory) {
    table_full_until_ns_.store(monotonic_ns() + kFullScanPauseNs, std::memory_order_relaxed);
  }
  co_return status;
}

}  // namespace kvstore
