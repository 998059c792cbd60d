// The segment table: runs are taken by one client at a time, whole or not at all, also when several
// want the same ones or break off half-way.

#include <doctest/doctest.h>

#include <map>
#include <random>
#include <thread>

#include "tests/index/fixture.hpp"

namespace kvstore::test {
namespace {

using layout::SegmentEntry;

constexpr uint64_t kRegionBytes = uint64_t{32} << 20;

ClaimResult claim(RawClient& client, uint32_t run, uint64_t clear_bytes = 0) {
  return client.run([&] {
    return client.segments.claim(client.remote, run, SegmentEntry::kObjects, 7, clear_bytes);
  });
}

Status release(RawClient& client, const FormattedRegion& region, uint64_t segment) {
  return client.run(
      [&] { return client.segments.release(client.remote, segment, region.entry(segment)); });
}

// Every entry belongs to a whole extent or is free.
void check_table(const FormattedRegion& region) {
  const uint64_t count = region.geometry().segment_count;
  for (uint64_t i = 0; i < count;) {
    const SegmentEntry head = region.entry(i);
    CAPTURE(i);
    if (head.is_free()) {
      ++i;
      continue;
    }
    REQUIRE((head.kind() == SegmentEntry::kObjects || head.kind() == SegmentEntry::kSubtable));
    REQUIRE(head.run() >= 1);
    REQUIRE(i + head.run() <= count);
    for (uint32_t follower = 1; follower < head.run(); ++follower) {
      REQUIRE(region.entry(i + follower).kind() == SegmentEntry::kFollower);
      REQUIRE(region.entry(i + follower).run() == follower);
      REQUIRE(region.entry(i + follower).owner() == head.owner());
    }
    i += head.run();
  }
}

// What a sweep does with the entries of a client that is gone.
void undo_claims(RawClient& client, const FormattedRegion& region, uint32_t gone) {
  for (uint64_t i = 0; i < region.geometry().segment_count; ++i) {
    const SegmentEntry head = region.entry(i);
    if (head.kind() != SegmentEntry::kClaiming || head.owner() != gone) continue;
    REQUIRE(client.run([&] { return client.segments.dissolve(client.remote, i, head); }) ==
            Status::kOk);
  }
}

}  // namespace

TEST_CASE("alloc: a claimed run is whole, zeroed where asked, and comes back") {
  FormattedRegion region(kRegionBytes);
  RawClient client(region, 3);
  const uint64_t free = region.free_segments();
  for (const uint32_t run : {1u, 2u, 15u, 256u, 257u, 400u}) {
    CAPTURE(run);
    std::memset(region.data() + region.geometry().segment_offset(4), 0xff, 4096);
    const ClaimResult claimed = claim(client, run, 128);
    REQUIRE(claimed.status == Status::kOk);
    CHECK(claimed.extent.run == run);
    CHECK(region.free_segments() == free - run);
    check_table(region);
    const SegmentEntry head = region.entry(claimed.extent.segment);
    CHECK(head.owner() == 3);
    CHECK(head.run() == run);
    CHECK(head.size_class() == 7);
    const uint64_t at = region.geometry().segment_offset(claimed.extent.segment);
    for (uint64_t word = 0; word < 128; word += 8) REQUIRE(region.word(at + word) == 0);
    REQUIRE(release(client, region, claimed.extent.segment) == Status::kOk);
    CHECK(region.free_segments() == free);
    // Given back twice is refused: the head has changed.
    CHECK(client.run([&] {
      return client.segments.release(client.remote, claimed.extent.segment, head);
    }) == Status::kAbsent);
  }
  check_table(region);
}

TEST_CASE("alloc: a run that is nowhere free leaves the table as it was") {
  FormattedRegion region(kRegionBytes);
  RawClient client(region, 3);
  const uint64_t count = region.geometry().segment_count;
  CHECK(claim(client, uint32_t(count)).status == Status::kOutOfMemory);
  CHECK(claim(client, uint32_t(count) + 1).status == Status::kOutOfMemory);
  std::vector<uint64_t> taken;
  while (true) {
    const ClaimResult claimed = claim(client, 1);
    if (claimed.status != Status::kOk) break;
    taken.push_back(claimed.extent.segment);
  }
  CHECK(region.free_segments() == 0);
  // Every second one comes back: no two neighbours are free.
  for (size_t i = 0; i < taken.size(); i += 2) {
    REQUIRE(release(client, region, taken[i]) == Status::kOk);
  }
  const uint64_t free = region.free_segments();
  CHECK(claim(client, 2).status == Status::kOutOfMemory);
  CHECK(region.free_segments() == free);
  check_table(region);
  // One more makes a run of three, wherever the client looks first.
  REQUIRE(release(client, region, taken[1]) == Status::kOk);
  const ClaimResult claimed = claim(client, 3);
  REQUIRE(claimed.status == Status::kOk);
  CHECK(claimed.extent.segment == taken[0]);
}

TEST_CASE("alloc: clients that race for runs never share a segment") {
  FormattedRegion region(kRegionBytes);
  const uint64_t free = region.free_segments();
  const uint64_t count = region.geometry().segment_count;
  const auto holders = std::make_unique<std::atomic<uint32_t>[]>(count);
  std::atomic<unsigned> shared{0}, claims{0}, refused{0};
  const unsigned rounds = sanitized() ? 100 : 1500;
  const auto work = [&](uint32_t registration) {
    RawClient client(region, registration);
    std::mt19937 random(registration);
    std::vector<Extent> held;
    for (unsigned round = 0; round < rounds || !held.empty(); ++round) {
      // Together they want about as much as there is, so that runs get scarce and claims collide.
      if (round < rounds && random() % 2 == 0) {
        const ClaimResult claimed = claim(client, 1 + random() % 12);
        if (claimed.status == Status::kOk) {
          held.push_back(claimed.extent);
          ++claims;
          for (uint32_t i = 0; i < claimed.extent.run; ++i) {
            shared += holders[claimed.extent.segment + i].exchange(registration) != 0;
          }
        } else {
          ++refused;
        }
      } else if (!held.empty()) {
        const Extent extent = held[random() % held.size()];
        std::erase_if(held, [&](const Extent& e) { return e.segment == extent.segment; });
        for (uint32_t i = 0; i < extent.run; ++i) {
          shared += holders[extent.segment + i].exchange(0) != registration;
        }
        shared += release(client, region, extent.segment) != Status::kOk;
      }
    }
  };
  std::vector<std::thread> threads;
  for (uint32_t registration = 1; registration <= 3; ++registration) {
    threads.emplace_back(work, registration);
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(shared == 0);
  CHECK(claims > rounds);
  check_table(region);
  CHECK(region.free_segments() == free);
}

TEST_CASE("alloc: a claim that breaks off anywhere can be undone by others") {
  FormattedRegion region(kRegionBytes);
  RawClient other(region, 2);
  const uint64_t free = region.free_segments();
  for (uint64_t batches = 0;; ++batches) {
    bool whole = false;
    for (const uint32_t ops : {0u, 1u, 100u, UINT32_MAX}) {
      CAPTURE(batches);
      CAPTURE(ops);
      RawClient client(region, 1);
      client.fault = {batches, ops, {}};
      const ClaimResult claimed = claim(client, 300, 64);
      whole = claimed.status == Status::kOk;
      if (!whole) REQUIRE(claimed.status == Status::kNodeUnreachable);
      undo_claims(other, region, 1);
      // The last step may have been applied with its answer lost: then the run is whole.
      for (uint64_t i = 0; i < region.geometry().segment_count; ++i) {
        if (region.entry(i).owner() != 1 || region.entry(i).kind() != SegmentEntry::kObjects) {
          continue;
        }
        REQUIRE(release(other, region, i) == Status::kOk);
      }
      check_table(region);
      REQUIRE(region.free_segments() == free);
      if (whole) break;
    }
    if (whole) break;
    REQUIRE(batches < 32);
  }
}

TEST_CASE("alloc: a release that breaks off anywhere can be ended by others") {
  FormattedRegion region(kRegionBytes);
  RawClient other(region, 2);
  const uint64_t free = region.free_segments();
  bool ended = false;
  for (uint64_t batches = 0; !ended; ++batches) {
    REQUIRE(batches < 32);
    for (const uint32_t ops : {0u, 1u, 100u, UINT32_MAX}) {
      RawClient client(region, 1);
      const ClaimResult claimed = claim(client, 300);
      REQUIRE(claimed.status == Status::kOk);
      client.fault = {batches, ops, {}};
      ended = release(client, region, claimed.extent.segment) == Status::kOk;
      undo_claims(other, region, 1);
      const SegmentEntry head = region.entry(claimed.extent.segment);
      if (head.kind() == SegmentEntry::kObjects) {
        REQUIRE(release(other, region, claimed.extent.segment) == Status::kOk);
      }
      check_table(region);
      REQUIRE(region.free_segments() == free);
      if (ended) break;
    }
  }
}

}  // namespace kvstore::test
