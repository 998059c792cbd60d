// Returning what a fenced client held: its half-done split, its extents, its blocks.
//
// The caller has fenced the client. Blocks that the index does not point at may still be in the
// limbo of a live client, so they are given back only after four rounds of the safe epoch, for the
// reason told in store/scrub.hpp.

#pragma once

#include <cstdint>
#include <vector>

#include "store/unreferenced.hpp"

namespace kvstore {

class Sweep {
 public:
  explicit Sweep(uint32_t registration) : registration_(registration) {}

  // First: finishes the split, undoes claims, lists the extents. Extents without an owner are among
  // them: blocks of theirs may have been in the limbo of the client.
  Task<Status> begin(Channel& channel);
  // Then, until it no longer returns kPending: finds their dead blocks.
  Task<Status> look(Channel& channel);
  // Four rounds later, until it no longer returns kPending: gives back what is still dead, leaves
  // the rest to be adopted.
  Task<Status> give_back(Channel& channel);

  uint64_t blocks_freed() const { return blocks_freed_; }

 private:
  Task<Status> settle(Channel& channel, uint64_t segment, layout::SegmentEntry head);
  Task<Status> settle_subtable(Channel& channel, uint64_t segment, layout::SegmentEntry head);
  Task<Status> take_over(Channel& channel, uint64_t segment, layout::SegmentEntry head);
  Task<Status> list_extent(Channel& channel, uint64_t segment, layout::SegmentEntry head);
  Task<Status> give_back_extent(Channel& channel, UnreferencedSearch& search,
                                layout::SegmentEntry head);

  const uint32_t registration_;
  std::vector<UnreferencedSearch> searches_;
  std::vector<layout::SegmentEntry> heads_;  // of the same extents
  size_t at_ = 0;
  bool looked_ = false;
  uint64_t blocks_freed_ = 0;
};

// Releases extents without an owner in which every block has been set free.
Task<Status> release_abandoned(Channel& channel);

}  // namespace kvstore
