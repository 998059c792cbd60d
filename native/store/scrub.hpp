// Finding blocks of own extents that nobody points at and nobody will give back: left behind by a
// client that died between unlinking an object and giving its block back, or by a lost connection.
//
// The scrub is driven by objects, not by the index: an index scan would miss a slot that a split
// moves meanwhile. A block is a candidate if the normal look-up of its key does not lead to it. It
// may still be in the limbo of a client that lives, which will give it back; so the scrub waits
// until the safe epoch has passed three times what the global epoch was. By then every live client
// has had a heartbeat that tagged such a block, and a later one that gave it back before
// publishing. What is then still taken, still unreferenced and untouched by our own puts is dead.

#pragma once

#include <cstdint>
#include <vector>

#include "alloc/allocator.hpp"
#include "store/lane.hpp"

namespace kvstore {

// The blocks of an extent whose objects the index does not point at, as a bitmap. Blocks in `skip`
// are not looked at. A tentative slot that still points at such a block is emptied.
Task<Status> find_unreferenced(Channel& channel, const Extent& extent, unsigned size_class,
                               const layout::ExtentShape& shape, const std::vector<uint64_t>& skip,
                               std::vector<uint64_t>& dead);

class Scrub {
 public:
  bool running() const { return stage_ != 0; }
  void request() { requested_ = true; }

  // One step, from the heartbeat: `global` and `safe` as just read.
  Task<Status> advance(Channel& channel, uint64_t global_epoch, uint64_t safe_epoch);

  uint64_t freed() const { return freed_; }

 private:
  struct Candidate {
    BlockAllocator::ExtentView view;
    std::vector<uint64_t> dead;
  };
  Task<Status> look(Channel& channel);
  Task<Status> finish(Channel& channel);

  bool requested_ = false;
  unsigned stage_ = 0;  // 0: idle; 1..3: waiting for the safe epoch to pass `until_`
  uint64_t until_ = 0;
  std::vector<Candidate> candidates_;
  uint64_t freed_ = 0;
};

}  // namespace kvstore
