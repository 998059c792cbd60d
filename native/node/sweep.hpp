// Returning what a fenced client held: its half-done split, its extents, its blocks.
//
// The caller has fenced the client. Blocks that the index does not point at may still be in the
// limbo of a live client, so they are given back only after three rounds of the safe epoch, for the
// reason told in store/scrub.hpp.

#pragma once

#include <cstdint>
#include <vector>

#include "store/scrub.hpp"

namespace kvstore {

class Sweep {
 public:
  explicit Sweep(uint32_t registration) : registration_(registration) {}

  // First half: finishes the split, undoes claims, finds the extents and their dead blocks.
  Task<Status> look(Channel& channel);
  // Second half, three rounds later: gives back what is still dead, leaves the rest to be adopted.
  Task<Status> give_back(Channel& channel);

  uint64_t blocks_freed() const { return blocks_freed_; }

 private:
  struct Held {
    uint64_t segment;
    layout::SegmentEntry head;
    layout::ExtentShape shape;
    std::vector<uint64_t> dead;
  };

  Task<Status> settle(Channel& channel, uint64_t segment, layout::SegmentEntry head);
  Task<Status> settle_subtable(Channel& channel, uint64_t segment, layout::SegmentEntry head);
  Task<Status> give_back_extent(Channel& channel, Held& held);

  const uint32_t registration_;
  std::vector<Held> held_;
  uint64_t blocks_freed_ = 0;
};

// Releases extents without an owner in which every block has been set free.
Task<Status> release_abandoned(Channel& channel);

}  // namespace kvstore
