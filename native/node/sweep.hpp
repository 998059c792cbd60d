// Returning what fenced clients held: half-done splits, extents, blocks.
//
// The caller has fenced the clients. An extent without an owner may hold a block of a put that goes
// on, and blocks that the index does not point at may be in the limbo of a live client. So a round
// of the safe epoch goes by before the look, and four before they are given back, for the reasons
// told in store/scrub.hpp.

#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "store/unreferenced.hpp"

namespace kvstore {

class Sweep {
 public:
  explicit Sweep(std::vector<uint32_t> registrations) : registrations_(std::move(registrations)) {}

  // First: finishes splits, undoes claims, lists the extents. Extents without an owner are among
  // them: blocks of theirs may have been in the limbo of a client.
  Task<Status> begin(Channel& channel);
  // A round later, until it no longer returns kPending: finds their dead blocks.
  Task<Status> look(Channel& channel);
  // Four rounds later, until it no longer returns kPending: gives back what is still dead, leaves
  // the rest to be adopted.
  Task<Status> give_back(Channel& channel);

  // In between, instead of waiting for the rounds: nothing is dead, all is left to be adopted.
  void spare_all();

  uint64_t blocks_freed() const { return blocks_freed_; }

 private:
  Task<Status> settle(Channel& channel, uint64_t segment, layout::SegmentEntry head);
  Task<Status> settle_subtable(Channel& channel, uint64_t segment, layout::SegmentEntry head);
  Task<Status> take_over(Channel& channel, uint64_t segment, layout::SegmentEntry head);
  Task<Status> list_extent(Channel& channel, uint64_t segment, layout::SegmentEntry head);
  Task<Status> give_back_extent(Channel& channel, UnreferencedSearch& search,
                                layout::SegmentEntry head);

  bool of_the_dead(uint32_t owner) const;

  const std::vector<uint32_t> registrations_;
  std::vector<UnreferencedSearch> searches_;
  std::vector<layout::SegmentEntry> heads_;  // of the same extents
  size_t at_ = 0;
  bool looked_ = false;
  uint64_t blocks_freed_ = 0;
};

// Finishes the split that a fenced client left half done, if it did.
Task<Status> finish_split_of(Channel& channel, uint32_t registration);

// Releases extents without an owner in which every block has been set free.
Task<Status> release_abandoned(Channel& channel);

}  // namespace kvstore
