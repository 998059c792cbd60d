// Which blocks of an extent hold objects that the index does not point at.
//
// The search is driven by objects, not by the index: an index scan would miss a slot that a split
// moves meanwhile. It goes on in slices, since what its caller does besides must not wait for a
// large extent.

#pragma once

#include <cstdint>
#include <vector>

#include "store/extent_objects.hpp"

namespace kvstore {

// Whether the index leads from a key's hash to the block, also while a split carries the entry.
// Tentative entries for it are emptied: their inserter is gone, or will find its commit refused and
// begin again. `result` is true unless it is known that it does not.
Task<Status> is_referenced(Remote& remote, Directory& directory, uint64_t key_hash,
                           uint64_t address, bool& result);

struct UnreferencedSearch {
  ExtentBlocks blocks;
  std::vector<uint64_t> dead;  // bitmap of those found so far
  uint64_t ownership = 0;      // of an own extent: BlockAllocator::ExtentView::number

  uint64_t dead_blocks() const;
  // Has the search begin again, among those that it found dead.
  void again();
  // Has it find nothing dead.
  void spare_all();
};

// The next slice, of a few hundred blocks. A tentative slot that points at an unreferenced block is
// emptied.
Task<Status> search_slice(Channel& channel, UnreferencedSearch& search);

// Goes on with a list of searches for about a millisecond; `at` is the one to go on with. kPending
// while there is more to do.
Task<Status> search_for_a_while(Channel& channel, std::vector<UnreferencedSearch>& searches,
                                size_t& at);

// The segment table, read in pieces.
Task<Status> read_segment_table(Channel& channel, std::vector<uint64_t>& words);

}  // namespace kvstore
