// A simulated cluster: memory nodes, compute nodes with the store's real client, a workload,
// faults, and the history of what every operation was told. One seed decides all of it.
//
// A world runs on one thread and has that thread's time to itself; `run_world` gives it a fresh
// one, so that nothing that the thread did before can be felt in it.

#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/variant.hpp"
#include "fabric/sim/mail.hpp"
#include "sim/linearizability.hpp"
#include "sim/memory_node.hpp"

namespace kvstore::sim {

struct WorldOptions {
  unsigned nodes = 1;
  unsigned clients = 4;
  unsigned lanes = 2;  // of each client; each runs one call after another
  uint64_t keys = 8;
  uint64_t records = 0;        // coherence records that all keys have; 0: as their names fall
  uint64_t operations = 2000;  // of all clients together
  // Beside the 8 bytes of its number, a value has from `min` to `max`.
  uint64_t value_bytes_min = 0;
  uint64_t value_bytes_max = 600;
  // Of a hundred calls; the rest deletes.
  unsigned get_percent = 45;
  unsigned contains_percent = 5;
  unsigned put_percent = 35;
  // A third of the puts only if the key is absent, a quarter of the other writes only if it has the
  // version last seen.
  bool conditions = true;
  unsigned fenced_percent = 0;  // of the writes: carry the token of a lock's holder
  // The first calls put every key once.
  bool preload = false;
  uint64_t think_ns_max = 20'000;
  uint64_t timeout_ns = 2 * kSecond;
  int64_t drift_per_million_max = 1000;  // of every clock, either way
  MemoryNodeOptions node;
  // Of each client, for copies of values; 0: none are made.
  uint64_t cache_bytes = 0;
  unsigned hosts = 0;  // on which clients share stamps, in turn; 0: each has a host of its own
  MailTiming mail;     // between clients
  // Of a hundred puts: have a time to live, of at most `lives_ns_max`.
  unsigned mortal_percent = 0;
  uint64_t lives_ns_max = kSecond;

  // Of the operations that begin: with this one, soon after, some client dies and another one takes
  // its place;
  uint64_t crashes_per_million = 0;
  // or does so with a farewell;
  uint64_t leaves_per_million = 0;
  // or its connections to a node break;
  uint64_t breaks_per_million = 0;
  // or its host stands still;
  uint64_t pauses_per_million = 0;
  uint64_t pause_ns_max = 2 * kSecond;
  // or no messages pass between it and a node, both ways or one;
  uint64_t partitions_per_million = 0;
  uint64_t partition_ns_max = 2 * kSecond;
  // or a node loses its power, and comes back empty;
  uint64_t power_losses_per_million = 0;
  uint64_t power_loss_ns_max = kSecond;
  // or a bit of some object flips.
  uint64_t damages_per_million = 0;
  // No more faults than these.
  uint64_t faults_max = UINT64_MAX;
  // One that comes in any case: the `forced_fault`-th of the above, with this operation. 0: none.
  unsigned forced_fault = 0;
  uint64_t forced_at = 0;

  // Bit n: the n-th broken variant of base/variants.def.
  SwitchBits variants;
  // Each rare path of base/variants.def is open in so many of a million worlds.
  uint64_t rare_per_million = 0;
  // Bit n: the n-th of them is open in any case.
  SwitchBits rare;

  bool check_blocks = true;  // see block_watch.hpp
  bool check_cost = true;
  // At the end everything comes to rest: all keys are read, all clients go, all memory is accounted
  // for.
  bool rest = true;
  // Virtual time after which a world that has not done its operations is stuck.
  uint64_t limit_ns = 600 * kSecond;
  // The same in real time.
  uint64_t wall_limit_ns = 60 * kSecond;
};

// From the call that follows the preloaded keys to the last call: all lanes have work.
struct Measured {
  uint64_t begin_ns = 0;  // virtual instants
  uint64_t end_ns = 0;
  uint64_t operations = 0;
  uint64_t verbs = 0;  // at the nodes, those of the upkeep too
  // Shares of the time: of the busiest node's NIC, and of all lanes' processors.
  double nic_busy = 0;
  double nic_blocked = 0;  // of that, standing still for an address
  double processor_busy = 0;
};

struct WorldResult {
  bool finished = false;  // all operations have returned, or their clients crashed
  LinearizabilityResult linearizability;
  std::string violation;  // of anything else; empty if there is none
  std::vector<Operation> history;
  uint64_t digest = 0;  // of the history, to the nanosecond
  uint64_t virtual_ns = 0;
  uint64_t events = 0;
  uint64_t verbs = 0;
  uint64_t torn = 0;
  uint64_t breaks = 0;
  uint64_t orphans = 0;
  uint64_t crashes = 0;
  uint64_t pauses = 0;
  uint64_t leaves = 0;
  uint64_t partitions = 0;
  uint64_t power_losses = 0;
  uint64_t damages = 0;
  uint64_t attachments = 0;  // beyond the first of each client at each node
  uint64_t costed = 0;       // operations whose verbs were held against the table
  uint64_t fenced = 0;
  uint64_t swept = 0;
  uint64_t unknown = 0;  // operations without a known outcome
  // Of all clients that were there at the end.
  uint64_t cache_hits = 0;
  uint64_t cache_fills = 0;
  uint64_t cache_revoked = 0;
  uint64_t invalidations = 0;
  uint64_t invalidations_spared = 0;
  uint64_t writes_at_once = 0;
  uint64_t stamps_open = 0;  // at the end
  uint64_t cache_handed = 0;
  uint64_t leases_waited = 0;
  Measured measured;

  bool good() const {
    return finished && violation.empty() && linearizability.verdict == Verdict::kLinearizable;
  }
};

// `trace` is told of every operation, fault and verb.
WorldResult run_world(const WorldOptions& options, uint64_t seed, Trace trace = {});

}  // namespace kvstore::sim
