// What must hold for the memory of a node at rest: nothing under way, every split finished.
//
// Each function returns an empty string, or one line about the first thing that is wrong.

#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "alloc/allocator.hpp"
#include "layout/layout.hpp"

namespace kvstore::sim {

// The index of a node, read directly from its region.
class IndexView {
 public:
  IndexView(const uint8_t* region, const layout::Geometry& geometry);

  // No block has two slots, no key two objects, every slot leads to an object that is whole, and no
  // slot waits for its commit. Unless a split may be left half done: no slot moves either, and no
  // bucket waits to be filled.
  std::string check(bool splits_finished) const;

  const uint8_t* region() const { return region_; }
  const layout::Geometry& geometry() const { return geometry_; }
  // In the order of their addresses.
  std::span<const layout::Slot> slots() const { return slots_; }
  bool points_at(uint64_t offset) const;
  uint64_t word_at(uint64_t offset) const;

 private:
  void read_subtable(uint64_t offset);

  const uint8_t* const region_;
  const layout::Geometry geometry_;
  std::vector<layout::Slot> slots_;  // that are not empty
  std::string unfinished_;
};

// While the owner lives and nothing of its is in a limbo: every block of its extents is free, for
// it or in the bitmap, or the index points at it. Never both.
std::string check_extents(const IndexView& index, uint32_t registration,
                          std::span<const BlockAllocator::ExtentView> extents);

// After all clients are gone and swept: nobody owns anything but the index, and every block is free
// or the index points at it. Never both.
std::string check_deserted(const IndexView& index);

}  // namespace kvstore::sim
