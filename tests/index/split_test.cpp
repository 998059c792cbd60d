// Splits that break at every batch, with every prefix of it applied: whoever goes on finds every
// entry exactly once, and leaves none half carried.

#include <doctest/doctest.h>

#include <cstdlib>
#include <map>

#include "tests/index/fixture.hpp"

namespace kvstore::test {
namespace {

using layout::BucketHeader;
using layout::Slot;

constexpr uint64_t kRegionBytes = 8u << 20;

// A copy of a region's bytes, to begin again from.
class Snapshot {
 public:
  explicit Snapshot(const FormattedRegion& region)
      : region_(region), bytes_(region.data(), region.data() + region.bytes()) {}
  void restore() const { std::memcpy(region_.data(), bytes_.data(), bytes_.size()); }

 private:
  const FormattedRegion& region_;
  std::vector<uint8_t> bytes_;
};

struct Contents {
  std::map<uint64_t, unsigned> addresses;  // readable slots that point there
  unsigned moving = 0;
  unsigned tentative = 0;
  unsigned filling = 0;
};

void add_group(const FormattedRegion& region, uint64_t group_offset, Contents& contents) {
  for (unsigned b = 0; b < layout::kBucketsPerGroup; ++b) {
    const uint64_t bucket = group_offset + b * layout::kBucketBytes;
    contents.filling += BucketHeader{region.word(bucket)}.filling();
    for (unsigned s = 1; s <= layout::kSlotsPerBucket; ++s) {
      const Slot slot{region.word(bucket + s * 8)};
      if (slot.empty()) continue;
      contents.moving += slot.moving();
      contents.tentative += slot.tentative();
      if (slot.readable()) ++contents.addresses[slot.address()];
    }
  }
}

Contents contents_of(const FormattedRegion& region, const Directory& directory) {
  Contents contents;
  std::map<uint64_t, bool> seen;
  for (uint64_t i = 0; i < directory.size(); ++i) {
    const uint64_t subtable = directory.entry_at(i).offset();
    if (seen[subtable]) continue;
    seen[subtable] = true;
    for (unsigned g = 0; g < layout::kGroupsPerSubtable; ++g) {
      add_group(region, subtable + g * layout::kGroupBytes, contents);
    }
  }
  return contents;
}

// A region whose only subtable is full, and the key that would not go in any more.
struct FullSubtable {
  FormattedRegion region{kRegionBytes};
  KeySet keys{7200};
  Entries entries{region};
  RawClient client{region, 1};
  uint64_t count = 0;

