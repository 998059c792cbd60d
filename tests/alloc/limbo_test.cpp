// Epochs: a block stays in limbo until every client has published an epoch later than the one in
// which it was unlinked, and a client never publishes one that its own operations began before.

#include "alloc/limbo.hpp"

#include <doctest/doctest.h>

#include <random>

namespace kvstore::test {

TEST_CASE("alloc: blocks leave the limbo after their epoch, oldest first") {
  Limbo limbo;
  for (uint64_t i = 1; i <= 4; ++i) limbo.retire({i * 64, 1});
  CHECK(limbo.bytes() == 256);
  CHECK(limbo.blocks(1) == 4);
  CHECK(limbo.blocks(2) == 0);
  CHECK(limbo.take_safe(UINT64_MAX).empty());  // not tagged yet

  const std::vector<Block> fresh = limbo.take_fresh();
  REQUIRE(fresh.size() == 4);
  CHECK(limbo.take_fresh().empty());
  limbo.put_back(fresh);
  CHECK(limbo.take_fresh().size() == 4);
  limbo.tag({fresh[0], fresh[1]}, 7);
  limbo.tag({fresh[2]}, 8);
  limbo.tag({fresh[3]}, 9);
  CHECK(limbo.take_safe(7).empty());  // somebody may still be in epoch 7
  CHECK(limbo.bytes() == 256);
  CHECK(limbo.take_safe(8).size() == 2);
  CHECK(limbo.bytes() == 128);
  const std::vector<Block> rest = limbo.take_safe(100);
  REQUIRE(rest.size() == 2);
  CHECK(rest[0].offset == fresh[2].offset);
  CHECK(limbo.bytes() == 0);
  CHECK(limbo.blocks(1) == 0);
}

TEST_CASE("alloc: a published epoch is never newer than the oldest operation") {
  constexpr uint64_t kNone = UINT64_MAX;
  std::mt19937_64 random(11);
  for (unsigned trial = 0; trial < 200; ++trial) {
    SeenEpochs seen;
    uint64_t tick = 0, epoch = 1, published = 0, oldest = kNone, epoch_at_begin = 0;
    for (unsigned beat = 0; beat < 300; ++beat) {
      // An operation that begins now records the tick so far; all that it may have seen is older
      // than what the next heartbeat reads.
      if (oldest == kNone && tick > 0 && random() % 4 == 0) {
        oldest = tick;
        epoch_at_begin = epoch;
      } else if (oldest != kNone && random() % 40 == 0) {
        oldest = kNone;
      }
      epoch += random() % 3;
      seen.saw(++tick, epoch);
      const uint64_t now = seen.publishable(oldest);
      REQUIRE(now >= published);
      if (oldest == kNone) {
        REQUIRE(now == epoch);
      } else {
        REQUIRE(now <= epoch_at_begin);
      }
      published = now;
    }
  }
}

}  // namespace kvstore::test
