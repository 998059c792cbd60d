// The bound on a wait, on stories whose answer is known.

#include "sim/lock_waits.hpp"

#include <doctest/doctest.h>

namespace kvstore::sim {
namespace {

constexpr uint64_t kHoldNs = 1'000;

// Writers in a closed circle, each of which holds for `kHoldNs`: client 0, 1, 2, 0, ...
uint64_t go_round(LockWaits& waits, uint64_t turns, uint64_t now_ns) {
  for (uint32_t client = 0; client < 3; ++client) waits.asked(0, client, true, now_ns);
  for (uint64_t turn = 0; turn < turns; ++turn) {
    const uint32_t client = uint32_t(turn % 3);
    waits.granted(0, client, now_ns);
    now_ns += kHoldNs;
    waits.released(0, client);
    waits.asked(0, client, true, now_ns);
  }
  return now_ns;
}

}  // namespace

TEST_CASE("lock waits: first come, first served waits as its position says") {
  LockWaits waits(1);
  waits.begin(0);
  go_round(waits, 300, 1);
  const LockWaits::Worst worst = waits.worst();
  CHECK(worst.ratio == 1.0);
  CHECK(worst.handover_ns == kHoldNs);
  CHECK(worst.waits > 200);
}

TEST_CASE("lock waits: who is overtaken is found") {
  LockWaits waits(1);
  waits.begin(0);
  uint64_t now_ns = go_round(waits, 300, 1);
  // When client 1 asked, two were before it; the others take six turns.
  for (const uint32_t client : {0u, 2u, 0u, 2u, 0u, 1u}) {
    waits.granted(0, client, now_ns);
    now_ns += kHoldNs;
    waits.released(0, client);
    waits.asked(0, client, true, now_ns);
  }
  const LockWaits::Worst worst = waits.worst();
  CHECK(worst.position == 2);
  CHECK(worst.wait_ns == 6 * kHoldNs);
  CHECK(worst.ratio == 3.0);
}

TEST_CASE("lock waits: readers one after the other are one turn") {
  LockWaits waits(1);
  waits.begin(0);
  uint64_t now_ns = go_round(waits, 300, 1);
  // Before these four are the three writers of the circle.
  for (const uint32_t client : {10u, 11u, 12u}) waits.asked(0, client, false, now_ns);
  waits.asked(0, 13, true, now_ns);
  for (const uint32_t client : {0u, 1u, 2u}) {
    waits.granted(0, client, now_ns);
    now_ns += kHoldNs;
    waits.released(0, client);
  }
  for (const uint32_t client : {10u, 11u, 12u}) waits.granted(0, client, now_ns);
  now_ns += 2 * kHoldNs;
  for (const uint32_t client : {10u, 11u, 12u}) waits.released(0, client);
  waits.granted(0, 13, now_ns);
  // The writer is the fifth turn, and so waits for four before it: 5 us against 4.
  CHECK(waits.worst().position == 4);
  CHECK(waits.worst().ratio == 1.25);
}

TEST_CASE("lock waits: a reader's own turn is not before it") {
  LockWaits waits(1);
  CHECK(waits.asked(0, 0, true, 1) == 0);
  CHECK(waits.asked(0, 1, false, 2) == 1);
  CHECK(waits.asked(0, 2, false, 3) == 1);  // joins the one that waits
  CHECK(waits.asked(0, 3, true, 4) == 2);
  CHECK(waits.asked(0, 4, false, 5) == 3);  // not before the writer
  waits.granted(0, 0, 6);
  waits.released(0, 0);
  waits.granted(0, 1, 7);
  waits.granted(0, 2, 7);
  CHECK(waits.asked(0, 5, false, 8) == 2);  // after the readers that hold, and the writer
  CHECK(waits.asked(0, 6, true, 9) == 3);

  LockWaits readers(1);
  CHECK(readers.asked(0, 0, false, 1) == 0);
  readers.granted(0, 0, 2);
  CHECK(readers.asked(0, 1, false, 3) == 0);  // joins the one that holds
}

TEST_CASE("lock waits: a reader that joined one is measured by what was before both") {
  LockWaits waits(1);
  waits.begin(0);
  uint64_t now_ns = go_round(waits, 300, 1);
  for (const uint32_t client : {10u, 11u}) waits.asked(0, client, false, now_ns);
  for (const uint32_t client : {0u, 1u, 2u}) {
    waits.granted(0, client, now_ns);
    now_ns += kHoldNs;
    waits.released(0, client);
  }
  waits.granted(0, 10, now_ns);
  now_ns += 3 * kHoldNs;
  waits.granted(0, 11, now_ns);
  CHECK(waits.worst().position == 3);
  CHECK(waits.worst().ratio == 2.0);
}

TEST_CASE("lock waits: too few hand-overs promise nothing, nor does what came before the begin") {
  LockWaits waits(1);
  const uint64_t now_ns = go_round(waits, 300, 1);
  CHECK(waits.worst().waits == 0);
  waits.begin(now_ns);
  waits.granted(0, 0, now_ns + 50 * kHoldNs);
  CHECK(waits.worst().waits == 0);
}

}  // namespace kvstore::sim
