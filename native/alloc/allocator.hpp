// The second level of allocation: blocks of one size class inside extents that this client owns.
//
// Taking and giving back a block of an own extent is local. A block of another client's extent goes
// back through the bitmap at that extent's start: anyone sets a bit there, only the owner clears it
// (FUSEE, FAST'23, section 4.3). Blocks of an extent of their own are released as segments by
// whoever retired them.
//
// Thread-safe: the lanes of a client share it.

#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <unordered_set>
#include <vector>

#include "alloc/segments.hpp"

namespace kvstore {

struct Block {
  uint64_t offset = 0;
  unsigned size_class = 0;

  uint64_t bytes() const { return layout::class_bytes(size_class); }
};

struct TakeResult {
  Status status = Status::kOutOfMemory;
  Block block;
  bool grown = false;  // from segments that were free
};

struct OwnedExtent {
  Extent extent;
  unsigned size_class = 0;
  uint64_t number = 0;  // of this ownership: the same segments may be owned again later
  layout::ExtentShape shape{};
  uint32_t free_count = 0;
  bool listed = false;      // in its class's list of extents with free blocks
  bool leaving = false;     // about to be released or yielded: nothing is taken from it
  unsigned harvesters = 0;  // at its bitmap just now: it can't be yielded
  std::vector<uint64_t> free_bits;
  std::vector<uint64_t> touched_bits;  // taken since the last scrub began

  uint64_t block_offset(const layout::Geometry& geometry, uint32_t index) const {
    return geometry.segment_offset(extent.segment) + shape.first_block_offset +
           index * layout::class_bytes(size_class);
  }
};

class BlockAllocator {
 public:
  explicit BlockAllocator(SegmentTable& segments);
  ~BlockAllocator();

  // A free block of an own extent, without a verb.
  std::optional<Block> take_local(unsigned size_class);

  // A block: an own free one, one of a new extent, one that others gave back, one of an adopted
  // extent, in this order. kOutOfMemory if none of these is to be had.
  Task<TakeResult> take(Remote& remote, unsigned size_class);

  // Gives back blocks that nobody can hold any more, wherever they lie. What can't be given back
  // because the connection broke is left to the sweep.
  Task<Status> give_back(Remote& remote, const std::vector<Block>& blocks);

  // Takes in what others have set free in own extents; at most `extents_max` of them are read.
  Task<Status> harvest(Remote& remote, unsigned extents_max);
  // The same for the extent that begins at `segment`, if it is an own one: all that was set before
  // the call. kPending if another lane is at it, or others go on setting bits.
  Task<Status> harvest_extent(Remote& remote, uint64_t segment);

  // Returns empty extents to the node, as many as a class could have done without for a second:
  // blocks wait their epoch before they come free again, so a class in use swings.
  Task<Status> release_unneeded(Remote& remote);
  // Returns all empty extents but those of one class.
  Task<Status> release_empty(Remote& remote, unsigned kept_class);

  // Makes an extent without an owner this client's. kAbsent if somebody was faster.
  Task<Status> adopt_extent(Remote& remote, uint64_t segment, layout::SegmentEntry head);
  // How many have been adopted so far.
  uint64_t adoptions() const { return adoptions_.load(std::memory_order_relaxed); }

  // Gives the extent with the most free blocks of the class up, for somebody else to adopt.
  Task<Status> yield(Remote& remote, unsigned size_class);

  bool owns(uint64_t offset) const;
  // Blocks of the class that can be taken without a verb.
  uint64_t free_blocks(unsigned size_class) const;
  uint64_t owned_blocks(unsigned size_class) const;

  // The own extents, for the scrub: copies of what it needs.
  struct ExtentView {
    Extent extent;
    unsigned size_class;
    uint64_t number;
    layout::ExtentShape shape;
    std::vector<uint64_t> free_bits;
  };
  std::vector<ExtentView> begin_scrub();
  // Frees those of `dead_bits` that are neither free nor taken since the scrub began.
  uint64_t end_scrub(uint64_t segment, uint64_t number, const std::vector<uint64_t>& dead_bits);

  // Whether a block with an extent of its own was taken there since the scrub began.
  bool took_run(uint64_t segment) const;

 private:
  struct Class {
    std::vector<OwnedExtent*> with_free;
    uint64_t free_blocks = 0;
    uint64_t unneeded_blocks = 0;  // the least that were free since the window began
    uint64_t owned_blocks = 0;
    uint64_t owned_segments = 0;
    bool growing = false;  // an operation is at it: the others wait for what it brings
  };

  std::optional<Block> take_locked(unsigned size_class);
  void free_locked(OwnedExtent& extent, uint32_t index);
  // kAbsent: the block is not in an own extent. kCorrupt: there is no such block, or it is free.
  Status free_if_owned(Block block);
  OwnedExtent* add_extent(const Extent& extent, unsigned size_class,
                          const layout::ExtentShape& shape, const std::vector<uint64_t>& free_bits);
  uint32_t wanted_run(unsigned size_class) const;
  Task<Status> grow(Remote& remote, unsigned size_class);
  Task<Status> find_more(Remote& remote, unsigned size_class, bool& grown);
  bool begin_growing(unsigned size_class);
  void end_growing(unsigned size_class);
  Task<Status> adopt(Remote& remote, unsigned size_class);
  Task<TakeResult> take_run(Remote& remote, unsigned size_class);
  Task<Status> release_extent_of(Remote& remote, Block block);
  // Bits to be set, by the offset of their word.
  using FreeBits = std::map<uint64_t, uint64_t>;
  Task<Status> give_back_foreign(Remote& remote, std::vector<Block> blocks);
  std::vector<std::span<const Block>> by_segment(std::vector<Block>& blocks) const;
  Task<Status> find_free_bits(Remote& remote, std::span<const Block> blocks, FreeBits& free_bits);
  Task<Status> locate(Remote& remote, Block block, uint64_t& segment, layout::SegmentEntry& head);
  Task<Status> set_free_bits(Remote& remote, FreeBits free_bits);
  std::vector<kv_op> take_words(uint64_t segment, std::span<const kv_op> swings);
  Task<Status> take_in(Remote& remote, uint64_t segment, const std::vector<uint64_t>& words);
  Task<Status> try_harvest(Remote& remote, uint64_t segment);
  void drop_extent(OwnedExtent& extent);
  bool leave_if_empty(OwnedExtent& extent);
  Task<Status> release_leaving(Remote& remote);

  SegmentTable& segments_;
  mutable std::mutex mutex_;
  std::vector<Class> classes_;
  std::vector<std::unique_ptr<OwnedExtent>> extents_;
  OwnedExtent** extent_of_segment_;  // one pointer a segment, zero pages until used
  std::vector<OwnedExtent*> empty_;  // leaving, to be released
  uint64_t window_began_ns_ = 0;
  std::unordered_set<uint64_t> runs_taken_;  // since the last scrub began
  uint64_t ownerships_ = 0;
  size_t harvest_next_ = 0;
  std::atomic<uint64_t> table_full_until_ns_{0};
  std::atomic<uint64_t> adoptions_{0};
};

}  // namespace kvstore
