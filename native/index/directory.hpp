// A client's copy of the directory of one node.
//
// It may be stale: bucket headers say for which keys a bucket is right, and whoever finds a
// mismatch reads the directory again. Subtables are never freed in an incarnation, so a stale entry
// always points at a subtable. Entries are single atomic words shared by the threads of a client.

#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "base/status.hpp"
#include "coro/task.hpp"
#include "fabric/remote.hpp"
#include "layout/layout.hpp"

namespace kvstore {

class Directory {
 public:
  explicit Directory(const layout::Geometry& geometry)
      : geometry_(geometry),
        entries_(
            std::make_unique<std::atomic<uint64_t>[]>(size_t{1} << geometry.directory_depth_max)) {}

  layout::DirectoryEntry entry_of(uint64_t hash) const {
    const unsigned depth = depth_.load(std::memory_order_acquire);
    const uint64_t index = hash & ((uint64_t{1} << depth) - 1);
    return layout::DirectoryEntry{entries_[index].load(std::memory_order_relaxed)};
  }
  unsigned depth() const { return depth_.load(std::memory_order_acquire); }
  uint64_t size() const { return uint64_t{1} << depth(); }
  layout::DirectoryEntry entry_at(uint64_t index) const {
    return layout::DirectoryEntry{entries_[index].load(std::memory_order_relaxed)};
  }

  // Reads the directory from the node: its depth, then the entries in use. kCorrupt if what is
  // there can't be a directory.
  Task<Status> refresh(Remote& remote);

 private:
  bool plausible(layout::DirectoryEntry entry) const {
    const uint64_t offset = entry.offset();
    return entry.depth() <= geometry_.directory_depth_max &&
           offset >= geometry_.first_segment_offset &&
           offset + layout::kSubtableBytes <= geometry_.region_bytes;
  }

  const layout::Geometry geometry_;
  std::unique_ptr<std::atomic<uint64_t>[]> entries_;
  std::atomic<unsigned> depth_{0};
};

}  // namespace kvstore
