// Simulated clients that contend for a few locks, with messages lost, doubled and late, connections
// that break, hosts that stand still and clients that crash anywhere. Checked at every event:
//
//   one writer or any number of readers hold a lock, those included that died and are not fenced
//   a writer's token is larger than all earlier ones, a reader's than all earlier writers'
//   a header never counts more writers than requests, nor more requests than there can be
// and at the end: everybody who waited came to an end; without faults nobody is left in a queue.

#pragma once

#include <cstdint>
#include <string>

#include "base/variant.hpp"
#include "coro/clock.hpp"
#include "fabric/sim/mail.hpp"
#include "fabric/sim/sim.hpp"
#include "layout/locks.hpp"

namespace kvstore::sim {

struct LockWorldOptions {
  unsigned clients = 4;
  unsigned workers = 2;  // threads of each client
  unsigned locks = 1;
  layout::LockTableShape shape{64, 4};
  uint64_t operations = 300;  // of all workers together
  unsigned readers_percent = 40;
  unsigned tries_percent = 5;      // only if free
  unsigned hurried_percent = 10;   // with a deadline that may pass
  unsigned cancelled_percent = 0;  // given up at one of the first steps on their way
  unsigned leased_percent = 0;     // with a lease of up to `leased_ns_max`, ended or not
  uint64_t leased_ns_max = 10'000;
  uint64_t hold_ns_max = 20'000;
  uint64_t think_ns_max = 20'000;
  uint64_t hurried_ns_max = 100'000;
  uint64_t timeout_ns = 300 * kSecond;
  int64_t drift_per_million_max = 1000;
  uint64_t lease_ns = 200 * kMillisecond;
  SimTiming timing;
  MailTiming mail;
  // Of the operations that begin: with it a client crashes soon, or a client's connections break,
  // or a host stands still for up to `pause_ns_max`.
  uint64_t crashes_per_million = 0;
  uint64_t breaks_per_million = 0;
  unsigned resetter_crashes_percent = 0;  // of the resets begun: whoever does it crashes soon
  uint64_t pauses_per_million = 0;
  uint64_t pause_ns_max = 400 * kMillisecond;
  uint64_t limit_ns = 600 * kSecond;  // of virtual time
  uint64_t events_max = 20'000'000;
  SwitchBits variants;  // rules that are broken: see base/variant.hpp
};

struct LockWorldResult {
  bool finished = false;
  std::string violation;  // the first; empty if there is none
  uint64_t granted = 0;
  uint64_t gave_up = 0;
  uint64_t cancelled = 0;
  uint64_t cancelled_too_late = 0;  // the lock was granted, and is let go at once
  uint64_t expired = 0;             // leases, before their holders released
  uint64_t crashes = 0;
  uint64_t crashed_holding = 0;
  uint64_t crashed_resetting = 0;
  uint64_t pauses = 0;
  uint64_t fenced = 0;
  uint64_t resets = 0;
  uint64_t looks = 0;
  uint64_t found_by_look = 0;
  uint64_t grants_sent = 0;
  uint64_t verbs = 0;
  uint64_t longest_wait_ns = 0;
  uint64_t virtual_ns = 0;
  uint64_t events = 0;
  uint64_t digest = 0;  // of every grant, to the nanosecond

  bool good() const { return finished && violation.empty(); }
};

LockWorldResult run_lock_world(const LockWorldOptions& options, uint64_t seed);

}  // namespace kvstore::sim
