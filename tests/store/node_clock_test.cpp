// A node's clock as a client estimates it from what heartbeats read.

#include <doctest/doctest.h>

#include "store/node_clock.hpp"

namespace kvstore::test {

TEST_CASE("node clock: a reading that is a tick old does not move it") {
  constexpr uint64_t kAheadMs = 5000;
  NodeClock clock;
  clock.saw(100 + kAheadMs, 100);
  // Three beats of four read a word that the node has not written anew, within each second.
  for (uint64_t here_ms = 110; here_ms < 60'000; here_ms += 10) {
    const uint64_t late_ms = here_ms % 40 == 0 ? 0 : 1;
    clock.saw(here_ms + kAheadMs - late_ms, here_ms);
    REQUIRE(clock.at_ms(1000) == 1000 + kAheadMs);
  }
}

TEST_CASE("node clock: it follows a clock that falls behind, and one that runs ahead at once") {
  NodeClock clock;
  clock.saw(5000, 100);
  CHECK(clock.at_ms(100) == 5000);
  clock.saw(5900 - 3, 1000);
  CHECK(clock.at_ms(1000) == 5900);
  for (uint64_t here_ms = 1000; here_ms <= 5000; here_ms += 10) {
    clock.saw(here_ms + 4900 - 3, here_ms);
  }
  CHECK(clock.at_ms(5000) == 9900 - 3);
  clock.saw(10'900 + 7, 6000);
  CHECK(clock.at_ms(6000) == 10'900 + 7);
}

TEST_CASE("node clock: a node whose clock is behind ours") {
  NodeClock clock;
  clock.saw(50, 90'000);
  CHECK(clock.at_ms(90'010) == 60);
}

}  // namespace kvstore::test
