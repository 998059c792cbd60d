// The real client in simulated clusters, with and without faults: every history is explained by a
// register, and one seed is one history.

#include "sim/world.hpp"

#include <doctest/doctest.h>

#include <set>

#include "sim/host.hpp"
#include "sim/values.hpp"

namespace kvstore::sim {
namespace {

// What happened in several worlds together.
struct Sum {
  uint64_t breaks = 0, orphans = 0, crashes = 0, pauses = 0, fenced = 0, swept = 0, unknown = 0;
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
  CHECK(sum.fenced == 0);
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
  options.node.timing.late_per_million = 50'000;
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
  CHECK(sum.fenced > 5);
}

TEST_CASE("sim world: everything at once, on three nodes") {
  WorldOptions options = slow_world();
  options.nodes = 3;
  options.clients = 6;
  options.keys = 24;
  options.value_bytes_max = 5000;
  options.crashes_per_million = 3000;
  options.breaks_per_million = 3000;
  options.pauses_per_million = 1500;
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
