// Words that are changed with CAS: each field comes back as it was put in, none touches another,
// versions advance and wrap.

#include <doctest/doctest.h>

#include <random>
#include <set>

#include "layout/layout.hpp"

namespace kvstore::layout {
namespace {

constexpr unsigned kTrials = 2000;

std::mt19937_64 generator() {
  return std::mt19937_64(20260101);
}

}  // namespace

TEST_CASE("layout: slots keep every field and count their version") {
  std::mt19937_64 random = generator();
  Slot slot;
  for (unsigned trial = 0; trial < kTrials; ++trial) {
    const unsigned fingerprint = random() & 0xff;
    const uint64_t flags = random() & Slot::kFlags;
    const unsigned size_class = random() & 0xff;
    const uint64_t address = random() & kAddressMask;
    const unsigned version = slot.version();
    slot = slot.successor(fingerprint, flags, size_class, address);
    REQUIRE(slot.fingerprint() == fingerprint);
    REQUIRE(slot.flags() == flags);
    REQUIRE(slot.size_class() == size_class);
    REQUIRE(slot.address() == address);
    REQUIRE(slot.offset() == address * 64);
    REQUIRE(slot.version() == (version + 1) % 32);
  }
}

TEST_CASE("layout: an emptied slot leads nowhere and counts its version") {
  Slot slot;
  for (unsigned version = 1; version <= 64; ++version) {
    slot = slot.successor(0xff, Slot::kFlags, 0xff, kAddressMask).emptied();
    REQUIRE(slot.empty());
    REQUIRE(slot.address() == 0);
    REQUIRE(slot.flags() == 0);
    REQUIRE(slot.version() == 2 * version % 32);
  }
  CHECK(Slot{}.empty());
}

TEST_CASE("layout: slots emptied of different objects hardly ever look alike") {
  // A stale CAS that expects an empty word must not find the same one after 32 changes.
  std::set<uint64_t> words;
  for (uint64_t address = 1; address <= 1000; ++address) {
    words.insert(Slot{}.successor(address % 256, 0, 2, address * 2).emptied().word);
  }
  CHECK(words.size() > 950);
}

TEST_CASE("layout: a slot's states exclude one another") {
  struct Row {
    uint64_t flags;
    bool moving, tentative, frozen, readable, hosted;
  };
  const Row rows[] = {{0, false, false, false, true, false},
                      {Slot::kShared, false, false, false, true, false},
                      {Slot::kHosted, false, false, false, true, true},
                      {Slot::kShared | Slot::kFrozen, false, false, true, true, false},
                      {Slot::kTentative, false, true, false, false, false},
                      {Slot::kMoving, true, false, true, true, false},
                      {Slot::kMoving | Slot::kShared, true, false, true, true, false}};
  for (const Row& row : rows) {
    CAPTURE(row.flags);
    const Slot slot = Slot{}.successor(7, row.flags, 3, 1);
    CHECK(slot.moving() == row.moving);
    CHECK(slot.tentative() == row.tentative);
    CHECK(slot.frozen() == row.frozen);
    CHECK(slot.readable() == row.readable);
    CHECK(slot.hosted() == row.hosted);
    CHECK(slot.guarded() == (row.flags != 0 && row.flags != Slot::kTentative));
    CHECK(slot.shared() == ((row.flags & Slot::kShared) != 0));
    const Slot bare = slot.with_flags(0);
    CHECK(bare == slot.successor(7, 0, 3, 1));
    // Without an address flags mean nothing.
    const Slot empty = Slot{}.successor(7, row.flags, 3, 0);
    CHECK(!empty.moving());
    CHECK(!empty.tentative());
    CHECK(!empty.readable());
  }
}

TEST_CASE("layout: who may have copies does not change where a slot leads") {
  const Slot bare = Slot{}.successor(7, 0, 3, 1);
  const Slot hosted = bare.with_hosted();
  const Slot shared = bare.with_shared();
  CHECK(hosted == Slot{}.successor(7, Slot::kHosted, 3, 1));
  CHECK(shared == Slot{}.successor(7, Slot::kShared, 3, 1));
  CHECK(hosted.with_shared() == shared);
  for (const Slot& one : {bare, hosted, shared}) {
    for (const Slot& other : {bare, hosted, shared}) CHECK(one.leads_where(other));
    CHECK(!one.leads_where(Slot{}.successor(7, Slot::kShared | Slot::kFrozen, 3, 1)));
    CHECK(!one.leads_where(Slot{}.successor(7, Slot::kMoving, 3, 1)));
    CHECK(!one.leads_where(one.with_flags(one.flags())));
  }
}

TEST_CASE("layout: segment entries keep every field and count their version") {
  std::mt19937_64 random = generator();
  SegmentEntry entry;
  for (unsigned trial = 0; trial < kTrials; ++trial) {
    const auto kind = SegmentEntry::Kind(random() % 7);
    const uint32_t owner = uint32_t(random() & 0xffffff);
    const uint32_t run = uint32_t(random() & 0xffffff);
    const unsigned size_class = random() & 0xff;
    const unsigned version = entry.version();
    entry = entry.successor(kind, owner, run, size_class);
    REQUIRE(entry.kind() == kind);
    REQUIRE(entry.owner() == owner);
    REQUIRE(entry.run() == run);
    REQUIRE(entry.size_class() == size_class);
    REQUIRE(entry.version() == (version + 1) % 32);
    REQUIRE(entry.is_free() == (kind == SegmentEntry::kFree));
    REQUIRE(entry.freed().is_free());
    REQUIRE(entry.freed().word == uint64_t{(entry.version() + 1) % 32} << 59);
  }
  // A run that covers the largest table fits its field.
  CHECK(SegmentEntry{}.successor(SegmentEntry::kObjects, 1, kSegmentsMax, 1).run() == kSegmentsMax);
}

TEST_CASE("layout: bucket headers cover the hashes that end in their suffix") {
  std::mt19937_64 random = generator();
  for (unsigned depth = 0; depth <= 32; ++depth) {
    for (unsigned trial = 0; trial < 64; ++trial) {
      const uint64_t hash = random();
      const uint64_t suffix = hash & ((uint64_t{1} << depth) - 1);
      const bool filling = trial % 2 == 1;
      const BucketHeader header = BucketHeader::make(depth, suffix, filling);
      REQUIRE(header.depth() == depth);
      REQUIRE(header.suffix() == suffix);
      REQUIRE(header.filling() == filling);
      REQUIRE(header.covers(hash));
      if (depth > 0) REQUIRE(!header.covers(hash ^ uint64_t{1} << random() % depth));
      if (depth < 64) REQUIRE(header.covers(hash ^ uint64_t{1} << (depth + random() % 32)));
    }
  }
}

TEST_CASE("layout: directory entries, directory locks and versions of values") {
  std::mt19937_64 random = generator();
  DirectoryLock lock;
  for (unsigned trial = 0; trial < kTrials; ++trial) {
    const uint64_t address = random() & kAddressMask;
    const unsigned depth = random() & 0xff;
    const DirectoryEntry entry = DirectoryEntry::make(address, depth);
    REQUIRE(entry.address() == address);
    REQUIRE(entry.offset() == address * 64);
    REQUIRE(entry.depth() == depth);

    const uint32_t holder = uint32_t(random() & 0xffffff);
    const uint64_t era = lock.era();
    lock = lock.taken_by(holder);
    REQUIRE(lock.holder() == holder);
    REQUIRE(lock.era() == era + 1);
    REQUIRE(lock.released().holder() == 0);
    REQUIRE(lock.released().era() == lock.era());

    const uint64_t sequence = random() & ((uint64_t{1} << 40) - 1);
    REQUIRE(make_version(holder, sequence) == (uint64_t{holder} << 40 | sequence));
    REQUIRE(make_version(holder, sequence | uint64_t{1} << 40) == make_version(holder, sequence));
  }
}

}  // namespace kvstore::layout
