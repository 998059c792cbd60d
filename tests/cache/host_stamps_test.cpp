// Stamps that the clients of a host share.

#include "cache/host_stamps.hpp"

#include <doctest/doctest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cinttypes>
#include <cstdio>
#include <fstream>
#include <string>
#include <thread>

#include "base/random.hpp"
#include "tests/cache/fixture.hpp"

namespace kvstore::test {
namespace {

constexpr uint64_t kHash = 0x1234567890abcdef;

std::string file_of(uint64_t incarnation) {
  char name[80];
  std::snprintf(name, sizeof name, "/dev/shm/kvstore-stamps-3-%u-%016" PRIx64, ::geteuid(),
                incarnation);
  return name;
}

bool there(const std::string& path) {
  struct stat facts;
  return ::stat(path.c_str(), &facts) == 0;
}

// An incarnation that no other test has.
uint64_t some_incarnation() {
  return thread_random() | 1;
}

}  // namespace

TEST_CASE("host stamps: what one renews is not current for another") {
  const uint64_t incarnation = some_incarnation();
  const auto one = HostStamps::open(incarnation);
  const auto other = HostStamps::open(incarnation);
  const auto apart = HostStamps::open(incarnation + 2);
  REQUIRE(one != nullptr);
  REQUIRE(other != nullptr);
  REQUIRE(apart != nullptr);
  const Stamp before = one->stamp_of(kHash);
  const Stamp elsewhere = apart->stamp_of(kHash);
  CHECK(before.is_current());
  const Stamp renewed = other->renew(kHash, {17, 4});
  CHECK(!before.is_current());
  CHECK(renewed.is_current());
  CHECK(one->stamp_of(kHash).value == renewed.value);
  CHECK(elsewhere.is_current());
  Successor successor;
  REQUIRE(before.read_successor(kHash, successor));
  CHECK(successor.slot == 17);
  CHECK(successor.value_bytes == 4);
  CHECK(!before.read_successor(kHash + 1, successor));
  CHECK(Stamp{}.is_current());
}

TEST_CASE("host stamps: clients are known by their registration, to those of their host") {
  const uint64_t incarnation = some_incarnation();
  const auto one = HostStamps::open(incarnation);
  const auto other = HostStamps::open(incarnation);
  const auto apart = HostStamps::open(incarnation + 2);
  REQUIRE((one && other && apart));
  one->join(5);
  CHECK(other->has(5));
  CHECK(!other->has(6));
  CHECK(!other->has(5 + layout::kClientsMax));
  CHECK(!apart->has(5));
}

TEST_CASE("host stamps: a file goes with its last user, those of killed ones with the next") {
  const uint64_t incarnation = some_incarnation();
  const std::string path = file_of(incarnation);
  auto one = HostStamps::open(incarnation);
  auto other = HostStamps::open(incarnation);
  REQUIRE((one && other));
  CHECK(there(path));
  one.reset();
  CHECK(there(path));
  other.reset();
  CHECK(!there(path));

  const std::string left = file_of(incarnation + 2);
  std::ofstream(left) << "a client was killed";
  REQUIRE(::chmod(left.c_str(), 0600) == 0);
  CHECK(HostStamps::open(incarnation) != nullptr);
  CHECK(!there(left));
}

TEST_CASE("host stamps: a file that others may write to is not used") {
  const uint64_t incarnation = some_incarnation();
  const std::string path = file_of(incarnation);
  std::ofstream(path) << "whose?";
  REQUIRE(::chmod(path.c_str(), 0666) == 0);
  CHECK(HostStamps::open(incarnation) == nullptr);
  CHECK(there(path));
  REQUIRE(::unlink(path.c_str()) == 0);
  REQUIRE(::symlink("/dev/null", path.c_str()) == 0);
  CHECK(HostStamps::open(incarnation) == nullptr);
  REQUIRE(::unlink(path.c_str()) == 0);
}

TEST_CASE("host stamps: a writer ends the copies of its host without a message") {
  StoreNode node(layout::kRegionBytesMin);
  const auto stamps = std::make_shared<HostStamps>();
  CopyingClient reader(node, 4 << 20, 2, stamps), writer(node, 4 << 20, 2, stamps);
  reader.fall_silent();
  REQUIRE(writer.put("key", "first").status == Status::kOk);
  REQUIRE(reader.settle("key"));
  REQUIRE(writer.put("key", "second").status == Status::kOk);
  CHECK(reader.get("key").value == "second");
  CHECK(reader.stats().cache_invalidated == 1);
  CHECK(writer.stats().invalidations_spared == 1);
  CHECK(writer.stats().invalidations_sent == 0);
  CHECK(writer.stats().leases_waited == 0);
  REQUIRE(reader.settle("key"));
  REQUIRE(writer.remove("key").status == Status::kOk);
  CHECK(reader.get("key").status == Status::kAbsent);
}

TEST_CASE("host stamps: the client of another host is told") {
  StoreNode node(layout::kRegionBytesMin);
  const auto stamps = std::make_shared<HostStamps>();
  CopyingClient near(node, 4 << 20, 2, stamps), writer(node, 4 << 20, 2, stamps);
  CopyingClient far(node, 4 << 20, 2, std::make_shared<HostStamps>());
  REQUIRE(writer.put("key", "first").status == Status::kOk);
  REQUIRE(near.settle("key"));
  REQUIRE(far.settle("key"));
  REQUIRE(writer.put("key", "second").status == Status::kOk);
  CHECK(near.get("key").value == "second");
  CHECK(far.get("key").value == "second");
  CHECK(writer.stats().invalidations_spared == 1);
  CHECK(writer.stats().invalidations_sent >= 1);
  CHECK(writer.stats().leases_waited == 0);
  REQUIRE(near.settle("key"));
  REQUIRE(far.put("key", "third").status == Status::kOk);
  CHECK(near.get("key").value == "third");
}

TEST_CASE("host stamps: what a writer has returned from no thread of the host reads older") {
  StoreNode node(layout::kRegionBytesMin);
  const auto stamps = std::make_shared<HostStamps>();
  CopyingClient reader(node, 4 << 20, 2, stamps), writer(node, 4 << 20, 2, stamps);
  constexpr unsigned kWrites = 300;
  REQUIRE(writer.put("key", "0").status == Status::kOk);
  std::atomic<unsigned> written{0};
  std::atomic<uint64_t> reads{0}, stale{0};
  std::thread reading([&] {
    while (written.load() < kWrites) {
      const unsigned least = written.load();
      const Outcome seen = reader.get("key");
      if (seen.status != Status::kOk || std::stoul(seen.value) < least) ++stale;
      ++reads;
    }
  });
  while (reads.load() == 0) std::this_thread::yield();
  unsigned failed = 0;
  for (unsigned i = 1; i <= kWrites; ++i) {
    if (writer.put("key", std::to_string(i)).status != Status::kOk) ++failed;
    written.store(i);
    if (i % 8 == 0) CHECK(reader.settle("key"));
  }
  reading.join();
  CHECK(failed == 0);
  CHECK(stale == 0);
  CHECK(reader.stats().cache_hits > 0);
  CHECK(writer.stats().invalidations_spared > 0);
}

TEST_CASE("host stamps: through the file, a put of what only this host has copies of: one trip") {
  StoreNode node(layout::kRegionBytesMin);
  const uint64_t incarnation = some_incarnation();
  CopyingClient reader(node, 4 << 20, 2, HostStamps::open(incarnation));
  CopyingClient writer(node, 4 << 20, 2, HostStamps::open(incarnation));
  uint64_t trips = 0;
  for (const std::string value : {"first", "second", "third"}) {
    trips = writer.stats().round_trips;
    REQUIRE(writer.put("key", value).status == Status::kOk);
    trips = writer.stats().round_trips - trips;
    CHECK(reader.get("key").value == value);
    REQUIRE(writer.settle("key"));
    REQUIRE(reader.settle("key"));
  }
  CHECK(trips == 1);
  CHECK(writer.stats().invalidations_sent == 0);
  CHECK(writer.stats().writes_guarded == 2);
}

}  // namespace kvstore::test
