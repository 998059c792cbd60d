// Epochs, leases and fencing: what a node does by itself, in steps that a thread of it drives, or a
// simulation. Thread-safe.

#pragma once

#include <atomic>
#include <cstdint>
#include <functional>

#include "base/status.hpp"
#include "node/registry.hpp"

namespace kvstore {

class Upkeep {
 public:
  struct Rules {
    uint64_t lease_ns = 0;
    uint64_t fence_after_ns = 0;  // of a stopped process that maps the region; 0: never
  };
  // `cut_off` ends the connections of a registration: when it returns, no operation of the client
  // executes any more. `fenced` is told of each that has to be swept, `lost` when clients have lost
  // operations: clients look for what those left in their extents, and nobody in extents without an
  // owner.
  using Told = std::function<void(uint32_t registration)>;
  Upkeep(Registry& registry, const Rules& rules, Told cut_off, Told fenced,
         std::function<void()> lost);

  // Advances the epochs and judges who has been silent for a lease. Returns how long until the next
  // tick.
  uint64_t tick();

  // The client has said farewell. kAbsent if it is not here.
  Status dismiss(uint32_t registration);
  // The socket over which a client had the region mapped hung up; `left`: after a farewell. Waits
  // for the end of a process that has begun to end.
  void hung_up(uint32_t registration, bool left);
  // Fences every client that can be cut off from outside. Those that map the region have been told;
  // nothing of them may be reused before their end, but nobody is killed for it any more.
  void revoke();

 private:
  void judge_silent(uint32_t registration);
  // Makes sure that no operation of the client can execute any more, then has it swept.
  // `left`: it went of its own will.
  void fence(uint32_t registration, bool connected, bool left);

  Registry& registry_;
  const Rules rules_;
  const Told cut_off_;
  const Told fenced_;
  const std::function<void()> lost_;
  uint64_t losses_seen_ = 0;
  std::atomic<bool> revoked_{false};
};

}  // namespace kvstore
