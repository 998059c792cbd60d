// Carrying one group of a split: helpers that break off after any operation, helpers that stop for
// as long as they like and then go on, and others who use the group in between.

#include <doctest/doctest.h>

#include <random>

#include "tests/index/full_subtable.hpp"

namespace kvstore::test {
namespace {

using layout::Slot;

constexpr unsigned kGroup = 17;
// A fault that never comes.
constexpr uint64_t kNever = UINT64_MAX;

// The directory shows the new subtable, and nothing has been carried yet.
class HalfSplit {
 public:
  HalfSplit() {
    const Snapshot fresh(full.region);
    bool shown = false;
    for (uint64_t batches = 8; !shown; ++batches) {
      KV_ASSERT(batches < 64);
      fresh.restore();
      RawClient splitter(full.region, 1);
      splitter.fault = {batches, 0, {}};
      KV_ASSERT(splitter.split(full.keys[full.count].hash) == Status::kNodeUnreachable);
      Directory& seen = full.client.directory;
      KV_ASSERT(full.client.run([&] { return seen.refresh(full.client.remote); }) == Status::kOk);
      shown = seen.depth() == 1 && seen.entry_at(0) != seen.entry_at(1);
    }
    source = full.client.directory.entry_at(0).offset();
    target = full.client.directory.entry_at(1).offset();
    for (const uint64_t at : {in_source(), in_target()}) {
      const uint8_t* bytes = full.region.data() + at;
      saved_.insert(saved_.end(), bytes, bytes + layout::kGroupBytes);
    }
  }

  uint64_t in_source() const { return source + kGroup * layout::kGroupBytes; }
  uint64_t in_target() const { return target + kGroup * layout::kGroupBytes; }
  void restore() {
    std::memcpy(full.region.data() + in_source(), saved_.data(), layout::kGroupBytes);
    std::memcpy(full.region.data() + in_target(), saved_.data() + layout::kGroupBytes,
                layout::kGroupBytes);
  }
  Status carry(RawClient& client) {
    return client.run([&] {
      return carry_group(client.remote, full.region.geometry(), source, target, kGroup,
                         monotonic_ns() + kSecond);
    });
  }
  Contents contents() const {
    Contents both;
    add_group(full.region, in_source(), both);
    add_group(full.region, in_target(), both);
    return both;
  }
  static uint64_t slot_offset(uint64_t group_offset, unsigned i) {
    return group_offset + i / 7 * layout::kBucketBytes + 8 + i % 7 * 8;
  }
  Slot slot(uint64_t group_offset, unsigned i) const {
    return Slot{full.region.word(slot_offset(group_offset, i))};
  }
  void set_slot(uint64_t group_offset, unsigned i, Slot slot) {
    std::memcpy(full.region.data() + slot_offset(group_offset, i), &slot.word, 8);
  }

  FullSubtable full;
  uint64_t source = 0;
  uint64_t target = 0;

 private:
  std::vector<uint8_t> saved_;
};

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
