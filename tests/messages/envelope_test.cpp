// What a receiver accepts: exactly what was sealed under its key, each sequence once.

#include "messages/envelope.hpp"

#include <doctest/doctest.h>

#include <random>
#include <set>
#include <vector>

namespace kvstore::test {
namespace {

const SipKey kKey{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16};

std::vector<uint8_t> sealed(const Message& message) {
  Envelope envelope;
  envelope.seal(kKey, message);
  return {envelope.data(), envelope.data() + envelope.size()};
}

}  // namespace

TEST_CASE("messages: an envelope gives back what was sealed, at every length") {
  for (size_t bytes = 0; bytes <= kMessageBytesMax; ++bytes) {
    CAPTURE(bytes);
    std::vector<uint8_t> content(bytes, uint8_t(bytes));
    const auto datagram = sealed({77, MessageKind::kLock, 0x1234567890ull, 9, content});
    Message opened;
    REQUIRE(Envelope::open(kKey, datagram, opened) == Envelope::Verdict::kGood);
    REQUIRE(opened.from == 77);
    REQUIRE(opened.kind == MessageKind::kLock);
    REQUIRE(opened.incarnation == 0x1234567890ull);
    REQUIRE(opened.sequence == 9);
    REQUIRE(std::vector<uint8_t>(opened.content.begin(), opened.content.end()) == content);
  }
}

TEST_CASE("messages: a flipped bit, a cut and another key are refused") {
  std::vector<uint8_t> content(20, 0xab);
  const auto datagram = sealed({77, MessageKind::kCache, 5, 9, content});
  Message opened;
  for (size_t bit = 0; bit < datagram.size() * 8; ++bit) {
    CAPTURE(bit);
    auto flipped = datagram;
    flipped[bit / 8] ^= uint8_t(1u << bit % 8);
    REQUIRE(Envelope::open(kKey, flipped, opened) != Envelope::Verdict::kGood);
  }
  for (size_t bytes = 0; bytes < datagram.size(); ++bytes) {
    CAPTURE(bytes);
    const std::span<const uint8_t> cut(datagram.data(), bytes);
    REQUIRE(Envelope::open(kKey, cut, opened) != Envelope::Verdict::kGood);
  }
  auto longer = datagram;
  longer.push_back(0);
  CHECK(Envelope::open(kKey, longer, opened) != Envelope::Verdict::kGood);
  SipKey other = kKey;
  other[15] ^= 1;
  CHECK(Envelope::open(other, datagram, opened) == Envelope::Verdict::kForged);
}

TEST_CASE("messages: any bytes at all are survived") {
  std::mt19937 random(1);
  for (int i = 0; i < 20'000; ++i) {
    std::vector<uint8_t> datagram(random() % (KV_DATAGRAM_BYTES_MAX + 1));
    for (uint8_t& byte : datagram) byte = uint8_t(random());
    Message opened;
    REQUIRE(Envelope::open(kKey, datagram, opened) != Envelope::Verdict::kGood);
  }
}

TEST_CASE("messages: the window lets each sequence through once, in any order within its reach") {
  std::mt19937 random(2);
  for (int round = 0; round < 200; ++round) {
    CAPTURE(round);
    ReplayWindow window;
    std::set<uint64_t> admitted;
    uint64_t highest = 0;
    CHECK(!window.admit(0));
    for (int i = 0; i < 500; ++i) {
      const uint64_t sequence =
          1 + highest + random() % 8 - std::min<uint64_t>(highest, random() % 80);
      const bool fresh = !admitted.contains(sequence);
      const bool in_reach = sequence + ReplayWindow::kReach > highest;
      REQUIRE(window.admit(sequence) == (fresh && in_reach));
      if (fresh && in_reach) admitted.insert(sequence);
      highest = std::max(highest, sequence);
    }
  }
  ReplayWindow window;
  CHECK(window.admit(1));
  CHECK(window.admit(uint64_t{1} << 60));
  CHECK(!window.admit(1));
  CHECK(!window.admit(uint64_t{1} << 60));
}

}  // namespace kvstore::test
