// Worlds whose clients have copies of values.

#include <doctest/doctest.h>

#include "base/variant.hpp"
#include "sim/world.hpp"

namespace kvstore::sim {
namespace {

WorldOptions copying() {
  WorldOptions options;
  options.cache_bytes = 64 << 10;
  options.keys = 4;
  options.get_percent = 65;
  options.put_percent = 22;
  options.rare = uint64_t{1} << unsigned(RarePath::cache_everything);
  return options;
}

void check(const WorldOptions& options, uint64_t seeds) {
  uint64_t hits = 0;
  for (uint64_t seed = 1; seed <= seeds; ++seed) {
    const WorldResult result = run_world(options, seed);
    CAPTURE(seed);
    CHECK_MESSAGE(result.good(), result.violation, result.linearizability.reason);
    hits += result.cache_hits;
  }
  CHECK(hits > 0);
}

}  // namespace

TEST_CASE("sim copies: nobody in the way") {
  check(copying(), 10);
}

TEST_CASE("sim copies: owners stand still past their lease, and come back") {
  WorldOptions options = copying();
  options.pauses_per_million = 4000;
  options.think_ns_max = 500'000;
  check(options, 10);
}

TEST_CASE("sim copies: cut off one way or both, messages lost and doubled") {
  WorldOptions options = copying();
  options.partitions_per_million = 3000;
  options.mail.lost_per_million = 50'000;
  options.mail.doubled_per_million = 50'000;
  options.think_ns_max = 500'000;
  check(options, 10);
}

TEST_CASE("sim copies: clients crash at any step") {
  WorldOptions options = copying();
  options.crashes_per_million = 5000;
  options.think_ns_max = 200'000;
  check(options, 10);
}

TEST_CASE("sim copies: nodes begin anew") {
  WorldOptions options = copying();
  options.power_losses_per_million = 3000;
  options.think_ns_max = 1'000'000;
  check(options, 10);
}

TEST_CASE("sim copies: clients of one host spare each other messages") {
  WorldOptions options = copying();
  options.hosts = 1;
  options.mail.lost_per_million = 1'000'000;
  const WorldResult result = run_world(options, 1);
  CHECK(result.good());
  CHECK(result.cache_hits > 0);
  CHECK(result.invalidations_spared > 0);
  CHECK(result.cache_handed > 0);
  check(options, 10);
}

TEST_CASE("sim copies: no stamp stays open whose writer keeps its attachment") {
  WorldOptions options = copying();
  options.hosts = 1;
  options.node.timing.breaks_per_million = 20'000;
  options.node.timing.late_per_million = 50'000;
  options.node.timing.late_ns_max = 100'000'000;
  options.timeout_ns = 20'000'000;
  options.think_ns_max = 200'000;
  uint64_t at_once = 0, unknown = 0;
  for (uint64_t seed = 1; seed <= 10; ++seed) {
    const WorldResult result = run_world(options, seed);
    CAPTURE(seed);
    CHECK(result.good());
    CHECK(result.stamps_open == 0);
    at_once += result.writes_at_once;
    unknown += result.unknown;
  }
  CHECK(at_once > 0);
  CHECK(unknown > 0);
}

TEST_CASE("sim copies: some clients share a host, under every fault") {
  WorldOptions options = copying();
  options.hosts = 2;
  options.clients = 5;
  options.crashes_per_million = 2000;
  options.pauses_per_million = 2000;
  options.power_losses_per_million = 1000;
  options.mail.lost_per_million = 50'000;
  options.think_ns_max = 300'000;
  check(options, 20);
}

TEST_CASE("sim copies: 512 clients share 48 owner bits") {
  WorldOptions options = copying();
  options.clients = 512;
  options.lanes = 1;
  options.keys = 12;
  options.operations = 10'000;
  options.get_percent = 97;
  options.contains_percent = 0;
  options.put_percent = 2;
  options.think_ns_max = 60'000'000;
  options.node.lease_ns = 2 * kSecond;
  options.wall_limit_ns = 300 * kSecond;  // with a sanitizer, on a busy machine
  const WorldResult result = run_world(options, 1);
  CHECK_MESSAGE(result.good(), result.violation, result.linearizability.reason);
  CHECK(result.cache_fills > 0);
  CHECK(result.invalidations > 1000);
}

}  // namespace kvstore::sim
