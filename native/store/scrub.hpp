// Finding blocks of own extents that nobody points at and nobody will give back: left behind by a
// client that died between unlinking an object and giving its block back, or by a lost connection.
//
// A block is a candidate if it was taken when the scrub began, by a put that has ended since, and
// the normal look-up of its key does not lead to it: one of a put under way could come to life
// after the look, and end again. It may still be in the limbo of a client that lives, which will
// give it back; so the scrub waits until the safe epoch has passed four times what the global epoch
// was. By the first pass every client has begun a heartbeat after the look, by the second one that
// took such a block from among the fresh and tagged it, by the third the safe epoch has passed the
// tag, by the fourth a heartbeat that saw this gave the block back before it published. What is
// then still taken, still unreferenced and untouched by our own puts is dead.

#pragma once

#include <cstdint>
#include <vector>

#include "alloc/allocator.hpp"
#include "store/lane.hpp"
#include "store/unreferenced.hpp"

namespace kvstore {

class Scrub {
 public:
  bool running() const { return stage_ != Stage::kIdle; }
  void request() { requested_ = true; }

  // One step, from the heartbeat: `global` and `safe` as just read. Takes a few milliseconds at
  // most.
  Task<Status> advance(Channel& channel, uint64_t global_epoch, uint64_t safe_epoch);

  uint64_t freed() const { return freed_; }

 private:
  enum class Stage { kIdle, kSettling, kLooking, kWaiting, kFinishing };

  Task<Status> begin(Channel& channel);
  Task<Status> look(Channel& channel);
  bool round_passes(uint64_t global_epoch, uint64_t safe_epoch);
  Task<Status> finish(Channel& channel);
  Task<Status> finish_one(Channel& channel, UnreferencedSearch& search);

  bool requested_ = false;
  Stage stage_ = Stage::kIdle;
  unsigned rounds_ = 0;
  uint64_t until_ = 0;  // safe epoch to be passed in this round; 0: not set yet
  std::vector<UnreferencedSearch> searches_;
  size_t at_ = 0;
  uint64_t freed_ = 0;
};

}  // namespace kvstore
