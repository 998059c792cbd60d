// The checkers are proved: each way in which the store is broken on purpose (base/variants.def) is
// caught by a scenario within a stated number of seeds, and the store as it is passes the same
// seeds.
//
// A broken store may well break an assertion of its own, so worlds run in child processes. Which
// seed catches it changes with every line of the store: the numbers are bounds, with room.

#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <string>

#include "base/variant.hpp"
#include "sim/parameters.hpp"
#include "sim/switch_names.hpp"
#include "sim/world.hpp"

namespace kvstore::sim {
namespace {

const std::map<std::string, std::string> kScenarios{
    {"steady", "keys=4"},
    {"hot", "keys=2 clients=6 think_us=2 late_per_million=20000"},
    {"damage", "damages_per_million=5000"},
    {"zombies", "pauses_per_million=6000 pause_ms=4000 think_us=500"},
    {"breaks",
     "breaks_per_million=3000 batch_breaks_per_million=3000 late_per_million=50000 keys=4"},
    {"late_breaks",
     "keys=4 get_percent=20 put_percent=60 batch_breaks_per_million=20000 late_per_million=300000 "
     "late_us=2000"},
    {"lost_deletes",
     "keys=2 clients=6 get_percent=5 contains_percent=0 put_percent=45 conditions=0 "
     "batch_breaks_per_million=20000 late_per_million=50000"},
    {"splits", "rare=early_split keys=64 operations=3000 late_per_million=50000 think_us=50"},
    {"splits_torn",
     "rare=early_split,addresses_forgotten clients=24 keys=300 operations=4000 get_percent=75 "
     "contains_percent=0 put_percent=24 conditions=0 think_us=200 late_per_million=0 pieces=8 "
     "stalls_per_million=300000 stall_us=300 stall_bytes=128 check_cost=0 region_mib=16"},
    {"splits_late",
     "rare=early_split keys=64 clients=12 operations=1500 late_per_million=300000 step_ns=20000 "
     "think_us=10 get_percent=30 put_percent=45"},
    {"splits_long",
     "rare=early_split,long_split clients=8 lanes=2 keys=300 operations=20000 get_percent=5 "
     "put_percent=50 value_bytes_max=40 think_us=20000 region_mib=64 crashes_per_million=2000 "
     "leaves_per_million=2000 lease_ms=100 check_cost=0"},
    {"reuse",
     "rare=small_extents think_us=3000 late_per_million=20000 late_us=60000 operations=1500 "
     "value_bytes_max=100"},
    {"fences",
     "keys=2 clients=6 fenced_percent=60 get_percent=20 put_percent=50 late_per_million=20000 "
     "batch_breaks_per_million=500"},
    {"expiry",
     "mortal_percent=100 lives_ms=150 think_us=5000 get_percent=99 contains_percent=0 "
     "put_percent=1 "
     "keys=2 conditions=0 operations=8000"},
    {"full",
     "segments=10 keys=60 value_bytes_min=300 value_bytes_max=900 crashes_per_million=4000 "
     "think_us=500 lease_ms=100 operations=3000 put_percent=60 get_percent=20 clients=6 "
     "conditions=0"},
    {"scrubs",
     "rare=small_extents crashes_per_million=3000 batch_breaks_per_million=3000 think_us=300 "
     "operations=4000 lease_ms=60 put_percent=70 get_percent=10 keys=30 value_bytes_max=100 "
     "late_per_million=200000 late_us=5000"},
    {"scrubs_busy",
     "rare=small_extents crashes_per_million=3000 batch_breaks_per_million=3000 think_us=100 "
     "clients=8 operations=4000 lease_ms=60 put_percent=70 get_percent=10 keys=60 "
     "value_bytes_max=20 late_per_million=500000 late_us=5000"},
    {"crash_busy",
     "crashes_per_million=2000 think_us=100 operations=5000 lease_ms=100 put_percent=60 "
     "get_percent=20 late_per_million=20000"},
    {"copies",
     "rare=cache_everything cache_kib=64 keys=4 get_percent=65 put_percent=22 think_us=20 "
     "late_per_million=50000 mail_late_per_million=50000"},
    {"copies_zombies",
     "rare=cache_everything cache_kib=64 keys=4 get_percent=65 put_percent=22 think_us=500 "
     "operations=3000 pauses_per_million=4000 mail_late_per_million=20000"},
    {"copies_deaf",
     "rare=cache_everything cache_kib=64 keys=4 get_percent=80 put_percent=15 think_us=300 "
     "operations=1500 mail_lost_per_million=700000"},
    {"copies_crowded",
     "rare=cache_everything cache_kib=64 keys=8 records=1 get_percent=70 put_percent=20 "
     "think_us=20 late_per_million=50000 mail_late_per_million=50000"},
    {"copies_hosts",
     "rare=cache_everything cache_kib=64 keys=4 get_percent=65 put_percent=22 think_us=20 hosts=1 "
     "late_per_million=50000 mail_late_per_million=50000"},
    {"copies_hosted",
     "rare=cache_everything,hosted_anyhow cache_kib=64 keys=4 get_percent=65 put_percent=30 "
     "think_us=20 hosts=2 clients=5 conditions=0 late_per_million=50000"},
    {"copies_hosted_late",
     "rare=cache_everything cache_kib=64 keys=4 get_percent=85 put_percent=10 think_us=5 hosts=1 "
     "clients=8 conditions=0 late_per_million=500000 late_us=300"},
    {"copies_hosted_splits",
     "rare=cache_everything,hosted_anyhow,early_split cache_kib=64 keys=64 operations=4000 "
     "get_percent=65 put_percent=30 think_us=30 hosts=2 clients=5 conditions=0 "
     "late_per_million=50000"},
    {"copies_regular",
     "consistency=1 rare=cache_everything cache_kib=64 keys=4 get_percent=65 put_percent=30 "
     "think_us=20 late_per_million=50000 mail_late_per_million=50000 clients=6 hosts=4"},
    {"copies_regular_deaf",
     "consistency=1 rare=cache_everything cache_kib=64 keys=64 get_percent=85 put_percent=15 "
     "contains_percent=0 mail_lost_per_million=700000 timeout_ms=30"},
    {"copies_regular_crashes",
     "consistency=1 rare=cache_everything cache_kib=64 keys=40 get_percent=80 put_percent=20 "
     "contains_percent=0 clients=6 operations=800 mail_lost_per_million=700000 lease_ms=100 "
     "crashes_per_million=100000"},
    {"copies_two_hosts",
     "rare=cache_everything cache_kib=64 keys=4 get_percent=65 put_percent=22 think_us=20 hosts=2 "
     "clients=5 late_per_million=50000 mail_late_per_million=50000"},
    {"copies_stalls",
     "rare=cache_everything cache_kib=64 keys=4 get_percent=65 put_percent=30 think_us=20 "
     "stalls_per_million=300000 stall_us=300"},
    {"copies_absent",
     "rare=cache_everything cache_kib=64 keys=4 get_percent=60 put_percent=20 think_us=20 "
     "late_per_million=50000 mail_late_per_million=50000"},
    {"copies_absent_slow",
     "rare=cache_everything cache_kib=64 keys=4 get_percent=60 put_percent=20 think_us=20 "
     "stalls_per_million=300000 stall_us=300"},
    {"copies_slow",
     "rare=cache_everything cache_kib=64 keys=2 get_percent=88 contains_percent=2 put_percent=10 "
     "think_us=3000 operations=1500 mail_lost_per_million=700000 late_per_million=100000 "
     "late_us=400000 lease_ms=3000 timeout_ms=5000 rest=0"},
    {"copies_splits",
     "rare=cache_everything,early_split cache_kib=64 keys=64 operations=4000 get_percent=60 "
     "put_percent=25 think_us=30 late_per_million=50000 mail_late_per_million=50000"},
    {"copies_full",
     "rare=cache_everything cache_kib=64 keys=60 eviction=1 segments=10 value_bytes_min=300 "
     "value_bytes_max=900 operations=4000 put_percent=30 get_percent=60 clients=6 think_us=100 "
     "conditions=0"},
};

WorldOptions options_of(const std::string& scenario) {
  WorldOptions options;
  std::string rest = kScenarios.at(scenario);
  while (!rest.empty()) {
    const std::string item = rest.substr(0, rest.find(' '));
    rest.erase(0, item.size() + 1);
    const size_t equals = item.find('=');
    const std::string name = item.substr(0, equals), value = item.substr(equals + 1);
    const std::string wrong = name == "rare" ? read_switches(rare_path_names(), value, options.rare)
                                             : set_parameter(options, name, value);
    REQUIRE(wrong == "");
  }
  return options;
}

// In a child process: the first of the seeds 1 to `last` whose world is not good, 0 if all are.
uint64_t first_bad_seed(const WorldOptions& options, uint64_t last) {
  int ends[2];
  REQUIRE(::pipe(ends) == 0);
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    // What a broken store says of itself is not of interest.
    const int nowhere = ::open("/dev/null", O_WRONLY);
    ::dup2(nowhere, STDERR_FILENO);
    for (uint64_t seed = 1; seed <= last; ++seed) {
      [[maybe_unused]] const ssize_t told = ::write(ends[1], &seed, sizeof seed);
      if (!run_world(options, seed).good()) ::_exit(1);
    }
    ::_exit(0);
  }
  ::close(ends[1]);
  uint64_t seed = 0;
  while (::read(ends[0], &seed, sizeof seed) == sizeof seed) {
  }
  ::close(ends[0]);
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 0 : seed;
}

// They prove the checkers and take many worlds: sanitizers have nothing to find here.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kSanitized = true;
#elif defined(__has_feature)
constexpr bool kSanitized = __has_feature(address_sanitizer) || __has_feature(thread_sanitizer);
#else
constexpr bool kSanitized = false;
#endif

struct Broken {
  const char* variant;
  const char* scenario;
  uint64_t within;  // seeds
};

constexpr Broken kBroken[] = {
    {"skip_value_checksum", "damage", 10},
    {"skip_header_check", "damage", 40},
    {"absent_after_one_look", "splits_torn", 60},
    {"absent_by_headers", "splits_torn", 60},
    {"trust_stale_directory", "splits", 10},
    {"trust_known_address", "steady", 10},
    {"trust_guessed_header", "hot", 10},
    {"clock_goes_back", "expiry", 10},
    {"patch_after_failed_cas", "hot", 10},
    {"ignore_failed_cas", "hot", 10},
    {"ignore_fence", "fences", 10},
    {"drop_fence", "fences", 10},
    {"delete_fence", "fences", 10},
    {"publish_before_write", "hot", 10},
    {"commit_without_tentative", "hot", 60},
    {"forget_duplicate_check", "hot", 10},
    {"leave_tentative_copies", "hot", 10},
    {"commit_over_split", "splits_late", 120},
    {"stale_version_on_refusal", "hot", 10},
    {"lost_cas_applied", "breaks", 20},
    {"lost_cas_not_applied", "breaks", 20},
    {"lost_delete_acknowledged", "lost_deletes", 40},
    {"old_connection_survives", "late_breaks", 60},
    {"free_lost_draft", "late_breaks", 40},
    {"copy_without_freezing", "splits", 20},
    {"empty_before_copy", "splits", 20},
    {"filled_too_soon", "splits", 20},
    {"ignore_sibling", "splits", 10},
    {"reuse_without_epoch", "reuse", 10},
    {"epoch_ignores_operations", "reuse", 10},
    {"forget_retired_block", "hot", 10},
    {"retire_twice", "reuse", 10},
    {"search_meets_drafts", "splits_long", 60},
    {"scrub_frees_taken_blocks", "scrubs", 10},
    {"harvest_leaves_raced", "scrubs_busy", 100},
    {"scrub_without_rounds", "crash_busy", 200},
    {"dirty_bitmap", "full", 20},
    {"adopt_without_cas", "full", 60},
    {"no_fence_before_sweep", "zombies", 10},
    {"sweep_without_rounds", "full", 20},
    {"safe_epoch_ignores_one", "reuse", 80},
    {"cache_writes_unfrozen", "copies", 10},
    {"cache_keeps_spoiled", "copies", 10},
    {"cache_answers_first", "copies", 10},
    {"cache_installs_frozen", "copies", 10},
    {"cache_clears_blindly", "copies", 60},
    {"cache_keeps_unshared", "copies", 10},
    {"cache_without_lease", "copies_zombies", 30},
    {"cache_lease_from_end", "copies_slow", 150},
    {"cache_ignores_revocation", "copies_deaf", 20},
    {"cache_forgets_the_silent", "copies_deaf", 20},
    {"cache_split_forgets_shared", "copies_splits", 10},
    {"cache_evicts_shared", "copies_full", 10},
    {"cache_forgets_pending", "copies_crowded", 20},
    {"cache_forgets_own", "copies_crowded", 10},
    {"cache_inserts_unseen", "copies_absent", 10},
    {"cache_installs_tentative", "copies_absent", 20},
    {"cache_reads_early", "copies_absent_slow", 60},
    {"cache_registers_late", "copies_absent", 20},
    {"cache_counts_owners_early", "copies_stalls", 60},
    {"cache_ignores_stamps", "copies_hosts", 10},
    {"cache_renews_nothing", "copies_hosts", 10},
    {"cache_renews_late", "copies_hosts", 10},
    {"cache_stamps_late", "copies_hosts", 20},
    {"regular_returns_at_once", "copies_regular", 20},
    {"regular_forgets_shared", "copies_regular", 20},
    {"regular_trusts_early_owners", "copies_regular", 60},
    {"regular_forgets_debts", "copies_regular_deaf", 20},
    {"regular_ignores_crashes", "copies_regular_crashes", 120},
    {"cache_takes_any", "copies_hosts", 20},
    {"cache_hands_early", "copies_hosts", 20},
    {"hosted_writes_openly", "copies_hosted", 40},
    {"hosted_fills_meanwhile", "copies_hosted_late", 150},
    {"hosted_follows_any", "copies_hosted", 40},
    {"hosted_trusts_any", "copies_hosted", 10},
    {"hosted_splits_bare", "copies_hosted_splits", 10},
    {"cache_leaves_ended", "copies_two_hosts", 20},
};

}  // namespace

