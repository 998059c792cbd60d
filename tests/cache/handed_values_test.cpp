// Values that the clients of a host hand to each other.

#include "cache/handed_values.hpp"

#include <doctest/doctest.h>

#include <atomic>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/crc32c.hpp"
#include "tests/cache/fixture.hpp"

namespace kvstore::test {
namespace {

constexpr uint64_t kHash = 0x1234567890abcdef;
constexpr uint64_t kKiB = 1024;

HandedValue described(const std::string& value, uint64_t version = 1) {
  return {.version = version,
          .value_bytes = value.size(),
          .codec = 3,
          .value_crc = crc32c(0, value.data(), value.size()),
          .value = value.data()};
}

// As a reader takes it; empty: nothing that verifies.
std::string taken(const HandedValues& values, uint64_t hash, uint64_t stamp) {
  HandedValue found;
  if (!values.find(hash, stamp, found)) return {};
  std::string value(found.value_bytes, 0);
  const uint32_t crc = crc32c_copy(0, value.data(), found.value, found.value_bytes);
  return crc == found.value_crc ? value : std::string{};
}

// Until there is a copy, and so often that copies of the key pay whatever one costs.
void read_often(CopyingClient& client, const std::string& key) {
  REQUIRE(client.settle(key));
  for (int i = 0; i < 1000; ++i) client.get(key);
}

// Two clients of one host that have copies of the same key.
struct Pair {
  StoreNode node{layout::kRegionBytesMin};
  std::shared_ptr<HostStamps> stamps = std::make_shared<HostStamps>();
  CopyingClient reader{node, 4 << 20, 2, stamps};
  CopyingClient writer{node, 4 << 20, 2, stamps};

