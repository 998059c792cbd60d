// The locks of the experiments hold what they promise, and a lock that does not is found out.

#include "sim/lock_bench.hpp"

#include <doctest/doctest.h>

#include <algorithm>

#include "base/variant.hpp"
#include "sim/zipf.hpp"

namespace kvstore::sim {
namespace {

// Few locks, so that there is a queue at each.
LockBenchOptions crowded(const std::string& lock) {
  LockBenchOptions options;
  options.lock = lock;
  options.compute_nodes = 4;
  options.clients = 6;
  options.locks = 8;
  options.warmup_ns = 500'000;
  options.measure_ns = 2'000'000;
  options.timing.late_per_million = 0;
  options.timing.pieces_max = 1;
  options.mail = {1'600, 200, 0, 0, 0, 0};
  return options;
}

}  // namespace

TEST_CASE("lock bench: every lock excludes, and its counters end where they must") {
  for (const BenchLock& lock : bench_locks()) {
    for (const uint64_t read_percent : {0, 50, 95}) {
      for (const uint64_t memory_nodes : {1, 3}) {
        CAPTURE(lock.name);
        CAPTURE(read_percent);
        CAPTURE(memory_nodes);
        LockBenchOptions options = crowded(lock.name);
        options.read_percent = read_percent;
        options.memory_nodes = memory_nodes;
        const LockBenchResult result = run_lock_bench(options, 3);
        CHECK(result.violation == "");
        CHECK(result.operations > 100);
      }
    }
  }
}

TEST_CASE("lock bench: no lock stands still where messages and verbs are late and in any order") {
  for (const BenchLock& lock : bench_locks()) {
    CAPTURE(lock.name);
    for (uint64_t seed = 1; seed <= 5; ++seed) {
      LockBenchOptions options = crowded(lock.name);
      options.locks = 2;
      options.timing.delay_ns_spread = 3'000;
      options.mail.delay_ns_spread = 3'000;
      CHECK(run_lock_bench(options, seed).violation == "");
    }
  }
}

TEST_CASE("lock bench: tickets of 16 bits begin anew") {
  LockBenchOptions options = crowded("dslr");
  options.locks = 1;
  options.read_percent = 100;
  options.accesses = 0;
  options.measure_ns = 20'000'000;
  const LockBenchResult result = run_lock_bench(options, 1);
  CHECK(result.violation == "");
  CHECK(result.operations > 2 * 32'768);
}

TEST_CASE("lock bench: a lock that does not hold is found out") {
  LockBenchOptions options = crowded("kvstore");
  options.locks = 2;
  options.measure_ns = 50'000'000;
  // Who waits long looks after itself.
  options.mail.lost_per_million = 300'000;
  CHECK(run_lock_bench(options, 1).violation == "");
  for (const Variant variant :
       {Variant::lock_looks_one_ahead, Variant::lock_readers_help_themselves}) {
    options.variants.reset().set(unsigned(variant));
    CHECK(run_lock_bench(options, 1).violation != "");
  }
}

// Entries of 6 bytes lie across words, and a READ beside a WRITE may find half of each. Ours are
// one word.
TEST_CASE("lock bench: a compute node that dies is survived once it is given up") {
  LockBenchOptions options = crowded("kvstore");
  options.measure_ns = 16'000'000;
  options.kill_ns = 3'000'000;
  options.lease_ns = 4'000'000;
  for (uint64_t seed = 1; seed <= 3; ++seed) {
    const LockBenchResult result = run_lock_bench(options, seed);
    CHECK(result.violation == "");
    REQUIRE(result.timeline.size() == 16);
    CHECK(result.timeline[1] > 0);
    // With so few locks, all others wait for one that the dead one holds or stands before.
    CHECK(result.timeline[6] == 0);
    CHECK(result.timeline[15] > 0);
  }
  options.compute_nodes = 1;
  CHECK(check_options(options) != "");
}

TEST_CASE("lock bench: who finds no room for its entry looks for itself, and soon") {
  LockBenchOptions options = crowded("kvstore-flat");
  options.locks = 1;
  options.ring = 8;
  const LockBenchResult result = run_lock_bench(options, 1);
  CHECK(result.violation == "");
  CHECK(result.found_by_look_per_op > 0);
  options.ring = 0;
  const LockBenchResult roomy = run_lock_bench(options, 1);
  CHECK(roomy.found_by_look_per_op == 0);
  CHECK(result.ops_per_s > roomy.ops_per_s / 8);
  options.ring = 9;
  CHECK(check_options(options) != "");
}

TEST_CASE("lock bench: how long the hottest lock was waited for, in ascending order") {
  for (const char* lock : {"kvstore", "declock"}) {
    const LockBenchResult result = run_lock_bench(crowded(lock), 1);
    REQUIRE(result.hot_acquire_us.size() == kHotQuantiles.size());
    CHECK(std::is_sorted(result.hot_acquire_us.begin(), result.hot_acquire_us.end()));
    CHECK(result.hot_acquire_us.back() > result.hot_acquire_us.front());
    CHECK(result.release_p50_us > 0);
    CHECK(result.rereads_per_op > 0);
  }
}

TEST_CASE("lock bench: transfers that tear break DecLock as released, not the store's lock") {
  unsigned broken = 0;
  for (uint64_t seed = 1; seed <= 5; ++seed) {
    LockBenchOptions options = crowded("declock");
    options.timing.pieces_max = 4;
    broken += run_lock_bench(options, seed).good() ? 0 : 1;
    options.lock = "kvstore";
    CHECK(run_lock_bench(options, seed).violation == "");
  }
  CHECK(broken > 0);
}

TEST_CASE("lock bench: free locks cost two verbs, and one access one more") {
  LockBenchOptions options = crowded("kvstore");
  options.locks = 100'000;
  options.zipf = 0;
  const LockBenchResult result = run_lock_bench(options, 1);
  CHECK(result.verbs_per_op == doctest::Approx(3).epsilon(0.01));
  CHECK(result.messages_per_op < 0.01);
}

TEST_CASE("lock bench: what can't be is refused") {
  LockBenchOptions options;
  CHECK(check_options(options) == "");
  options.lock = "padlock";
  CHECK(check_options(options) == "there is no lock `padlock`");
  options.lock = "declock";
  options.compute_nodes = 33;
  CHECK(check_options(options) != "");
}

TEST_CASE("lock bench: Zipf numbers are as frequent as they should be") {
  Random random(1);
  const Zipf zipf(100'000, 0.99);
  const Zipf uniform(4, 0);
  unsigned first = 0, even = 0;
  constexpr unsigned kDraws = 100'000;
  for (unsigned i = 0; i < kDraws; ++i) {
    const uint64_t number = zipf.draw(random);
    REQUIRE(number < 100'000);
    first += number == 0 ? 1 : 0;
    even += uniform.draw(random) % 2 == 0 ? 1 : 0;
  }
  CHECK(double(first) / kDraws == doctest::Approx(0.078).epsilon(0.05));
  CHECK(double(even) / kDraws == doctest::Approx(0.5).epsilon(0.05));
}

}  // namespace kvstore::sim
