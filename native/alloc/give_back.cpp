// Giving blocks back to extents of others, taking in what others gave back, adopting extents
// without an owner, and returning empty ones.

#include <algorithm>
#include <bit>

#include "alloc/allocator.hpp"
#include "base/assert.hpp"
#include "base/variant.hpp"
#include "fabric/overlapped.hpp"

namespace kvstore {

using layout::ExtentShape;
using layout::SegmentEntry;

namespace {

// Setting one bit races with at most the 63 other blocks of the word.
constexpr unsigned kBitRacesMax = 256;
constexpr unsigned kExtentsAtOnce = 32;
constexpr unsigned kWordsAtOnce = 64;
constexpr uint64_t kWindowNs = kSecond;

// In batches of a size that leaves room for others on the connection.
Task<Status> post_in_parts(Remote& remote, std::span<kv_op> ops) {
  while (!ops.empty()) {
    const std::span<kv_op> part = ops.first(std::min<size_t>(ops.size(), kWordsAtOnce));
    if (const uint32_t s = co_await remote.batch(part); s != KV_FABRIC_OK) co_return from_fabric(s);
    ops = ops.subspan(part.size());
  }
  co_return Status::kOk;
}

}  // namespace

// The head of the extent in which the block lies.
Task<Status> BlockAllocator::locate(Remote& remote, Block block, uint64_t& segment,
                                    SegmentEntry& head) {
  segment = segments_.geometry().segment_of(block.offset);
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
  co_return objects&& head.size_class() == block.size_class ? Status::kOk : Status::kAbsent;
}

// A CAS for each word, and one more while others change it. Most begin clear, as their owner has
// taken in what was set before.
Task<Status> BlockAllocator::set_free_bits(Remote& remote, FreeBits free_bits) {
  std::vector<kv_op> ops;
  for (const auto& [offset, bits] : free_bits) ops.push_back(cas_op(offset, 0, bits));
  for (unsigned race = 0; race < kBitRacesMax && !ops.empty(); ++race) {
    if (const Status s = co_await post_in_parts(remote, ops); s != Status::kOk) co_return s;
    std::vector<kv_op> again;
    for (const kv_op& op : ops) {
      const uint64_t bits = free_bits[op.offset];
      const bool done = op.result == op.operand || (bits & ~op.result) == 0;
      if (!done) again.push_back(cas_op(op.offset, op.result, op.result | bits));
    }
    ops.swap(again);
  }
  co_return Status::kOk;
}

// Of a block that has its extent to itself. A sweep, or who adopts it, may change the head between
// the look and the release.
Task<Status> BlockAllocator::release_extent_of(Remote& remote, Block block) {
  constexpr unsigned kAttemptsMax = 8;
  Status released = Status::kAbsent;
  for (unsigned attempt = 0; released == Status::kAbsent && attempt < kAttemptsMax; ++attempt) {
    uint64_t segment = 0;
    SegmentEntry head;
    const Status located = co_await locate(remote, block, segment, head);
    if (located != Status::kOk) co_return located;
    if (segments_.geometry().segment_offset(segment) != block.offset) co_return Status::kCorrupt;
    released = co_await segments_.release(remote, segment, head);
  }
  co_return released;
}

// Of blocks of one size class in one segment: one look at the head of their extent.
Task<Status> BlockAllocator::find_free_bits(Remote& remote, std::span<const Block> blocks,
                                            FreeBits& free_bits) {
  uint64_t segment = 0;
  SegmentEntry head;
  const Status located = co_await locate(remote, blocks.front(), segment, head);
  if (located != Status::kOk) co_return located;
  const ExtentShape shape = segments_.geometry().shape_of(segment, head);
  const uint64_t begin = segments_.geometry().segment_offset(segment);
  const uint64_t first = begin + shape.first_block_offset;
  Status worst = Status::kOk;
  for (const Block& block : blocks) {
    const uint64_t index = (block.offset - first) / block.bytes();
    const bool whole = block.offset >= first && (block.offset - first) % block.bytes() == 0;
    if (!whole || index >= shape.blocks) {
      worst = Status::kCorrupt;
      continue;
    }
    free_bits[begin + index / 64 * 8] |= uint64_t{1} << (index % 64);
  }
  co_return worst;
}

// Runs of blocks of one size class in one segment; a block with an extent of its own is one.
std::vector<std::span<const Block>> BlockAllocator::by_segment(std::vector<Block>& blocks) const {
  const layout::Geometry& geometry = segments_.geometry();
  std::sort(blocks.begin(), blocks.end(),
            [](const Block& a, const Block& b) { return a.offset < b.offset; });
  std::vector<std::span<const Block>> groups;
  for (size_t begin = 0, end; begin < blocks.size(); begin = end) {
    const Block& first = blocks[begin];
    end = begin + 1;
    while (geometry.shares_extent(first.size_class) && end < blocks.size() &&
           blocks[end].size_class == first.size_class &&
           geometry.segment_of(blocks[end].offset) == geometry.segment_of(first.offset)) {
      ++end;
    }
    groups.push_back({&first, end - begin});
  }
  return groups;
}

// What fails for itself keeps nothing else from going back.
Task<Status> BlockAllocator::give_back_foreign(Remote& remote, std::vector<Block> blocks) {
  Status worst = Status::kOk;
  FreeBits free_bits;
  const std::vector<std::span<const Block>> groups = by_segment(blocks);
  const auto look = [&](size_t i) -> Task<Status> {
    const std::span<const Block> group = groups[i];
    Status s = Status::kOk;
    if (segments_.geometry().shares_extent(group.front().size_class)) {
      s = co_await find_free_bits(remote, group, free_bits);
    } else {
      s = co_await release_extent_of(remote, group.front());
    }
    if (s != Status::kOk) worst = s;
    co_return remote.broken() ? s : Status::kOk;
  };
  const Status looked = co_await overlapped(remote, groups.size(), kExtentsAtOnce, look);
  if (looked != Status::kOk) co_return looked;
  const Status set = co_await set_free_bits(remote, std::move(free_bits));
  co_return set == Status::kOk ? worst : set;
}

Task<Status> BlockAllocator::give_back(Remote& remote, const std::vector<Block>& blocks) {
  std::vector<Block> foreign;
  Status worst = Status::kOk;
  for (const Block& block : blocks) {
    const Status freed = free_if_owned(block);
    if (freed == Status::kAbsent) foreign.push_back(block);
    if (freed == Status::kCorrupt) worst = freed;
  }
  if (foreign.empty()) co_return worst;
  const Status given = co_await give_back_foreign(remote, std::move(foreign));
  co_return given == Status::kOk ? worst : given;
}

// Of words in the bitmap of an own extent that were swung to 0: takes their blocks. Returns the
// swings that are to be repeated, as somebody has set more bits.
std::vector<kv_op> BlockAllocator::take_words(uint64_t segment, std::span<const kv_op> swings) {
  const uint64_t at = segments_.geometry().segment_offset(segment);
  std::vector<kv_op> again;
  const std::lock_guard lock(mutex_);
  OwnedExtent* extent = extent_of_segment_[segment];
  KV_ASSERT(extent != nullptr && extent->harvesters > 0);
  for (const kv_op& swing : swings) {
    if (swing.result != swing.operand) {
      const bool more = swing.result != 0 && !KV_VARIANT(harvest_leaves_raced);
      if (more) again.push_back(cas_op(swing.offset, swing.result, 0));
      continue;
    }
    const size_t w = (swing.offset - at) / 8;
    for (uint64_t bits = swing.operand; bits != 0; bits &= bits - 1) {
      const uint32_t index = uint32_t(w * 64 + unsigned(std::countr_zero(bits)));
      const bool known =
          index < extent->shape.blocks && (extent->free_bits[w] >> (index % 64) & 1) == 0;
      if (known) free_locked(*extent, index);  // else remote memory says what cannot be
    }
  }
  return again;
}

// Swings words that were read in the bitmap of an own extent to 0. No subtraction: if it were lost
// and executed behind another harvest's, it would borrow from the blocks beside.
Task<Status> BlockAllocator::take_in(Remote& remote, uint64_t segment,
                                     const std::vector<uint64_t>& words) {
  const uint64_t at = segments_.geometry().segment_offset(segment);
  std::vector<kv_op> swings;
  for (size_t w = 0; w < words.size(); ++w) {
    if (words[w] != 0) swings.push_back(cas_op(at + w * 8, words[w], 0));
  }
  size_t batches_left = swings.size() / kWordsAtOnce + kBitRacesMax;
  for (; !swings.empty() && batches_left > 0; --batches_left) {
    const size_t count = std::min<size_t>(swings.size(), kWordsAtOnce);
    const std::span<kv_op> part = std::span(swings).last(count);
    if (const uint32_t s = co_await remote.batch(part); s != KV_FABRIC_OK) co_return from_fabric(s);
    const std::vector<kv_op> again = take_words(segment, part);
    swings.resize(swings.size() - count);
    swings.insert(swings.end(), again.begin(), again.end());
  }
  co_return swings.empty() ? Status::kOk : Status::kPending;
}

Task<Status> BlockAllocator::harvest_extent(Remote& remote, uint64_t segment) {
  uint32_t blocks = 0;
  {
    const std::lock_guard lock(mutex_);
    OwnedExtent* extent = extent_of_segment_[segment];
    const bool mine = extent != nullptr && extent->extent.segment == segment;
    if (!mine || extent->leaving) co_return Status::kOk;
    // Another lane may have cleared bits whose blocks it has yet to take.
    if (extent->harvesters > 0) co_return Status::kPending;
    ++extent->harvesters;
    blocks = extent->shape.blocks;
  }
  std::vector<uint64_t> words((blocks + 63) / 64);
  kv_op read[1] = {
      read_op(segments_.geometry().segment_offset(segment), words.data(), words.size() * 8)};
  const uint32_t posted = co_await remote.batch(read);
  Status status = from_fabric(posted);
  if (posted == KV_FABRIC_OK) status = co_await take_in(remote, segment, words);
  const std::lock_guard lock(mutex_);
  --extent_of_segment_[segment]->harvesters;
  co_return status;
}

// Nobody waits for what another lane is about to take in.
Task<Status> BlockAllocator::try_harvest(Remote& remote, uint64_t segment) {
  const Status s = co_await harvest_extent(remote, segment);
  co_return s == Status::kPending ? Status::kOk : s;
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
  const auto step = [&](size_t i) { return try_harvest(remote, segments[i]); };
  co_return co_await overlapped(remote, segments.size(), kExtentsAtOnce, step);
}

Task<Status> BlockAllocator::adopt_extent(Remote& remote, uint64_t segment, SegmentEntry head) {
  const layout::Geometry& geometry = segments_.geometry();
  const unsigned size_class = head.size_class();
  const ExtentShape shape = geometry.shape_of(segment, head);
  if (shape.blocks == 0) co_return Status::kCorrupt;
  const SegmentEntry mine =
      head.successor(SegmentEntry::kObjects, segments_.registration(), head.run(), size_class);
  kv_op op[1] = {cas_op(geometry.entry_offset(segment), head.word, mine.word)};
  if (const uint32_t s = co_await remote.batch(op); s != KV_FABRIC_OK) co_return from_fabric(s);
  if (op[0].result != head.word && !KV_VARIANT(adopt_without_cas)) co_return Status::kAbsent;
  adoptions_.fetch_add(1, std::memory_order_relaxed);
  {
    const std::lock_guard lock(mutex_);
    add_extent({segment, head.run()}, size_class, shape,
               std::vector<uint64_t>((shape.blocks + 63) / 64, 0));
  }
  co_return co_await try_harvest(remote, segment);
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
      const Status adopted = co_await adopt_extent(remote, at + i, entry);
      if (adopted == Status::kAbsent || adopted == Status::kCorrupt) continue;
      if (adopted != Status::kOk) co_return adopted;
      if (free_blocks(size_class) > 0) co_return Status::kOk;
    }
  }
  co_return Status::kOutOfMemory;
}