  FullSubtable() {
    for (; count < keys.size(); ++count) {
      const uint64_t address = entries.write_object(client, keys[count]);
      const Slot slot = Slot{}.successor(0, 0, Entries::kClass, address);
      if (entries.try_insert(client, keys[count], slot) != InsertOutcome::kInserted) break;
    }
    KV_ASSERT(count > 3000 && count < keys.size());
  }
};

void check_whole(FullSubtable& full, RawClient& client, const Contents& before) {
  REQUIRE(client.run([&] { return client.directory.refresh(client.remote); }) == Status::kOk);
  const Contents after = contents_of(full.region, client.directory);
  CHECK(after.moving == 0);
  CHECK(after.tentative == 0);
  CHECK(after.filling == 0);
  CHECK(after.addresses == before.addresses);
  unsigned missing = 0;
  for (uint64_t i = 0; i < full.count; ++i) {
    missing += full.entries.copies(client, full.keys[i]) != 1;
  }
  CHECK(missing == 0);
}

// Client 1 broke off in the middle of a split: client 2 finishes it.
void check_resumed(FullSubtable& full, const Contents& before, bool thoroughly) {
  RawClient other(full.region, 2);
  unsigned missing = 0;
  for (uint64_t i = 0; thoroughly && i < full.count; i += 5) {
    missing += full.entries.copies(other, full.keys[i]) == 0;  // while the split stands still
  }
  CHECK(missing == 0);
  REQUIRE(other.resume(1) == Status::kOk);
  REQUIRE(other.run([&] { return other.directory.refresh(other.remote); }) == Status::kOk);
  const Contents after = contents_of(full.region, other.directory);
  REQUIRE(after.moving == 0);
  REQUIRE(after.tentative == 0);
  REQUIRE(after.filling == 0);
  REQUIRE(after.addresses == before.addresses);
  REQUIRE(layout::DirectoryLock{full.region.word(layout::kSplitRecordOffset)}.holder() == 0);
  if (!thoroughly) return;
  check_whole(full, other, before);
  REQUIRE(full.entries.insert_new(other, full.keys[full.count]) == Status::kOk);
}

TEST_CASE("a split carries every entry once") {
  FullSubtable full;
  const Contents before = contents_of(full.region, full.client.directory);
  CHECK(before.addresses.size() == full.count);
  REQUIRE(full.client.split(full.keys[full.count].hash) == Status::kOk);
  CHECK(full.client.directory.depth() == 1);
  check_whole(full, full.client, before);
  CHECK(full.entries.insert_new(full.client, full.keys[full.count]) == Status::kOk);
}

TEST_CASE("a split that breaks anywhere is finished by another client") {
  FullSubtable full;
  const Contents before = contents_of(full.region, full.client.directory);
  const Snapshot snapshot(full.region);
  const uint64_t hash = full.keys[full.count].hash;
  // The steps before the carrying one by one, the carrying in strides: its steps repeat.
  const uint64_t stride = sanitized() ? 211 : 23;
  unsigned broken = 0;
  bool ended = false;
  for (uint64_t batches = 0; !ended; batches += batches < 24 ? 1 : stride) {
    for (const uint32_t ops : {0u, 1u, 2u, UINT32_MAX}) {
      snapshot.restore();
      RawClient splitter(full.region, 1);
      splitter.fault = {batches, ops};
      const Status status = splitter.split(hash);
      ended = status == Status::kOk;  // it has fewer batches than that
      if (ended) break;
      CAPTURE(batches);
      CAPTURE(ops);
      REQUIRE(status == Status::kNodeUnreachable);
      check_resumed(full, before, ++broken % 16 == 0);
    }
  }
  CHECK(broken > (sanitized() ? 100 : 300));
}

TEST_CASE("the carrying of a group that breaks after any operation is finished by another") {
  FullSubtable full;
  const uint64_t source = full.client.directory.entry_at(0).offset();
  // Break right after the directory shows the new subtable: everything is still to be carried.
  full.client.fault = {0, 0};
  {
    const Snapshot fresh(full.region);
    for (uint64_t batches = 8;; ++batches) {
      REQUIRE(batches < 64);
      fresh.restore();
      RawClient splitter(full.region, 1);
      splitter.fault = {batches, 0};
      REQUIRE(splitter.split(full.keys[full.count].hash) == Status::kNodeUnreachable);
      splitter.reconnect();
      REQUIRE(splitter.run([&] { return splitter.directory.refresh(splitter.remote); }) ==
              Status::kOk);
      if (splitter.directory.depth() == 1 &&
          splitter.directory.entry_at(0) != splitter.directory.entry_at(1)) {
        break;
      }
    }
  }
  full.client.reconnect();
  full.client.fault = {};
  REQUIRE(full.client.run([&] { return full.client.directory.refresh(full.client.remote); }) ==
          Status::kOk);
  const uint64_t target = full.client.directory.entry_at(1).offset();
  const unsigned group = 17;
  const uint64_t in_source = source + group * layout::kGroupBytes;
  const uint64_t in_target = target + group * layout::kGroupBytes;
  Contents before;
  add_group(full.region, in_source, before);
  REQUIRE(before.addresses.size() > 8);
  std::vector<uint8_t> groups[2];
  for (const uint64_t at : {in_source, in_target}) {
    groups[at == in_target].assign(full.region.data() + at,
                                   full.region.data() + at + layout::kGroupBytes);
  }
  bool ended = false;
  unsigned trials = 0;
  for (uint64_t batches = 0; !ended; ++batches) {
    for (uint32_t ops = 0; ops <= 2 * layout::kSlotsPerGroup; ++ops) {
      std::memcpy(full.region.data() + in_source, groups[0].data(), layout::kGroupBytes);
      std::memcpy(full.region.data() + in_target, groups[1].data(), layout::kGroupBytes);
      RawClient first(full.region, 1);
      first.fault = {batches, ops};
      const auto carry = [&](RawClient& client) {
        return client.run([&] {
          return carry_group(client.remote, full.region.geometry(), source, target, group,
                             monotonic_ns() + kSecond);
        });
      };
      ended = carry(first) == Status::kOk;
      if (ended) break;
      ++trials;
      CAPTURE(batches);
      CAPTURE(ops);
      Contents between;
      add_group(full.region, in_source, between);
      add_group(full.region, in_target, between);
      CHECK(between.addresses.size() == before.addresses.size());
      RawClient second(full.region, 2);
      REQUIRE(carry(second) == Status::kOk);
      Contents after;
      add_group(full.region, in_source, after);
      add_group(full.region, in_target, after);
      CHECK(after.moving == 0);
      CHECK(after.tentative == 0);
      CHECK(after.filling == 0);
      CHECK(after.addresses == before.addresses);
    }
  }
  CHECK(trials > 100);
}

}  // namespace
}  // namespace kvstore::test
