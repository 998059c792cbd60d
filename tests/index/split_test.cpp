// Splits that break at every batch, with every prefix of it applied: whoever goes on finds every
// entry exactly once, and leaves none half carried.

#include <doctest/doctest.h>

#include "tests/index/full_subtable.hpp"

namespace kvstore::test {
namespace {

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

TEST_CASE("index: a split carries every entry once") {
  FullSubtable full;
  const Contents before = contents_of(full.region, full.client.directory);
  CHECK(before.addresses.size() == full.count);
  REQUIRE(full.client.split(full.keys[full.count].hash) == Status::kOk);
  CHECK(full.client.directory.depth() == 1);
  check_whole(full, full.client, before);
  CHECK(full.entries.insert_new(full.client, full.keys[full.count]) == Status::kOk);
}

TEST_CASE("index: a split that breaks anywhere is finished by another client") {
  FullSubtable full;
  const Contents before = contents_of(full.region, full.client.directory);
  const Snapshot snapshot(full.region);
  const uint64_t hash = full.keys[full.count].hash;
  // The steps before the carrying one by one, the carrying in strides: its steps repeat.
  const uint64_t stride = sanitized() ? 701 : 23;
  unsigned broken = 0;
  bool ended = false;
  for (uint64_t batches = 0; !ended; batches += batches < 24 ? 1 : stride) {
    for (const uint32_t ops : {0u, 1u, 2u, UINT32_MAX}) {
      snapshot.restore();
      RawClient splitter(full.region, 1);
      splitter.fault = {batches, ops, {}};
      const Status status = splitter.split(hash);
      ended = status == Status::kOk;  // it has fewer batches than that
      if (ended) break;
      CAPTURE(batches);
      CAPTURE(ops);
      REQUIRE(status == Status::kNodeUnreachable);
      check_resumed(full, before, ++broken % 16 == 0);
    }
  }
  CHECK(broken > (sanitized() ? 60 : 300));
}

}  // namespace
}  // namespace kvstore::test