  Pair() {
    REQUIRE(writer.put("key", "first").status == Status::kOk);
    read_often(writer, "key");
    read_often(reader, "key");
  }
};

}  // namespace

TEST_CASE("handed values: found under their hash and stamp, and no other") {
  const auto values = std::make_unique<HandedValues>();
  CHECK(taken(*values, kHash, 0).empty());
  values->hand(kHash, 7, described("first", 21));
  CHECK(taken(*values, kHash, 7) == "first");
  CHECK(taken(*values, kHash, 8).empty());
  CHECK(taken(*values, kHash + 1, 7).empty());
  HandedValue found;
  REQUIRE(values->find(kHash, 7, found));
  CHECK(found.version == 21);
  CHECK(found.codec == 3);
  values->hand(kHash, 8, described("second"));
  CHECK(taken(*values, kHash, 7).empty());
  CHECK(taken(*values, kHash, 8) == "second");
}

TEST_CASE(
    "handed values: the largest is, a larger one is not, and the newest displace the oldest") {
  const auto values = std::make_unique<HandedValues>();
  const std::string large(HandedValues::kValueBytesMax, 'l');
  values->hand(kHash, 1, described(large));
  CHECK(taken(*values, kHash, 1) == large);
  values->hand(kHash, 2, described(large + "r"));
  CHECK(taken(*values, kHash, 2).empty());
  const std::string value(32 * kKiB, 'v');
  unsigned found = 0;
  for (uint64_t i = 1; i <= 1000; ++i) {
    const uint64_t hash = i * 0x9e3779b97f4a7c15ull;
    values->hand(hash, i, described(value));
    found += taken(*values, hash, i) == value;
  }
  // All but those that would have gone over the end of the ring.
  CHECK(found > 980);
  CHECK(taken(*values, kHash, 1).empty());
}

TEST_CASE("handed values: nothing that was damaged is believed") {
  const auto values = std::make_unique<HandedValues>();
  const std::string value(100, 'v');
  values->hand(kHash, 1, described(value));
  HandedValue found;
  REQUIRE(values->find(kHash, 1, found));
  // A header and the value behind it.
  uint8_t* const at = const_cast<uint8_t*>(static_cast<const uint8_t*>(found.value)) - 64;
  unsigned believed = 0;
  for (unsigned i = 0; i < 64 + value.size(); ++i) {
    for (unsigned bit = 0; bit < 8; ++bit) {
      at[i] ^= uint8_t(1u << bit);
      believed += !taken(*values, kHash, 1).empty();
      at[i] ^= uint8_t(1u << bit);
    }
  }
  CHECK(believed == 0);
  CHECK(taken(*values, kHash, 1) == value);
}

TEST_CASE("handed values: what is displaced while it is read does not verify") {
  const auto values = std::make_unique<HandedValues>();
  constexpr unsigned kWriters = 2;
  constexpr uint64_t kTimes = 1500;
  std::atomic<unsigned> writing{kWriters};
  std::vector<std::thread> writers;
  for (unsigned writer = 0; writer < kWriters; ++writer) {
    writers.emplace_back([&, writer] {
      for (uint64_t i = 1; i <= kTimes; ++i) {
        const std::string value(60 * kKiB + i % 7, char('a' + (i * kWriters + writer) % 26));
        values->hand(kHash, 1, described(value));
      }
      --writing;
    });
  }
  uint64_t read = 0, mixed = 0;
  while (writing.load() > 0) {
    const std::string value = taken(*values, kHash, 1);
    if (value.empty()) continue;
    ++read;
    mixed += value.find_first_not_of(value[0]) != std::string::npos;
  }
  for (std::thread& writer : writers) writer.join();
  CHECK(read > 0);
  CHECK(mixed == 0);
}

TEST_CASE("handed values: what a client of the host has written is read without a verb") {
  Pair host;
  CopyingClient& reader = host.reader;
  CopyingClient& writer = host.writer;
  const Outcome written = writer.put("key", "second");
  REQUIRE(written.status == Status::kOk);
  const kv_client_stats before = reader.stats();
  const uint64_t verbs = reader.verbs();
  const Outcome seen = reader.get("key");
  CHECK(seen.value == "second");
  CHECK(seen.version == written.version);
  CHECK(reader.verbs() == verbs);
  CHECK(reader.stats().cache_handed == 1);
  CHECK(reader.stats().cache_hits == before.cache_hits + 1);
  CHECK(reader.stats().operations == before.operations + 1);
}

TEST_CASE("handed values: to and fro, and each put knows the slot that the other one has left") {
  Pair host;
  CopyingClient& one = host.writer;
  CopyingClient& other = host.reader;
  uint64_t trips = 0;
  for (int i = 1; i <= 6; ++i) {
    CopyingClient& writer = i % 2 == 0 ? one : other;
    CopyingClient& reader = i % 2 == 0 ? other : one;
    trips = writer.stats().round_trips;
    REQUIRE(writer.put("key", std::to_string(i)).status == Status::kOk);
    trips = writer.stats().round_trips - trips;
    CHECK(reader.get("key").value == std::to_string(i));
    read_often(reader, "key");
    read_often(writer, "key");
  }
  CHECK(one.stats().cache_handed + other.stats().cache_handed == 6);
  // With the first ones the slot has become hosted.
  CHECK(trips == 1);
}

TEST_CASE("handed values: a copy that was made for one client of the host is for all of them") {
  StoreNode node(layout::kRegionBytesMin);
  const auto stamps = std::make_shared<HostStamps>();
  CopyingClient one(node, 4 << 20, 2, stamps), other(node, 4 << 20, 2, stamps);
  CopyingClient writer(node, 4 << 20, 2, stamps);
  REQUIRE(writer.put("key", "first").status == Status::kOk);
  read_often(one, "key");
  read_often(other, "key");
  // It has no copy to keep, so it hands nothing over.
  REQUIRE(writer.put("key", "second").status == Status::kOk);
  read_often(one, "key");
  CHECK(one.stats().cache_handed == 0);
  const uint64_t verbs = other.verbs();
  CHECK(other.get("key").value == "second");
  CHECK(other.verbs() == verbs);
  CHECK(other.stats().cache_handed == 1);
}

TEST_CASE("handed values: who was asked by another host takes none from before") {
  Pair host;
  CopyingClient& near = host.reader;
  CopyingClient far(host.node, 4 << 20, 2, std::make_shared<HostStamps>());
  REQUIRE(host.writer.put("key", "second").status == Status::kOk);
  REQUIRE(far.put("key", "third").status == Status::kOk);
  CHECK(near.get("key").value == "third");
  CHECK(near.stats().cache_handed == 0);
  CHECK(near.stats().invalidations_received >= 1);
}

TEST_CASE("handed values: a read that is to go to the node does") {
  Pair host;
  CopyingClient& reader = host.reader;
  CopyingClient& writer = host.writer;
  REQUIRE(writer.put("key", "second").status == Status::kOk);
  const uint64_t verbs = reader.verbs();
  CHECK(reader.get("key", KV_UNCACHED).value == "second");
  CHECK(reader.verbs() > verbs);
  CHECK(reader.stats().cache_handed == 0);
}

}  // namespace kvstore::test
