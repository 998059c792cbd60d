// The lock protocol in simulated clusters, with and without faults.

#include "sim/lock_world.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <set>
#include <string>

#include "base/variant.hpp"

namespace kvstore::sim {
namespace {

LockWorldResult check_seeds(const LockWorldOptions& options, uint64_t from, uint64_t count) {
  LockWorldResult sum;
  for (uint64_t seed = from; seed < from + count; ++seed) {
    const LockWorldResult result = run_lock_world(options, seed);
    CAPTURE(seed);
    CHECK(result.violation == "");
    CHECK(result.finished);
    CHECK(result.granted > 0);
    sum.granted += result.granted;
    sum.gave_up += result.gave_up;
    sum.cancelled += result.cancelled;
    sum.cancelled_too_late += result.cancelled_too_late;
    sum.expired += result.expired;
    sum.crashes += result.crashes;
    sum.crashed_holding += result.crashed_holding;
    sum.crashed_resetting += result.crashed_resetting;
    sum.pauses += result.pauses;
    sum.fenced += result.fenced;
    sum.resets += result.resets;
    sum.found_by_look += result.found_by_look;
    sum.grants_sent += result.grants_sent;
    sum.longest_wait_ns = std::max(sum.longest_wait_ns, result.longest_wait_ns);
  }
  return sum;
}

LockWorldOptions with_mail_faults() {
  LockWorldOptions options;
  options.mail.lost_per_million = 100'000;
  options.mail.doubled_per_million = 100'000;
  options.mail.late_per_million = 100'000;
  options.mail.late_ns_max = 5 * kMillisecond;
  return options;
}

LockWorldOptions with_crashes() {
  LockWorldOptions options = with_mail_faults();
  options.crashes_per_million = 20'000;
  options.hold_ns_max = 200'000;
  options.timing.late_per_million = 50'000;
  return options;
}

LockWorldOptions with_crashes_in_resets() {
  LockWorldOptions options = with_crashes();
  options.resetter_crashes_percent = 40;
  return options;
}

LockWorldOptions with_breaks() {
  LockWorldOptions options;
  options.timing.breaks_per_million = 10'000;
  options.timing.late_per_million = 100'000;
  options.timing.late_ns_max = 3 * kMillisecond;
  return options;
}

// What a broken connection still executes, it executes late.
LockWorldOptions with_late_orphans() {
  LockWorldOptions options = with_breaks();
  options.readers_percent = 0;
  options.timing.breaks_per_million = 20'000;
  options.timing.late_per_million = 300'000;
  options.timing.late_ns_max = 10 * kMillisecond;
  return options;
}

LockWorldOptions with_cancellations() {
  LockWorldOptions options;
  options.cancelled_percent = 40;
  options.workers = 3;
  return options;
}

LockWorldOptions with_pauses() {
  LockWorldOptions options;
  options.pauses_per_million = 20'000;
  return options;
}

}  // namespace

TEST_CASE("sim locks: without faults nobody is reset and no message is missed") {
  LockWorldOptions options;
  options.mail.late_per_million = 0;
  const LockWorldResult sum = check_seeds(options, 1, 40);
  CHECK(sum.resets == 0);
  CHECK(sum.grants_sent > 1000);
  CHECK(sum.gave_up > 0);
}

TEST_CASE("sim locks: one seed is one history, another seed another one") {
  LockWorldOptions options;
  options.crashes_per_million = 10'000;
  options.mail.lost_per_million = 50'000;
  std::set<uint64_t> digests;
  for (uint64_t seed = 1; seed <= 5; ++seed) {
    const LockWorldResult first = run_lock_world(options, seed);
    CHECK(first.digest == run_lock_world(options, seed).digest);
    digests.insert(first.digest);
  }
  CHECK(digests.size() == 5);
}

TEST_CASE("sim locks: messages are lost, doubled and late") {
  LockWorldOptions options;
  options.mail.lost_per_million = 200'000;
  options.mail.doubled_per_million = 200'000;
  options.mail.late_per_million = 100'000;
  options.mail.late_ns_max = 20 * kMillisecond;
  const LockWorldResult sum = check_seeds(options, 1, 40);
  CHECK(sum.found_by_look > 100);
  CHECK(sum.resets == 0);
}

TEST_CASE("sim locks: more clients than the ring has room for") {
  LockWorldOptions options;
  options.clients = 12;
  options.workers = 1;
  options.shape.ring_capacity = 2;
  options.mail.lost_per_million = 50'000;
  check_seeds(options, 1, 20);
}

TEST_CASE("sim locks: clients crash at any await") {
  LockWorldOptions options;
  options.crashes_per_million = 20'000;
  const LockWorldResult sum = check_seeds(options, 1, 90);
  CHECK(sum.crashes > 100);
  CHECK(sum.crashed_holding > 30);
  CHECK(sum.resets > 50);
}

TEST_CASE("sim locks: who resets a lock crashes at any step of it") {
  LockWorldOptions options;
  options.crashes_per_million = 20'000;
  options.resetter_crashes_percent = 60;
  options.mail.lost_per_million = 50'000;
  const LockWorldResult sum = check_seeds(options, 1, 60);
  CHECK(sum.crashed_resetting > 100);
}

TEST_CASE("sim locks: connections break under every verb") {
  check_seeds(with_late_orphans(), 1, 30);
  LockWorldOptions options;
  options.timing.breaks_per_million = 5'000;
  options.breaks_per_million = 5'000;
  options.timing.late_per_million = 50'000;
  check_seeds(options, 1, 60);
}

TEST_CASE("sim locks: hosts stand still past their lease") {
  LockWorldOptions options;
  options.pauses_per_million = 20'000;
  const LockWorldResult sum = check_seeds(options, 1, 30);
  CHECK(sum.pauses > 50);
  CHECK(sum.fenced > 10);
}

TEST_CASE("sim locks: leases end while threads hold on") {
  LockWorldOptions options;
  options.leased_percent = 60;
  const LockWorldResult sum = check_seeds(options, 1, 40);
  CHECK(sum.expired > 1000);
  CHECK(sum.resets == 0);
  options.crashes_per_million = 10'000;
  options.mail.lost_per_million = 50'000;
  options.timing.late_per_million = 50'000;
  check_seeds(options, 1, 40);
}

TEST_CASE("sim locks: wishes are cancelled at every step, and leave no queue behind") {
  const LockWorldResult sum = check_seeds(with_cancellations(), 1, 40);
  CHECK(sum.cancelled > 500);
  CHECK(sum.cancelled_too_late > 50);
  CHECK(sum.resets == 0);
  LockWorldOptions options = with_breaks();
  options.cancelled_percent = 40;
  options.crashes_per_million = 10'000;
  options.mail.lost_per_million = 50'000;
  check_seeds(options, 1, 40);
}

TEST_CASE("sim locks: everything at once, on several locks") {
  LockWorldOptions options;
  options.clients = 6;
  options.locks = 3;
  options.operations = 600;
  options.cancelled_percent = 10;
  options.resetter_crashes_percent = 20;
  options.crashes_per_million = 10'000;
  options.breaks_per_million = 5'000;
  options.pauses_per_million = 5'000;
  options.timing.breaks_per_million = 1'000;
  options.mail.lost_per_million = 50'000;
  options.mail.doubled_per_million = 50'000;
  options.mail.late_per_million = 50'000;
  options.mail.late_ns_max = 50 * kMillisecond;
  check_seeds(options, 1, 40);
}

// ---- rules broken on purpose ----

namespace {

// The first seed in which the checker or the end of the world shows it, 0 if none does.
uint64_t caught_at(LockWorldOptions options, Variant variant, uint64_t seeds) {
  options.variants.set(unsigned(variant));
  // Without progress a world is over soon, whatever its clients still wait for.
  options.limit_ns = 20 * kSecond;
  options.events_max = 2'000'000;
  for (uint64_t seed = 1; seed <= seeds; ++seed) {
    if (!run_lock_world(options, seed).good()) return seed;
  }
  return 0;
}

}  // namespace

TEST_CASE("sim locks: each rule that is broken is caught") {
  struct Broken {
    std::string name;
    Variant variant;
    LockWorldOptions options;
  };
  const Broken all[] = {
      {"release forgets writer", Variant::lock_release_forgets_writer, {}},
      {"any grant", Variant::lock_any_grant, with_mail_faults()},
      {"ignores lap", Variant::lock_ignores_lap, {}},
      {"looks one ahead", Variant::lock_looks_one_ahead, with_mail_faults()},
      {"readers help themselves", Variant::lock_readers_help_themselves, with_mail_faults()},
      {"enters over bar", Variant::lock_enters_over_bar, with_crashes()},
      {"answers while holding", Variant::lock_answers_while_holding, with_crashes()},
      {"keeps void place", Variant::lock_keeps_void_place, with_crashes()},
      {"reset waits for nobody", Variant::lock_reset_waits_for_nobody, with_crashes()},
      {"reset rewinds", Variant::lock_reset_rewinds, with_crashes()},
      {"takes reset of living", Variant::lock_takes_reset_of_living, with_crashes_in_resets()},
      {"orphans resets", Variant::lock_orphans_resets, with_crashes_in_resets()},
      {"leaves twice", Variant::lock_leaves_twice, with_breaks()},
      {"resolves unfenced", Variant::lock_resolves_unfenced, with_late_orphans()},
      {"keeps unwanted", Variant::lock_keeps_unwanted, {}},
      {"cancel drops turn", Variant::lock_cancel_drops_turn, with_cancellations()},
      {"zombies pass on", Variant::lock_zombies_pass_on, with_pauses()},
  };
  constexpr uint64_t kSeeds = 400;
  for (const Broken& broken : all) {
    CAPTURE(broken.name);
    const uint64_t seed = caught_at(broken.options, broken.variant, kSeeds);
    CHECK(seed != 0);
  }
}

}  // namespace kvstore::sim
