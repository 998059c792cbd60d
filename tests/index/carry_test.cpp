// Carrying one group of a split: helpers that break off after any operation, helpers that stop for
// as long as they like and then go on, and others who use the group in between.

#include <doctest/doctest.h>

#include <random>

#include "tests/index/half_split.hpp"

namespace kvstore::test {
namespace {

using layout::Slot;

// A fault that never comes.
constexpr uint64_t kNever = UINT64_MAX;

void check_carried(const Contents& after, const std::map<uint64_t, unsigned>& expected) {
  CHECK(after.moving == 0);
  CHECK(after.tentative == 0);
  CHECK(after.filling == 0);
  CHECK(after.addresses == expected);
}

// An address of an object whose key stays in the old subtable.
uint64_t staying_object(HalfSplit& half) {
  const KeySet others(64);
  for (uint64_t i = 0; i < others.size(); ++i) {
    if (others[i].hash % 2 == 0) {
      return half.full.entries.write_object(half.full.client, others[i]);
    }
  }
  KV_ASSERT(!"no key with an even hash");
}

}  // namespace

TEST_CASE("index: a group whose carrying breaks after any operation is carried by another") {
  HalfSplit half;
  const Contents before = half.contents();
  REQUIRE(before.addresses.size() > 8);
  bool ended = false;
  unsigned trials = 0;
  for (uint64_t batches = 0; !ended; ++batches) {
    for (uint32_t ops = 0; ops <= 2 * layout::kSlotsPerGroup && !ended; ++ops) {
      half.restore();
      RawClient first(half.full.region, 1);
      first.fault = {batches, ops, {}};
      ended = half.carry(first) == Status::kOk;
      if (ended) break;
      ++trials;
      CAPTURE(batches);
      CAPTURE(ops);
      CHECK(half.contents().addresses.size() == before.addresses.size());  // a reader finds all
      RawClient second(half.full.region, 2);
      REQUIRE(half.carry(second) == Status::kOk);
      check_carried(half.contents(), before.addresses);
    }
  }
  CHECK(trials > 100);
}

TEST_CASE("index: a copy is committed also where its old place has been used again") {
  HalfSplit half;
  const Contents before = half.contents();
  const uint64_t staying = staying_object(half);
  unsigned used_again = 0;
  bool ended = false;
  for (uint64_t batches = 0; !ended; ++batches) {
    for (uint32_t ops = 0; ops <= 2 * layout::kSlotsPerGroup && !ended; ++ops) {
      half.restore();
      RawClient first(half.full.region, 1);
      first.fault = {batches, ops, {}};
      ended = half.carry(first) == Status::kOk;
      std::map<uint64_t, unsigned> expected = before.addresses;
      for (unsigned i = 0; i < layout::kSlotsPerGroup && !ended; ++i) {
        const Slot old = half.slot(half.in_source(), i);
        if (!old.empty() || !half.slot(half.in_target(), i).moving()) continue;
        half.set_slot(half.in_source(), i, old.successor(9, 0, Entries::kClass, staying));
        expected[staying] = 1;
        ++used_again;
        break;
      }
      CAPTURE(batches);
      CAPTURE(ops);
      RawClient second(half.full.region, 2);
      REQUIRE(half.carry(second) == Status::kOk);
      check_carried(half.contents(), expected);
    }
  }
  CHECK(used_again > 0);
}

TEST_CASE("index: helpers that break off one after the other leave nothing undone") {
  HalfSplit half;
  const Contents before = half.contents();
  std::mt19937 random(5);
  for (unsigned trial = 0; trial < (sanitized() ? 50u : 500u); ++trial) {
    half.restore();
    CAPTURE(trial);
    bool ended = false;
    for (uint32_t helper = 1; !ended; ++helper) {
      RawClient client(half.full.region, helper);
      client.fault = {helper < 6 ? random() % 7 : kNever, uint32_t(random() % 24), {}};
      ended = half.carry(client) == Status::kOk;
      CHECK(half.contents().addresses.size() == before.addresses.size());
    }
    check_carried(half.contents(), before.addresses);
  }
}

TEST_CASE("index: a helper that stood still for long spoils nothing when it goes on") {
  HalfSplit half;
  const Contents before = half.contents();
  const uint64_t new_object = staying_object(half);
  // In front of its n-th batch the slow helper stops. Another carries the group to the end; then
  // the first entry that came over is removed and the second one replaced.
  unsigned stopped = 0;
  for (unsigned n = 0; stopped == n; ++n) {
    half.restore();
    CAPTURE(n);
    RawClient slow(half.full.region, 1);
    RawClient fast(half.full.region, 2);
    unsigned batch = 0;
    std::map<uint64_t, unsigned> expected = before.addresses;
    slow.fault.before = [&](const kv_batch&) {
      if (batch++ != n) return;
      ++stopped;
      REQUIRE(half.carry(fast) == Status::kOk);
      unsigned changed = 0;
      for (unsigned i = 0; i < layout::kSlotsPerGroup && changed < 2; ++i) {
        const Slot slot = half.slot(half.in_target(), i);
        if (slot.empty()) continue;
        expected.erase(slot.address());
        if (changed++ == 0) {
          half.set_slot(half.in_target(), i, slot.emptied());
        } else {
          half.set_slot(half.in_target(), i, slot.successor(9, 0, Entries::kClass, new_object));
          expected[new_object] = 1;
        }
      }
      REQUIRE(changed == 2);
    };
    REQUIRE(half.carry(slow) == Status::kOk);
    if (stopped == n) break;  // it has fewer batches
    check_carried(half.contents(), expected);
  }
  CHECK(stopped >= 7);
}

}  // namespace kvstore::test
