// What copies of values in the compute nodes give in a simulated cluster: compute nodes in closed
// loops that read and replace the values of one memory node. The store's own client runs as it is,
// with its copies and without; two other ways to keep copies stand beside it (cache_rivals.hpp).
//
// It checks itself: no read may return a value that a write had replaced before the read began,
// but where copies are only leased; those reads are counted.

#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "fabric/sim/mail.hpp"
#include "fabric/sim/sim.hpp"

namespace kvstore::sim {

struct CacheBenchOptions {
  std::string policy = "coherent";  // see `cache_policies`
  uint64_t compute_nodes = 8;
  uint64_t lanes = 16;  // of each compute node; each runs one operation after another
  uint64_t keys = 10'000;
  double zipf = 0.99;
  // Of a thousand operations. The rest replaces values.
  uint64_t read_permille = 950;
  uint64_t scan_permille = 0;    // read 1 to 100 neighbours in one batch
  uint64_t modify_permille = 0;  // read a value, then replace it
  uint64_t insert_permille = 0;  // put a key that was not there
  uint64_t latest = 0;           // 1: what was put last is read most
  // Bytes of values: each key has one of them.
  std::vector<uint64_t> sizes{1024};
  uint64_t cache_bytes = uint64_t{64} << 20;  // of each compute node
  uint64_t manager_messages_per_s = 2'000'000;
  uint64_t lease_ns = 1'000'000;  // of a leased copy
  // What a read from a copy takes of a lane: this, and its bytes at so many a microsecond.
  uint64_t hit_ns = 150;
  uint64_t hit_bytes_per_us = 10'000;
  uint64_t warmup_operations = 100'000;
  uint64_t measure_operations = 100'000;
  SimTiming timing;
  MailTiming mail;
  uint64_t events_max = 2'000'000'000;
};

struct CacheBenchResult {
  std::string violation;  // empty if there is none
  uint64_t operations = 0;
  double ops_per_s = 0;
  double p50_us = 0;
  double p99_us = 0;
  double verbs_per_op = 0;
  double hit_ratio = 0;  // of the values read
  double invalidations_per_op = 0;
  double messages_per_op = 0;
  double nic_busy = 0;
  uint64_t stale_reads = 0;
  uint64_t events = 0;

  bool good() const { return violation.empty(); }
};

struct CachePolicy {
  std::string name;
  std::string description;
};
std::vector<CachePolicy> cache_policies();

// Returns what is wrong with the options, or an empty string.
std::string check_options(const CacheBenchOptions& options);

CacheBenchResult run_cache_bench(const CacheBenchOptions& options, uint64_t seed);

}  // namespace kvstore::sim