TEST_CASE("broken variants: each is caught within its seeds" * doctest::skip(kSanitized)) {
  for (const Broken& broken : kBroken) {
    CAPTURE(std::string(broken.variant));
    WorldOptions options = options_of(broken.scenario);
    REQUIRE(read_switches(variant_names(), broken.variant, options.variants) == "");
    const uint64_t seed = first_bad_seed(options, broken.within);
    MESSAGE(std::string(broken.variant), ": ", std::string(broken.scenario), ", seed ", seed);
    CHECK(seed > 0);
  }
}

TEST_CASE("broken variants: the store as it is passes the same seeds" * doctest::skip(kSanitized)) {
  std::map<std::string, uint64_t> seeds;
  for (const Broken& broken : kBroken) {
    uint64_t& most = seeds[broken.scenario];
    most = std::max(most, broken.within);
  }
  for (const auto& [scenario, most] : seeds) {
    CAPTURE(scenario);
    CHECK(first_bad_seed(options_of(scenario), most) == 0);
  }
}

TEST_CASE("broken variants: names are read, and unknown ones told") {
  SwitchBits bits;
  CHECK(read_switches(variant_names(), "skip_value_checksum,skip_header_check", bits) == "");
  CHECK(bits.to_ullong() == 3);
  CHECK(read_switches(variant_names(), "skip_the_rest", bits) == "there is no `skip_the_rest`");
}

}  // namespace kvstore::sim
