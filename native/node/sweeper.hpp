// Sweeps after clients that have been fenced: one set of them after another, in steps that never
// wait. A thread of the node drives it, or a simulation.
//
// A sweep waits for the safe epoch, which may wait for an insert, and that for the split of a
// client whose turn has not come: so the splits of all that wait to be swept are finished
// meanwhile.

#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <vector>

#include "node/registry.hpp"
#include "node/sweep.hpp"
#include "store/lane.hpp"

namespace kvstore {

class Sweeper {
 public:
  // `lane` is one of the node's own client, for the sweeper alone.
  Sweeper(Registry& registry, const uint8_t* region, Lane& lane);
  ~Sweeper() { abandon(); }
  Sweeper(const Sweeper&) = delete;
  Sweeper& operator=(const Sweeper&) = delete;

  // The client has been fenced. Any thread; `step` has work then.
  void add(uint32_t registration);
  // Extents without an owner are to be looked through, although nobody was fenced. Any thread.
  void add_ownerless();

  // Goes on as far as can be now, or if it `may_wait` for answers of the node's device, until only
  // time or more work helps. Returns when (monotonic) it must be called again, UINT64_MAX if only
  // `add`, or a completion that was not waited for, makes that worthwhile.
  uint64_t step(bool may_wait);
  // Ends what is under way, without its result.
  void abandon();

  // Nothing waits to be swept.
  bool idle() const;
  uint64_t clients_swept() const { return clients_swept_.load(); }
  uint64_t blocks_freed() const { return blocks_freed_.load(); }

 private:
  enum class Stage { kIdle, kBegin, kSettle, kLook, kRounds, kGiveBack };
  bool waits() const { return stage_ == Stage::kSettle || stage_ == Stage::kRounds; }

  bool take_work();
  uint64_t next_work_ns() const;
  uint64_t proceed();
  void begin_rounds(Stage stage);
  uint64_t wait_for_round(uint64_t deadline_ns);
  void finished(Status status);
  const layout::NodeLine& line() const {
    return *reinterpret_cast<const layout::NodeLine*>(region_ + layout::kNodeLineOffset);
  }

  Registry& registry_;
  const uint8_t* const region_;
  Lane& lane_;
  mutable std::mutex mutex_;
  std::deque<uint32_t> waiting_;
  bool ownerless_wanted_ = false;
  uint64_t ownerless_not_before_ns_ = 0;
  uint64_t rounds_began_ns_ = 0;
  std::vector<uint32_t> registrations_;  // of this sweep
  std::unique_ptr<Sweep> sweep_;
  Stage stage_ = Stage::kIdle;
  uint64_t not_before_ns_ = 0;
  unsigned rounds_ = 0;
  uint64_t round_until_ = 0;      // safe epoch to be passed in this round
  std::vector<uint32_t> splits_;  // that may have to be finished before the next look at the epoch
  std::atomic<uint64_t> clients_swept_{0};
  std::atomic<uint64_t> blocks_freed_{0};
};

}  // namespace kvstore