// Forgets an extent that is leaving.
void BlockAllocator::drop_extent(OwnedExtent& extent) {
  const Extent gone = extent.extent;
  Class& c = classes_[extent.size_class];
  std::erase(c.with_free, &extent);
  c.owned_blocks -= extent.shape.blocks;
  c.owned_segments -= gone.run;
  for (uint32_t i = 0; i < gone.run; ++i) extent_of_segment_[gone.segment + i] = nullptr;
  std::erase_if(extents_, [&](const auto& owned) { return owned.get() == &extent; });
}

bool BlockAllocator::leave_if_empty(OwnedExtent& extent) {
  if (extent.leaving || extent.free_count < extent.shape.blocks) return false;
  extent.leaving = true;
  classes_[extent.size_class].free_blocks -= extent.free_count;
  empty_.push_back(&extent);
  return true;
}

Task<Status> BlockAllocator::release_unneeded(Remote& remote) {
  {
    const std::lock_guard lock(mutex_);
    const uint64_t now_ns = monotonic_ns();
    const bool over = now_ns - window_began_ns_ >= kWindowNs || KV_BUGGIFY(early_release);
    if (!over) co_return Status::kOk;
    window_began_ns_ = now_ns;
    for (const auto& extent : extents_) {
      Class& c = classes_[extent->size_class];
      if (c.unneeded_blocks < extent->shape.blocks || !leave_if_empty(*extent)) continue;
      c.unneeded_blocks -= extent->shape.blocks;
    }
    for (Class& c : classes_) c.unneeded_blocks = c.free_blocks;
  }
  co_return co_await release_leaving(remote);
}

