// What locks give in a simulated cluster: clients in closed loops that take a lock, touch remote
// memory, and release it. The store's own lock runs as it is; published ones beside it.
//
// It checks itself: at no instant do a writer and anybody else hold a lock; a writer writes how
// many writers there have been, each reader finds the latest of that, and so does the end.

#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "base/variant.hpp"
#include "fabric/sim/mail.hpp"
#include "fabric/sim/sim.hpp"
#include "layout/locks.hpp"

namespace kvstore::sim {

struct LockBenchOptions {
  std::string lock = "kvstore";  // see `bench_locks`
  uint64_t compute_nodes = 8;
  uint64_t clients = 32;  // of each compute node
  uint64_t memory_nodes = 1;
  uint64_t locks = 100'000;
  double zipf = 0.99;
  uint64_t read_percent = 50;
  uint64_t accesses = 1;          // of 8 bytes, while a lock is held
  uint64_t locality_percent = 0;  // of the operations: on a lock that is the compute node's own
  uint64_t ring = 0;              // entries of a queue of the store's lock; 0: one for each place
  uint64_t kill_ns = 0;           // so long after `warmup_ns` a compute node dies; 0: none does
  uint64_t lease_ns = 5'000'000;  // from its death until the nodes give it up
  uint64_t warmup_ns = 2'000'000;
  uint64_t measure_ns = 8'000'000;
  SimTiming timing;
  MailTiming mail;
  uint64_t events_max = 2'000'000'000;
  SwitchBits variants;  // rules that are broken: see base/variant.hpp
};

// In thousandths, ascending.
inline constexpr std::array<uint64_t, 13> kHotQuantiles = {0,   10,  50,  100, 250, 500, 750,
                                                           900, 950, 990, 995, 999, 1000};

struct LockBenchResult {
  std::string violation;  // empty if there is none
  uint64_t operations = 0;
  double ops_per_s = 0;
  double p50_us = 0;
  double p99_us = 0;
  double p999_us = 0;
  double jain = 0;
  double verbs_per_op = 0;
  double messages_per_op = 0;
  double nic_busy = 0;
  double hot_share = 0;  // of the operations: on the lock that is wanted most
  uint64_t events = 0;
  // The wait that was longest beside what its position promises: see sim/lock_waits.hpp.
  double wait_ratio = 0;
  uint64_t wait_position = 0;
  double wait_us = 0;
  double handover_us = 0;  // of that lock, the median
  double release_p50_us = 0;
  double rereads_per_op = 0;           // READs of a queue beyond the one that a release takes along
  double found_by_look_per_op = 0;     // grants that their waiter found without a message
  std::vector<double> hot_acquire_us;  // of the lock that is wanted most, at kHotQuantiles
  std::vector<double> timeline;        // operations in each millisecond

  bool good() const { return violation.empty(); }
};

struct BenchLock {
  std::string name;
  std::string description;
  bool masked;  // needs atomics that only the simulator has
};
std::vector<BenchLock> bench_locks();

// Returns what is wrong with the options, or an empty string.
std::string check_options(const LockBenchOptions& options);

LockBenchResult run_lock_bench(const LockBenchOptions& options, uint64_t seed);

}  // namespace kvstore::sim
