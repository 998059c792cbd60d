// The reuse model alone, against reuse that is known: what it holds worth keeping, and when.

#include <doctest/doctest.h>

#include "api/kvstore.h"
#include "store/reuse_model.hpp"

namespace kvstore::test {
namespace {

constexpr uint32_t kStartMs = 0xffff'0000u;  // the clock wraps during each test

// Keys of one category, each used anew: one in `period` of them again `gap_ms` later.
class Uses {
 public:
  explicit Uses(ReuseModel& model) : model_(model) {}

  void run(unsigned category, unsigned count, unsigned period, uint32_t gap_ms) {
    for (unsigned i = 0; i < count; ++i) {
      const uint64_t key = ++keys_ * 0x9e3779b97f4a7c15ull;
      model_.used(key, category, now_ms);
      if (i % period == 0) model_.used(key, category, now_ms + gap_ms);
    }
    now_ms += 10 * gap_ms;
    model_.learn(now_ms);
  }
  uint32_t now_ms = kStartMs;

 private:
  ReuseModel& model_;
  uint64_t keys_ = 0;
};

}  // namespace

TEST_CASE("reuse model: what comes back is worth more than what does not") {
  ReuseModel model;
  CHECK(model.worth(1, 10) == 0);
  Uses uses(model);
  uses.run(1, 2000, 1, 1000);
  uses.run(2, 2000, 1000, 1000);
  uses.run(3, 2000, 4, 1000);
  CHECK(model.worth(1, 100) > model.worth(3, 100));
  CHECK(model.worth(3, 100) > model.worth(2, 100));
}

TEST_CASE("reuse model: what was used more often is worth no less, whatever was seen of it") {
  ReuseModel model;
  Uses uses(model);
  constexpr unsigned kRarely = KV_REUSE_RANK;
  uses.run(kRarely, 2000, 2, 1000);
  uses.run(3 * KV_REUSE_RANK, 2000, 1000, 1000);
  for (const unsigned category :
       {2 * KV_REUSE_RANK, 3 * KV_REUSE_RANK, 4 * KV_REUSE_RANK, 31 * KV_REUSE_RANK}) {
    for (uint32_t idle_ms = 1; idle_ms < 4000; ++idle_ms) {
      REQUIRE(model.worth(category, idle_ms) >= model.worth(kRarely, idle_ms));
    }
  }
  // Of another kind, and with the caller's own bit, nothing is known.
  const unsigned other_kind = KV_REUSE_RANKS * KV_REUSE_RANK + 2 * KV_REUSE_RANK;
  CHECK(model.worth(other_kind, 800) < model.worth(kRarely, 800));
  CHECK(model.worth(2 * KV_REUSE_RANK + 1, 800) < model.worth(kRarely, 800));
}

TEST_CASE("reuse model: what is idle for longer is never worth more, and little after its time") {
  for (const unsigned category : {0u, 1u}) {
    ReuseModel model;
    Uses uses(model);
    uses.run(category, 4000, 2, 1000);
    for (uint32_t idle_ms = 1; idle_ms < 4000; ++idle_ms) {
      REQUIRE(model.worth(category, idle_ms) <= model.worth(category, idle_ms - 1));
    }
    CHECK(model.worth(category, 800) > 0);
    CHECK(model.worth(category, 2000) < model.worth(category, 800) / 4);
  }
}

TEST_CASE("reuse model: what was seen long ago is forgotten") {
  constexpr unsigned kLesson = 10'000;
  const auto come_back = [](Uses& uses) {
    for (unsigned i = 0; i < 75; ++i) uses.run(1, kLesson, 1, 1000);
  };
  ReuseModel fresh;
  Uses fresh_uses(fresh);
  come_back(fresh_uses);

  ReuseModel model;
  Uses uses(model);
  for (unsigned i = 0; i < 300; ++i) uses.run(1, kLesson, kLesson, 1000);
  REQUIRE(model.worth(1, 100) < fresh.worth(1, 100) / 10);
  come_back(uses);
  CHECK(model.worth(1, 100) > fresh.worth(1, 100) * 0.6f);
}

TEST_CASE("reuse model: keys that had no time yet to be used again do not count against theirs") {
  ReuseModel model;
  Uses uses(model);
  uses.run(1, 1000, 1, 1000);
  uses.run(2, 1000, 1, 1000);
  const float before = model.worth(2, 100);
  REQUIRE(before > 0);
  // As many again, just now.
  for (uint64_t i = 1; i <= 1000; ++i) model.used(~i * 0x9e3779b97f4a7c15ull, 2, uses.now_ms);
  model.learn(uses.now_ms + 10);
  CHECK(model.worth(2, 100) > before * 0.8f);
}

TEST_CASE("reuse model: it samples more thinly where its memory would be too short, and learns") {
  ReuseModel model;
  uint32_t now_ms = kStartMs;
  // Each key comes back after 200,000 others, which is more than are remembered.
  constexpr uint64_t kBetween = 200'000;
  for (uint64_t i = 1; i <= 12 * kBetween; ++i) {
    if (i % 100 == 0) ++now_ms;
    model.used((i % kBetween + 1) * 0x9e3779b97f4a7c15ull, 7, now_ms);
    if (i % 100 == 0) model.evicted(1500);
    if (model.wants_to_learn()) model.learn(now_ms);
  }
  CHECK(model.worth(7, 1500) > 0);
}

TEST_CASE("reuse model: buckets of idle time begin where they say") {
  for (unsigned age = 1; age + 1 < ReuseModel::kAges; ++age) {
    const double begin_ms = ReuseModel::age_begin_ms(age);
    if (begin_ms != double(uint32_t(begin_ms))) continue;  // quarters of 1 and 2 ms
    CHECK(ReuseModel::age_of(uint32_t(begin_ms)) == age);
    CHECK(ReuseModel::age_of(uint32_t(begin_ms) - 1) < age);
  }
  CHECK(ReuseModel::age_of(UINT32_MAX) == ReuseModel::kAges - 1);
}

}  // namespace kvstore::test
