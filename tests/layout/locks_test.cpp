// The arithmetic of lock headers, exhaustively on small fields; entries, tokens, table shapes.

#include "layout/locks.hpp"

#include <doctest/doctest.h>

#include <initializer_list>

namespace kvstore::layout {

TEST_CASE("lock header: every acquisition and release changes exactly the fields that it should") {
  using Small = BasicLockHeader<3, 5>;
  constexpr uint64_t kMask = (uint64_t{1} << Small::kWidth) - 1;
  constexpr uint64_t kHeads = 1 << 5;
  unsigned checked = 0;
  for (uint64_t word = 0; word <= kMask; ++word) {
    const Small before{word};
    if (before.exclusive() > before.size()) continue;
    for (const bool exclusive : {false, true}) {
      const uint64_t mode = exclusive ? 1 : 0;
      if (before.size() < Small::kCountMax) {
        const Small after{(word + Small::acquisition(exclusive)) & kMask};
        CHECK(after.resetting() == before.resetting());
        CHECK(after.exclusive() == before.exclusive() + mode);
        CHECK(after.size() == before.size() + 1);
        CHECK(after.head() == before.head());
        ++checked;
      }
      if (before.size() >= 1 && before.exclusive() >= mode) {
        const Small after{(word + Small::release(exclusive)) & kMask};
        CHECK(after.resetting() == before.resetting());
        CHECK(after.exclusive() == before.exclusive() - mode);
        CHECK(after.size() == before.size() - 1);
        CHECK(after.head() == (before.head() + 1) % kHeads);
        ++checked;
      }
    }
  }
  CHECK(checked > 5000);
}

TEST_CASE("lock header: a reset skips all indexes that were given") {
  LockHeader header{};
  for (int i = 0; i < 7; ++i) header.word += LockHeader::acquisition(i % 2 == 0);
  for (int i = 0; i < 3; ++i) header.word += LockHeader::release(true);
  CHECK(header.head() == 3);
  CHECK(header.size() == 4);
  CHECK(header.exclusive() == 1);
  const LockHeader after = LockHeader{header.word | LockHeader::kResetting}.after_reset();
  CHECK(after.head() == header.tail());
  CHECK(after.size() == 0);
  CHECK(after.exclusive() == 0);
  CHECK(!after.resetting());
}

TEST_CASE("lock header: who finds what holds at once") {
  const LockHeader free{};
  const LockHeader read{LockHeader::acquisition(false)};
  const LockHeader written{LockHeader::acquisition(true)};
  CHECK(free.grants(true));
  CHECK(free.grants(false));
  CHECK(!read.grants(true));
  CHECK(read.grants(false));
  CHECK(!written.grants(true));
  CHECK(!written.grants(false));
}

TEST_CASE("lock entry: mode, owner and lap stand apart") {
  constexpr uint64_t kLapMax = (uint64_t{1} << 39) - 1;
  for (const uint64_t lap : {uint64_t{0}, uint64_t{1}, kLapMax}) {
    for (const uint32_t registration : {1u, 0xffffffu}) {
      for (const bool exclusive : {false, true}) {
        const LockEntry entry = LockEntry::make(exclusive, registration, lap);
        CHECK(entry.exclusive() == exclusive);
        CHECK(entry.registration() == registration);
        CHECK(entry.lap() == lap);
        CHECK(entry.is_of_lap(lap));
        CHECK(!entry.is_newer_than(lap));
        if (lap > 0) CHECK(entry.is_newer_than(lap - 1));
      }
    }
  }
  CHECK(!LockEntry{}.is_of_lap(0));
}

TEST_CASE("lock reset: an owner, an epoch that grows") {
  const LockReset first = LockReset{}.taken_by(7);
  CHECK(first.owner() == 7);
  CHECK(first.epoch() == 1);
  CHECK(first.ended().owner() == 0);
  CHECK(first.ended().epoch() == 1);
  CHECK(first.taken_by(9).owner() == 9);
  CHECK(first.taken_by(9).epoch() == 2);
}

TEST_CASE("lock token: grows with the index, then with the grants") {
  CHECK(lock_token(1, 0) > lock_token(0, kLockGrantsMax));
  CHECK(lock_token(5, 3) > lock_token(5, 2));
  CHECK(lock_token(kLockIndexMax, kLockGrantsMax) > lock_token(kLockIndexMax, 0));
}

TEST_CASE("lock table: records do not overlap, and entries of one lap neither") {
  for (const uint64_t capacity : {1, 4, 32, 1024}) {
    const LockTableShape shape{64, capacity};
    CHECK(shape.sound());
    CHECK(shape.record_bytes() % kLineBytes == 0);
    CHECK(shape.entry_offset(capacity - 1) + 8 <= shape.record_bytes());
    CHECK(shape.entry_offset(capacity) == shape.entry_offset(0));
    CHECK(shape.lap_of(capacity) == shape.lap_of(0) + 1);
  }
  CHECK(!LockTableShape{63, 32}.sound());
  CHECK(!LockTableShape{64, 0}.sound());
  CHECK(!LockTableShape{64, 2048}.sound());
}

}  // namespace kvstore::layout
