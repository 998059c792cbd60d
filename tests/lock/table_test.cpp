// The lock table of a node: made once, by whoever wants the first lock, and swept after neither.

#include "lock/table.hpp"

#include <doctest/doctest.h>

#include <cstring>

#include "tests/lock/fixture.hpp"

namespace kvstore::test {
namespace {

uint64_t root_of(const StoreClient& client) {
  uint64_t root = 0;
  std::memcpy(&root, client.region() + layout::kRootsOffset, sizeof root);
  return root;
}

Status open(StoreClient& client, LockTable& table) {
  return client.run_task(
      [&](Channel& channel) { return table.open(channel.remote, channel.attachment->segments); });
}

}  // namespace

TEST_CASE("lock table: everybody finds the one that the first has made") {
  StoreNode node(layout::kRegionBytesMin);
  StoreClient a(node), b(node);
  LockTable first(a.attachment()->geometry), second(b.attachment()->geometry);
  REQUIRE(root_of(a) == 0);
  second.want({128, 8});
  REQUIRE(open(a, first) == Status::kOk);
  REQUIRE(open(b, second) == Status::kOk);
  CHECK(first.shape().lock_count == 1024);
  CHECK(second.shape().lock_count == 1024);
  CHECK(second.shape().ring_capacity == layout::kLockRingDefault);
  CHECK(first.record_offset(7) == second.record_offset(7));
  CHECK(first.record_offset(7) % layout::kLineBytes == 0);
}

TEST_CASE("lock table: it outlives its maker; one that nobody knows of is swept") {
  StoreNode node(layout::kRegionBytesMin);
  StoreClient b(node);
  LockTable mine(b.attachment()->geometry);
  uint64_t free_before = 0;
  {
    StoreClient a(node);
    LockTable table(a.attachment()->geometry);
    REQUIRE(open(a, table) == Status::kOk);
    free_before = node.stats().segments_free;
    const Status claimed = a.run_task([&](Channel& channel) -> Task<Status> {
      const ClaimResult result = co_await channel.attachment->segments.claim(
          channel.remote, 3, layout::SegmentEntry::kLocks, 0, 0);
      co_return result.status;
    });
    REQUIRE(claimed == Status::kOk);
    CHECK(node.stats().segments_free == free_before - 3);
    a.vanish();
  }
  CHECK(eventually_true([&] { return node.stats().segments_free == free_before; }));
  REQUIRE(open(b, mine) == Status::kOk);
}

TEST_CASE("lock table: a full node has a smaller one, or none") {
  StoreNode node(layout::kRegionBytesMin);
  StoreClient a(node);
  LockTable table(a.attachment()->geometry);
  const auto claim = [&](uint32_t run) {
    return a.run_task([&, run](Channel& channel) -> Task<Status> {
      const ClaimResult result = co_await channel.attachment->segments.claim(
          channel.remote, run, layout::SegmentEntry::kObjects, 1, 0);
      co_return result.status;
    });
  };
  while (claim(3) == Status::kOk) {
  }
  REQUIRE(open(a, table) == Status::kOk);
  CHECK(table.shape().lock_count < 1024);

  StoreNode full(layout::kRegionBytesMin);
  StoreClient b(full);
  LockTable none(b.attachment()->geometry);
  const auto claim_one = [&] {
    return b.run_task([&](Channel& channel) -> Task<Status> {
      const ClaimResult result = co_await channel.attachment->segments.claim(
          channel.remote, 1, layout::SegmentEntry::kObjects, 1, 0);
      co_return result.status;
    });
  };
  while (claim_one() == Status::kOk) {
  }
  CHECK(open(b, none) == Status::kOutOfMemory);
  CHECK(!none.is_open());
}

TEST_CASE("lock table: what can't be one is refused") {
  StoreNode node(layout::kRegionBytesMin);
  StoreClient a(node), b(node);
  LockTable table(a.attachment()->geometry);
  REQUIRE(open(a, table) == Status::kOk);
  const uint64_t root = root_of(a);
  const auto set_root = [&](uint64_t word) {
    std::memcpy(a.region() + layout::kRootsOffset, &word, sizeof word);
  };
  for (const uint64_t word : {root + 64, uint64_t{1}, UINT64_MAX, root + 65536}) {
    set_root(word);
    LockTable other(b.attachment()->geometry);
    CHECK(open(b, other) == Status::kCorrupt);
  }
  set_root(root);
  a.region()[root + 8] ^= 1;  // the count
  LockTable other(b.attachment()->geometry);
  CHECK(open(b, other) == Status::kCorrupt);
}

}  // namespace kvstore::test