Task<Status> BlockAllocator::release_empty(Remote& remote, unsigned kept_class) {
  {
    const std::lock_guard lock(mutex_);
    for (const auto& extent : extents_) {
      if (extent->size_class != kept_class) leave_if_empty(*extent);
    }
  }
  co_return co_await release_leaving(remote);
}

Task<Status> BlockAllocator::release_leaving(Remote& remote) {
  for (;;) {
    Extent gone;
    {
      const std::lock_guard lock(mutex_);
      // An empty extent has no bits to be harvested; a harvester that reads it leaves soon.
      if (empty_.empty() || empty_.back()->harvesters > 0) co_return Status::kOk;
      gone = empty_.back()->extent;
      drop_extent(*empty_.back());
      empty_.pop_back();
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

Task<Status> BlockAllocator::yield(Remote& remote, unsigned size_class) {
  const layout::Geometry& geometry = segments_.geometry();
  OwnedExtent* best = nullptr;
  std::vector<uint64_t> free_bits;
  {
    const std::lock_guard lock(mutex_);
    for (OwnedExtent* extent : classes_[size_class].with_free) {
      if (extent->leaving || extent->harvesters > 0 || extent->free_count == 0) continue;
      if (best == nullptr || extent->free_count > best->free_count) best = extent;
    }
    if (best == nullptr) co_return Status::kOk;
    best->leaving = true;
    classes_[size_class].free_blocks -= best->free_count;
    free_bits = best->free_bits;
  }
  const Extent gone = best->extent;
  // The bits of free blocks are clear there, as the owner cleared them: the addition carries into
  // nobody's.
  std::vector<kv_op> ops;
  for (size_t w = 0; w < free_bits.size(); ++w) {
    if (free_bits[w] == 0) continue;
    ops.push_back(faa_op(geometry.segment_offset(gone.segment) + w * 8, free_bits[w]));
  }
  if (const Status s = co_await post_in_parts(remote, ops); s != Status::kOk) co_return s;
  SegmentEntry head;
  if (const Status s = co_await segments_.read_entry(remote, gone.segment, head);
      s != Status::kOk) {
    co_return s;
  }
  if (head.owner() != segments_.registration()) co_return Status::kFenced;
  const SegmentEntry adoptable = head.successor(SegmentEntry::kAdoptable, 0, gone.run, size_class);
  {
    // Before anybody can adopt it: what comes free from here on is another's.
    const std::lock_guard lock(mutex_);
    drop_extent(*best);
  }
  kv_op op[1] = {cas_op(geometry.entry_offset(gone.segment), head.word, adoptable.word)};
  co_return from_fabric(co_await remote.batch(op));
}

std::vector<BlockAllocator::ExtentView> BlockAllocator::begin_scrub() {
  const std::lock_guard lock(mutex_);
  runs_taken_.clear();
  std::vector<ExtentView> views;
  views.reserve(extents_.size());
  for (const auto& extent : extents_) {
    if (extent->leaving) continue;
    std::fill(extent->touched_bits.begin(), extent->touched_bits.end(), 0);
    views.push_back(
        {extent->extent, extent->size_class, extent->number, extent->shape, extent->free_bits});
  }
  return views;
}

uint64_t BlockAllocator::end_scrub(uint64_t segment, uint64_t number,
                                   const std::vector<uint64_t>& dead_bits) {
  const std::lock_guard lock(mutex_);
  OwnedExtent* extent = extent_of_segment_[segment];
  if (extent == nullptr || extent->number != number || extent->leaving) return 0;
  uint64_t freed = 0;
  for (size_t w = 0; w < dead_bits.size() && w < extent->free_bits.size(); ++w) {
    const uint64_t touched = KV_VARIANT(scrub_frees_taken_blocks) ? 0 : extent->touched_bits[w];
    uint64_t bits = dead_bits[w] & ~extent->free_bits[w] & ~touched;
    for (; bits != 0; bits &= bits - 1) {
      free_locked(*extent, uint32_t(w * 64 + unsigned(std::countr_zero(bits))));
      ++freed;
    }
  }
  return freed;
}

}  // namespace kvstore
