// Which keys are copied, by what is known of their reads between changes.

#include "cache/interest.hpp"

#include <doctest/doctest.h>

namespace kvstore::test {
namespace {

constexpr uint64_t kKey = 0x0123456789abcdef;
constexpr uint32_t kPays = 8;

// Reads from the node, as long as no copy is to be made.
uint32_t read_until_copied(Interest& interest, uint64_t key, uint32_t reads_max) {
  for (uint32_t i = 0; i < reads_max; ++i) {
    if (interest.read(key, kPays)) return i;
    interest.unchanged(key, kPays);
  }
  return reads_max;
}

// Many changes, each after so many reads.
void live(Interest& interest, uint64_t key, uint32_t reads) {
  for (int change = 0; change < 40; ++change) interest.taken(key, reads, kPays);
}

}  // namespace

TEST_CASE("a key of which nothing is known is copied at its second read") {
  Interest interest;
  CHECK(interest.reads_to_wait(kKey, kPays) == 1);
  CHECK(read_until_copied(interest, kKey, 10) == 1);
  interest.met(kKey + 1);
  CHECK(interest.reads_to_wait(kKey + 1, kPays) == 0);
  CHECK(read_until_copied(interest, kKey + 1, 10) == 0);
}

TEST_CASE("a change that cost nothing is none: the next one that does counts all reads before it") {
  Interest interest;
  for (int change = 0; change < 40; ++change) {
    interest.went_on(kKey, kPays / 2);
    interest.went_on(kKey, kPays / 2);
    interest.taken(kKey, 1, kPays);
  }
  CHECK(interest.pays(kKey, kPays));
  live(interest, kKey, kPays / 2);
  CHECK(!interest.pays(kKey, kPays));
}

TEST_CASE("a key is copied while it is read often enough between changes") {
  Interest interest;
  live(interest, kKey, kPays + 1);
  CHECK(interest.pays(kKey, kPays));
  CHECK(interest.read(kKey, kPays));
  // One short life is not held against it.
  interest.taken(kKey, kPays - 1, kPays);
  CHECK(interest.read(kKey, kPays));
  live(interest, kKey, kPays - 1);
  CHECK(!interest.pays(kKey, kPays));
  CHECK(!interest.read(kKey, kPays));
  // What pays depends on what a write costs.
  CHECK(interest.read(kKey, kPays / 2));
}

TEST_CASE("reads from the node count as much as those of a copy") {
  Interest interest;
  interest.taken(kKey, 0, kPays);
  CHECK(!interest.read(kKey, kPays));
  for (int change = 0; change < 40; ++change) {
    for (uint32_t i = 0; i <= kPays; ++i) interest.unchanged(kKey, kPays);
    interest.changed(kKey, kPays);
  }
  CHECK(interest.read(kKey, kPays));
}

TEST_CASE("what was written much is copied once it has come to rest") {
  Interest interest;
  live(interest, kKey, 1);
  CHECK(interest.reads_to_wait(kKey, kPays) == 4 * kPays);
  CHECK(read_until_copied(interest, kKey, 1000) == 4 * kPays);
  // And no more once it is written again.
  interest.taken(kKey, 0, kPays);
  CHECK(!interest.read(kKey, kPays));
}

TEST_CASE("writes with no read between them tell nothing") {
  Interest interest;
  live(interest, kKey, kPays + 1);
  for (int i = 0; i < 1000; ++i) interest.changed(kKey, kPays);
  CHECK(interest.read(kKey, kPays));
}

TEST_CASE("a key of which many reads meet a writer is copied only if it is read very often") {
  // Of each hundred reads these many bring nothing: a writer is ending the copies.
  const auto copied = [](uint32_t in_vain) {
    Interest interest;
    live(interest, kKey, 3 * kPays);
    for (int change = 0; change < 40; ++change) {
      const uint32_t reads = 3 * kPays;
      interest.taken(kKey, reads * (100 - in_vain) / 100, kPays);
      for (uint32_t i = 0; i < reads * in_vain / 100; ++i) interest.met_writer(kKey, kPays);
    }
    return interest.read(kKey, kPays);
  };
  CHECK(copied(0));
  CHECK(!copied(50));
  // Once no writer is met any more its reads count again.
  Interest interest;
  live(interest, kKey, 3 * kPays);
  for (int i = 0; i < 1000; ++i) interest.met_writer(kKey, kPays);
  CHECK(!interest.read(kKey, kPays));
  live(interest, kKey, 3 * kPays);
  CHECK(interest.read(kKey, kPays));
}

TEST_CASE("a key that did not pay while much had to has not to unlearn it when little has to") {
  Interest interest;
  for (int change = 0; change < 4; ++change) interest.taken(kKey, 0, 20 * kPays);
  CHECK(!interest.read(kKey, kPays));
  // One that did pay is copied at once.
  interest.taken(kKey + 1, 20 * kPays, 20 * kPays);
  CHECK(interest.read(kKey + 1, 20 * kPays));
}

TEST_CASE("a mean is of what there was, and later of the last hundred figures or so") {
  constexpr uint64_t kGuess = 1000;
  RecentMean mean;
  CHECK(mean.get(kGuess) == kGuess);
  mean.note(100);
  CHECK(mean.get(kGuess) == (100 + 2 * kGuess) / 3);
  CHECK(mean.get(100) == 100);
  mean.note(200);
  CHECK(mean.get(150) == 150);
  for (int i = 0; i < 2000; ++i) mean.note(400);
  // Small differences count as well, and nobody guesses any more.
  CHECK(mean.get(kGuess) >= 398);
  CHECK(mean.get(kGuess) <= 400);
  for (int i = 0; i < 128; ++i) mean.note(0);
  CHECK(mean.get(kGuess) > 100);
  CHECK(mean.get(kGuess) < 200);
}

TEST_CASE("where most keys turn out not to pay, unknown ones wait longer, up to a bound") {
  Interest interest;
  const auto key = [](uint64_t number) { return (number + 1) * 0x9e3779b97f4a7c15ull; };
  for (uint64_t i = 0; i < 16; ++i) interest.taken(key(i), 1, kPays);
  const uint32_t waits = interest.reads_to_wait(key(100'000), kPays);
  CHECK(waits == 4);
  CHECK(read_until_copied(interest, key(100'000), 100) == waits);
  for (uint64_t i = 16; i < 5000; ++i) interest.taken(key(i), 1, kPays);
  CHECK(interest.reads_to_wait(key(200'000), kPays) == 1024);
  for (uint64_t i = 5000; i < 6000; ++i) interest.taken(key(i), kPays, kPays);
  CHECK(interest.reads_to_wait(key(300'000), kPays) == 1);
}

}  // namespace kvstore::test
