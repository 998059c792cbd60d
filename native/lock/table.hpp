// The lock table of a node as a client finds it, or makes it: whoever wants the first lock claims
// an extent, clears it, and makes it known by CAS of the root. Who loses that race gives its own
// extent back; a client that dies before leaves an extent that the sweep finds to be no table.

#pragma once

#include <atomic>
#include <cstdint>

#include "alloc/segments.hpp"
#include "layout/locks.hpp"

namespace kvstore {

class LockTable {
 public:
  explicit LockTable(const layout::Geometry& geometry)
      : geometry_(geometry), wanted_(layout::default_lock_table(geometry.region_bytes)) {}

  // The shape that `open` makes where there is no table yet.
  void want(const layout::LockTableShape& shape) { wanted_ = shape; }

  // kOutOfMemory if there is none and no room for one; kCorrupt if what is there can't be one.
  // Lanes may be at it together.
  Task<Status> open(Remote& remote, SegmentTable& segments);

  // Of an open table.
  bool is_open() const { return offset_.load(std::memory_order_acquire) != 0; }
  const layout::LockTableShape& shape() const { return shape_; }
  // What fences name who hold a lock of this table.
  layout::FenceLock fence_lock(uint64_t name_hash) const {
    return layout::FenceLock::make(name_hash, era_);
  }
  uint64_t record_offset(uint32_t number) const {
    return offset_.load(std::memory_order_relaxed) + layout::kLineBytes +
           number * shape_.record_bytes();
  }

 private:
  Task<Status> make(Remote& remote, SegmentTable& segments);
  Task<Status> fill(Remote& remote, uint64_t offset, const layout::LockTableShape& shape);
  Task<Status> adopt(Remote& remote, uint64_t offset);

  const layout::Geometry geometry_;
  layout::LockTableShape wanted_;
  layout::LockTableShape shape_;
  uint64_t era_ = 0;
  std::atomic<bool> adopting_{false};
  std::atomic<uint64_t> offset_{0};
};

// Whether the node has a lock table.
Task<Status> has_lock_table(Remote& remote, bool& has);

// Whether the extent at `segment` is the node's lock table.
Task<Status> is_lock_table(Remote& remote, const layout::Geometry& geometry, uint64_t segment,
                           bool& is);

}  // namespace kvstore
