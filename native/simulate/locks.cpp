// kvstore_simulate_locks: measures a lock in a simulated cluster; see simulate/comparison.hpp.

#include "sim/lock_bench.hpp"
#include "simulate/comparison.hpp"

namespace kvstore::sim {
namespace {

constexpr Setting<LockBenchOptions> kSettings[] = {
    {"compute_nodes", "compute nodes", 1, 512, 1, &LockBenchOptions::compute_nodes},
    {"clients", "clients of each", 1, 1024, 1, &LockBenchOptions::clients},
    {"memory_nodes", "memory nodes", 1, 64, 1, &LockBenchOptions::memory_nodes},
    {"locks", "locks", 1, 10'000'000, 1, &LockBenchOptions::locks},
    {"read_percent", "readers of a hundred", 0, 100, 1, &LockBenchOptions::read_percent},
    {"accesses", "of 8 bytes while a lock is held", 0, 1000, 1, &LockBenchOptions::accesses},
    {"locality_percent", "of the compute node's own locks", 0, 100, 1,
     &LockBenchOptions::locality_percent},
    {"ring", "entries of a queue, 0: one for each place", 0, layout::kLockRingMax, 1,
     &LockBenchOptions::ring},
    {"kill_us", "after the warm-up a compute node dies, 0: none", 0, 60'000'000, 1000,
     &LockBenchOptions::kill_ns},
    {"lease_us", "from its death until it is given up", 100, 60'000'000, 1000,
     &LockBenchOptions::lease_ns},
    {"warmup_us", "before it is measured", 0, 60'000'000, 1000, &LockBenchOptions::warmup_ns},
    {"measure_us", "for so long", 1, 60'000'000, 1000, &LockBenchOptions::measure_ns},
};

ComparisonRow measure(const LockBenchOptions& options, uint64_t seed) {
  const LockBenchResult result = run_lock_bench(options, seed);
  return {result.violation,
          result.operations,
          result.events,
          {
              {"ops_per_s", result.ops_per_s},
              {"p50_us", result.p50_us},
              {"p99_us", result.p99_us},
              {"p999_us", result.p999_us},
              {"jain", result.jain},
              {"verbs_per_op", result.verbs_per_op},
              {"messages_per_op", result.messages_per_op},
              {"nic_busy", result.nic_busy},
              {"hot_share", result.hot_share},
              {"wait_ratio", result.wait_ratio},
              {"wait_position", double(result.wait_position)},
              {"wait_us", result.wait_us},
              {"handover_us", result.handover_us},
              {"release_p50_us", result.release_p50_us},
              {"rereads_per_op", result.rereads_per_op},
              {"found_by_look_per_op", result.found_by_look_per_op},
          },
          {
              {"hot_acquire_us", result.hot_acquire_us},
              {"timeline", result.timeline},
          }};
}

void print_locks() {
  for (const BenchLock& lock : bench_locks()) {
    std::printf("{\"name\": \"%s\", \"description\": \"%s\", \"masked\": %s}\n", lock.name.c_str(),
                lock.description.c_str(), lock.masked ? "true" : "false");
  }
}

constexpr Comparison<LockBenchOptions> kComparison = {
    .program = "kvstore_simulate_locks",
    .subject = "lock",
    .chosen = &LockBenchOptions::lock,
    .list_flag = "--locks",
    .print_list = print_locks,
    .settings = kSettings,
    .more_help = "",
    .take_other = nullptr,
    .measure = measure,
};

}  // namespace
}  // namespace kvstore::sim

int main(int count, char** arguments) {
  return kvstore::sim::compare(kvstore::sim::kComparison, count, arguments);
}
