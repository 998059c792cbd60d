// The real client in simulated clusters, with and without faults: every history is explained by a
// register, and one seed is one history.

#include "sim/world.hpp"

#include <doctest/doctest.h>

#include <set>

#include "base/variant.hpp"
#include "sim/host.hpp"
#include "sim/values.hpp"

namespace kvstore::sim {
namespace {

// What happened in several worlds together.
struct Sum {
  uint64_t breaks = 0, orphans = 0, crashes = 0, pauses = 0, fenced = 0, swept = 0, unknown = 0;
  uint64_t leaves = 0, partitions = 0, power_losses = 0, damages = 0, attachments = 0, costed = 0;
};

Sum check_seeds(const WorldOptions& options, uint64_t from, uint64_t count) {
  Sum sum;
  for (uint64_t seed = from; seed < from + count; ++seed) {
    const WorldResult result = run_world(options, seed);
    CAPTURE(seed);
    CHECK(result.finished);
    CHECK(result.violation == "");
    CHECK(result.linearizability.reason == "");
    CHECK(result.good());
    CHECK(result.torn > 0);
    sum.breaks += result.breaks;
    sum.orphans += result.orphans;
    sum.crashes += result.crashes;
    sum.pauses += result.pauses;
    sum.fenced += result.fenced;
    sum.swept += result.swept;
    sum.unknown += result.unknown;
    sum.leaves += result.leaves;
    sum.partitions += result.partitions;
    sum.power_losses += result.power_losses;
    sum.damages += result.damages;
    sum.attachments += result.attachments;
    sum.costed += result.costed;
  }
  return sum;
}

// Operations far enough apart for leases to pass and for sweeps to end.
WorldOptions slow_world() {
  WorldOptions options;
  options.think_ns_max = 5 * kMillisecond;
  options.operations = 3000;
  return options;
}

}  // namespace

TEST_CASE("sim world: without faults every operation has its outcome") {
  const Sum sum = check_seeds({}, 1, 20);
  CHECK(sum.unknown == 0);
  CHECK(sum.attachments == 0);
  CHECK(sum.costed > 5000);
}

TEST_CASE("sim world: one seed is one history, another seed another one") {
  WorldOptions options = slow_world();
  options.nodes = 2;
  options.crashes_per_million = 3000;
  options.breaks_per_million = 3000;
  options.pauses_per_million = 1000;
  std::set<uint64_t> digests;
  for (uint64_t seed = 1; seed <= 5; ++seed) {
    const WorldResult first = run_world(options, seed), second = run_world(options, seed);
    CHECK(first.digest == second.digest);
    CHECK(first.events == second.events);
    CHECK(first.virtual_ns == second.virtual_ns);
    digests.insert(first.digest);
  }
  CHECK(digests.size() == 5);
}

TEST_CASE("sim world: connections break, with what is under way executed or not") {
  WorldOptions options;
  options.node.timing.breaks_per_million = 3000;
  options.node.timing.late_per_million = 300'000;
  options.node.timing.late_ns_max = 2 * kMillisecond;
  options.node.timing.step_ns_max = 5000;
  const Sum sum = check_seeds(options, 1, 40);
  CHECK(sum.breaks > 100);
  CHECK(sum.orphans > 0);
}

TEST_CASE("sim world: clients crash at any await, are fenced when their lease ends, and swept") {
  WorldOptions options = slow_world();
  options.crashes_per_million = 4000;
  const Sum sum = check_seeds(options, 1, 20);
  CHECK(sum.crashes > 40);
  CHECK(sum.unknown > 0);
  CHECK(sum.fenced > 20);
  CHECK(sum.swept > 10);
}

TEST_CASE("sim world: hosts stand still past their lease and come back") {
  WorldOptions options;
  options.pauses_per_million = 3000;
  const Sum sum = check_seeds(options, 1, 20);
  CHECK(sum.pauses > 20);
  CHECK(sum.attachments > 5);
}

// A heartbeat that was given up once kept its lane from ever being connected again, so the client
// was fenced over and over.
TEST_CASE("sim world: partitions end, and who was cut off comes back") {
  WorldOptions options;
  options.partitions_per_million = 3000;
  options.think_ns_max = kMillisecond;
  const Sum sum = check_seeds(options, 1, 20);
  CHECK(sum.partitions > 40);
  CHECK(sum.attachments > 20);
}

TEST_CASE("sim world: nodes lose their power and come back empty") {
  WorldOptions options;
  options.nodes = 2;
  options.power_losses_per_million = 2000;
  options.think_ns_max = kMillisecond;
  const Sum sum = check_seeds(options, 1, 10);
  CHECK(sum.power_losses > 10);
  CHECK(sum.attachments > 20);
}

// A farewell once ended whoever had the same registration of a node that had restarted meanwhile,
// be it the node's own client, after which nothing was swept any more.
TEST_CASE("sim world: a farewell that comes after a restart ends nobody else's admission") {
  WorldOptions options;
  options.nodes = 2;
  options.clients = 5;
  options.operations = 1000;
  options.think_ns_max = kMillisecond;
  options.partitions_per_million = 3000;
  options.power_losses_per_million = 2000;
  options.leaves_per_million = 5000;
  const Sum sum = check_seeds(options, 1, 40);
  CHECK(sum.leaves > 100);
  CHECK(sum.power_losses > 50);
}

// Twice a split once stayed half done: when the connection of the client that was at it broke, and
// when that of a sweep did which had taken a dead client's split over.
TEST_CASE("sim world: a split that was left behind is taken up") {
  WorldOptions options;
  options.think_ns_max = kMillisecond;
  options.operations = 1000;
  options.keys = 64;
  options.rare.set(unsigned(RarePath::early_split));
  options.node.timing.breaks_per_million = 10'000;
  options.pauses_per_million = 5000;
  const Sum sum = check_seeds(options, 1, 30);
  CHECK(sum.breaks > 300);
  CHECK(sum.fenced > 10);
}

TEST_CASE("sim world: clients leave, and what they retired is given back") {
  WorldOptions options = slow_world();
  options.leaves_per_million = 5000;
  options.operations = 1500;
  const Sum sum = check_seeds(options, 1, 10);
  CHECK(sum.leaves > 40);
  CHECK(sum.unknown == 0);
}

TEST_CASE("sim world: damaged objects are refused, never returned") {
  WorldOptions options;
  options.damages_per_million = 5000;
  const Sum sum = check_seeds(options, 1, 10);
  CHECK(sum.damages > 40);
}

TEST_CASE("sim world: values with a time to live end, and stay away") {
  WorldOptions options = slow_world();
  options.mortal_percent = 50;
  options.lives_ns_max = 300 * kMillisecond;
  check_seeds(options, 1, 10);
}

TEST_CASE("sim world: a node that is full refuses or evicts, and nothing is lost track of") {
  WorldOptions options;
  options.keys = 300;
  options.value_bytes_min = 500;
  options.value_bytes_max = 3000;
  options.node.segments_max = 12;
  options.put_percent = 60;
  options.get_percent = 25;
  options.operations = 1200;
  check_seeds(options, 1, 5);
  options.node.eviction = KV_EVICTION_SAMPLED_LRU;
  check_seeds(options, 1, 2);
}

TEST_CASE("sim world: rare paths are legal") {
  WorldOptions options;
  options.rare_per_million = 300'000;
  options.think_ns_max = 500'000;
  check_seeds(options, 1, 20);
}

TEST_CASE("sim world: one fault can be forced, and faults can be limited") {
  WorldOptions options;
  options.forced_fault = 1;
  options.forced_at = 100;
  CHECK(run_world(options, 1).crashes == 1);
  options.crashes_per_million = 100'000;
  options.faults_max = 3;
  const WorldResult result = run_world(options, 1);
  CHECK(result.crashes >= 3);
  CHECK(result.crashes <= 4);
}

TEST_CASE("sim world: a world that takes too long is ended, and says what is under way") {
  WorldOptions options;
  options.limit_ns = kMillisecond / 10;
  const WorldResult late = run_world(options, 1);
  CHECK(!late.good());
  CHECK(late.violation.find("stuck") == 0);
  options.limit_ns = 600 * kSecond;
  options.operations = 100'000'000;
  options.wall_limit_ns = kSecond / 10;
  CHECK(run_world(options, 1).violation.find("real time") != std::string::npos);
}

TEST_CASE("sim world: everything at once, on three nodes") {
  WorldOptions options = slow_world();
  options.nodes = 3;
  options.clients = 6;
  options.keys = 24;
  options.value_bytes_max = 5000;
  options.crashes_per_million = 3000;
  options.leaves_per_million = 1000;
  options.breaks_per_million = 3000;
  options.pauses_per_million = 1500;
  options.partitions_per_million = 1000;
  options.power_losses_per_million = 500;
  options.operations = 1500;
  options.node.timing.breaks_per_million = 300;
  const Sum sum = check_seeds(options, 1, 4);
  CHECK(sum.crashes > 0);
  CHECK(sum.breaks > 0);
  CHECK(sum.pauses > 0);
}

// A delete or a put that meets its version, loses the exchange, and finds nothing then must not
// tell the version of its first attempt.
TEST_CASE("sim world: a failed condition tells what is there, not what was") {
  WorldOptions options;
  options.keys = 2;
  check_seeds(options, 1, 20);
}

TEST_CASE("sim world: a history in which one answer was changed is rejected") {
  const WorldResult result = run_world({}, 7);
  REQUIRE(result.good());
  unsigned changed = 0;
  for (size_t i = 0; i < result.history.size() && changed < 50; ++i) {
    const Operation& operation = result.history[i];
    if (operation.kind != OperationKind::kGet || operation.outcome != OperationOutcome::kOk) {
      continue;
    }
    std::vector<Operation> history = result.history;
    history[i].version += 1;
    CHECK(check_history(history).verdict == Verdict::kViolation);
    ++changed;
  }
  CHECK(changed == 50);
}

TEST_CASE("sim world: a host's clock runs at its own speed and tells when it will show a time") {
  Schedule schedule(1);
  struct Nothing final : Timed {
    void fire(uint64_t) override {}
  } nothing;
  for (const int64_t drift : {-1000, 0, 1000}) {
    HostClock clock(schedule, drift, 5 * kSecond);
    const uint64_t then_ns = clock.monotonic_ns() + 10 * kSecond;
    const uint64_t instant_ns = clock.instant_of(then_ns);
    schedule.at(instant_ns - 10'000, nothing, 0);
    schedule.at(instant_ns, nothing, 0);
    schedule.run_next();
    CHECK(clock.monotonic_ns() < then_ns);
    schedule.run_next();
    CHECK(clock.monotonic_ns() >= then_ns);
    CHECK(clock.monotonic_ns() < then_ns + 10);
    CHECK(clock.instant_of(0) == schedule.now_ns());
    CHECK(clock.instant_of(UINT64_MAX) == UINT64_MAX);
  }
}

TEST_CASE("sim world: a value names its number and shows any change") {
  for (uint64_t number = 1; number < 50; ++number) {
    std::vector<uint8_t> value = value_of(number, 0, 100);
    CHECK(number_of(value.data(), value.size(), 0, 100) == number);
    value[value.size() - 1] ^= 1;
    CHECK(number_of(value.data(), value.size(), 0, 100) == kGarbage);
  }
}

}  // namespace kvstore::sim
