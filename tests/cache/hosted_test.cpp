// Slots of which only clients of one host have copies: a put there takes one round trip.

#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <string>
#include <thread>

#include "tests/cache/fixture.hpp"

namespace kvstore::test {
namespace {

constexpr uint64_t kHash = 0x1234567890abcdef;

// A host's client that has a copy of a value of its own, and one that has read it too.
struct Host {
  std::shared_ptr<HostStamps> stamps = std::make_shared<HostStamps>();
  CopyingClient writer, reader;

  explicit Host(StoreNode& node)
      : writer(node, 4 << 20, 2, stamps), reader(node, 4 << 20, 2, stamps) {}

  void read() {
    REQUIRE(writer.settle("key"));
    REQUIRE(reader.settle("key"));
  }
};

struct PutSeen {
  Outcome outcome;
  uint64_t trips = 0;
  uint64_t at_once = 0;
  uint64_t sent = 0;
};

// What `put` does, as its client's figures show it.
template <class Put>
PutSeen watch(CopyingClient& client, Put&& put) {
  const kv_client_stats before = client.stats();
  PutSeen seen{.outcome = put()};
  const kv_client_stats after = client.stats();
  seen.trips = after.round_trips - before.round_trips;
  seen.at_once = after.writes_at_once - before.writes_at_once;
  seen.sent = after.invalidations_sent - before.invalidations_sent;
  return seen;
}

}  // namespace

TEST_CASE("hosted: a stamp is open until all have ended who opened it") {
  HostStamps stamps;
  const Stamp before = stamps.stamp_of(kHash);
  const Stamp one = stamps.begin_write(kHash, {17, 4});
  CHECK(!before.is_current());
  CHECK(stamps.stamp_of(kHash).is_open());
  SUBCASE("alone") {
    const Stamp after = stamps.end_write(kHash, one);
    CHECK(after.is_current());
    CHECK(!after.is_open());
    CHECK(after.value != before.value);
  }
  SUBCASE("beside another that opens it") {
    const Stamp other = stamps.begin_write(kHash, {18, 4});
    CHECK(!stamps.end_write(kHash, one).is_current());
    CHECK(stamps.stamp_of(kHash).is_open());
    CHECK(!stamps.end_write(kHash, other).is_current());
    CHECK(!stamps.stamp_of(kHash).is_open());
  }
  SUBCASE("beside one that renews it") {
    const Stamp renewed = stamps.renew(kHash, {18, 4});
    CHECK(renewed.is_open());
    CHECK(!stamps.end_write(kHash, one).is_current());
    CHECK(!renewed.is_current());
    CHECK(!stamps.stamp_of(kHash).is_open());
  }
}

TEST_CASE("hosted: the noted version is the last one, until it is found wrong") {
  HostStamps stamps;
  CHECK(stamps.hosted_version(kHash) == 0);
  stamps.note_hosted(kHash, 5);
  stamps.note_hosted(kHash, 6);
  stamps.forget_hosted(kHash, 5);
  CHECK(stamps.hosted_version(kHash) == 6);
  stamps.forget_hosted(kHash, 6);
  CHECK(stamps.hosted_version(kHash) == 0);
}

TEST_CASE(
    "hosted: a put takes one round trip, and two verbs, whoever of the host made the copies") {
  StoreNode node(layout::kRegionBytesMin);
  Host host(node);
  // With the first one a client takes memory for those to come.
  REQUIRE(host.reader.put("key", "0").status == Status::kOk);
  REQUIRE(host.writer.put("key", "0").status == Status::kOk);
  host.read();
  for (int i = 1; i <= 8; ++i) {
    CopyingClient& writer = i % 2 == 0 ? host.writer : host.reader;
    CopyingClient& reader = i % 2 == 0 ? host.reader : host.writer;
    const uint64_t verbs = writer.verbs();
    const PutSeen seen = watch(writer, [&] { return writer.put("key", std::to_string(i)); });
    CHECK(seen.outcome.status == Status::kOk);
    CHECK(seen.trips == 1);
    CHECK(seen.at_once == 1);
    CHECK(writer.verbs() - verbs == 2);
    CHECK(reader.get("key").value == std::to_string(i));
    CHECK(reader.get("key", KV_UNCACHED).version == seen.outcome.version);
    host.read();
  }
  CHECK(host.writer.stats().invalidations_sent + host.reader.stats().invalidations_sent == 0);
}

TEST_CASE("hosted: a copy on another host makes writers ask") {
  StoreNode node(layout::kRegionBytesMin);
  Host host(node), far(node);
  REQUIRE(host.writer.put("key", "first").status == Status::kOk);
  host.read();
  REQUIRE(far.reader.settle("key"));
  const PutSeen second = watch(host.writer, [&] { return host.writer.put("key", "second"); });
  CHECK(second.outcome.status == Status::kOk);
  CHECK(second.at_once == 0);
  CHECK(second.sent >= 1);
  CHECK(far.reader.get("key").value == "second");
  CHECK(host.reader.get("key").value == "second");
}

TEST_CASE("hosted: what may be refused, or has a fence, takes the longer way") {
  StoreNode node(layout::kRegionBytesMin);
  Host host(node);
  const uint64_t version = host.writer.put("key", "first").version;
  host.read();
  SUBCASE("a condition") {
    const PutSeen refused =
        watch(host.writer, [&] { return host.writer.put("key", "x", KV_IF_ABSENT); });
    CHECK(refused.outcome.status == Status::kConditionFailed);
    CHECK(host.reader.get("key").value == "first");
    const PutSeen held =
        watch(host.writer, [&] { return host.writer.put("key", "y", KV_IF_VERSION, version); });
    CHECK(held.outcome.status == Status::kOk);
    CHECK(refused.at_once + held.at_once == 0);
    CHECK(host.reader.get("key").value == "y");
  }
  SUBCASE("a long value") {
    const std::string large(20'000, 'l');
    const PutSeen seen = watch(host.writer, [&] { return host.writer.put("key", large); });
    CHECK(seen.outcome.status == Status::kOk);
    CHECK(seen.at_once == 0);
    CHECK(host.reader.get("key").value == large);
  }
  SUBCASE("a fence, and a put after it") {
    const std::string key = "key";
    kv_call call = StoreClient::call_for(KV_PUT, key);
    call.value = "fenced";
    call.value_bytes = 6;
    call.flags = KV_WITH_FENCE;
    call.fence = {layout::FenceLock::make(7, 1).word, 9};
    const PutSeen fenced = watch(host.writer, [&] { return host.writer.run(call); });
    CHECK(fenced.outcome.status == Status::kOk);
    CHECK(fenced.at_once == 0);
    CHECK(host.reader.get("key").value == "fenced");
    host.read();
    const PutSeen after = watch(host.writer, [&] { return host.writer.put("key", "carries"); });
    CHECK(after.outcome.status == Status::kOk);
    CHECK(after.at_once == 0);
    call.fence.token = 8;
    CHECK(host.writer.run(call).status == Status::kFencedWrite);
    CHECK(host.reader.get("key").value == "carries");
  }
}

TEST_CASE("hosted: the copy that a fenced put keeps does not let the next put past the fence") {
  StoreNode node(layout::kRegionBytesMin);
  Host host(node);
  REQUIRE(host.writer.put("key", "first").status == Status::kOk);
  host.read();
  // So often that a copy of what is written pays, whatever it costs.
  for (int i = 0; i < 1000; ++i) host.writer.get("key");
  const std::string key = "key";
  kv_call call = StoreClient::call_for(KV_PUT, key);
  call.value = "fenced";
  call.value_bytes = 6;
  call.flags = KV_WITH_FENCE;
  call.fence = {layout::FenceLock::make(7, 1).word, 9};
  REQUIRE(host.writer.run(call).status == Status::kOk);
  const uint64_t verbs = host.writer.verbs();
  REQUIRE(host.writer.get("key").value == "fenced");
  REQUIRE(host.writer.verbs() == verbs);
  const PutSeen after = watch(host.writer, [&] { return host.writer.put("key", "carries"); });
  CHECK(after.outcome.status == Status::kOk);
  CHECK(after.at_once == 0);
  call.fence.token = 8;
  CHECK(host.writer.run(call).status == Status::kFencedWrite);
}

TEST_CASE("hosted: a value that ends in time is written at once, and not copied") {
  StoreNode node(layout::kRegionBytesMin);
  Host host(node);
  REQUIRE(host.writer.put("key", "first").status == Status::kOk);
  host.read();
  const PutSeen seen =
      watch(host.writer, [&] { return host.writer.put("key", "mortal", 0, 0, 60'000); });
  CHECK(seen.outcome.status == Status::kOk);
  CHECK(seen.at_once == 1);
  const uint64_t verbs = host.reader.verbs();
  for (int i = 0; i < 20; ++i) CHECK(host.reader.get("key").value == "mortal");
  CHECK(host.reader.verbs() > verbs);
}

TEST_CASE("hosted: what another host has replaced, or deleted, is not overwritten unseen") {
  StoreNode node(layout::kRegionBytesMin);
  Host host(node), far(node);
  REQUIRE(host.writer.put("key", "first").status == Status::kOk);
  host.read();
  SUBCASE("replaced") {
    REQUIRE(far.writer.put("key", "second").status == Status::kOk);
    CHECK(host.reader.get("key").value == "second");
  }
  SUBCASE("deleted") {
    REQUIRE(far.writer.remove("key").status == Status::kOk);
    CHECK(host.reader.get("key").status == Status::kAbsent);
  }
  const PutSeen seen = watch(host.writer, [&] { return host.writer.put("key", "third"); });
  CHECK(seen.outcome.status == Status::kOk);
  CHECK(seen.at_once == 0);
  CHECK(far.reader.get("key").value == "third");
  CHECK(host.reader.get("key").value == "third");
}

TEST_CASE("hosted: readers of both hosts see every put that has returned, and none go back") {
  StoreNode node(layout::kRegionBytesMin);
  Host host(node), far(node);
  constexpr unsigned kWrites = 400;
  REQUIRE(host.writer.put("key", "0").status == Status::kOk);
  std::atomic<unsigned> written{0};
  std::atomic<unsigned> stale{0};
  std::thread near_by([&] {
    unsigned last = 0;
    while (written.load() < kWrites) {
      const unsigned least = std::max(written.load(), last);
      const Outcome seen = host.reader.get("key");
      last = seen.status == Status::kOk ? unsigned(std::stoul(seen.value)) : 0;
      if (last < least) ++stale;
    }
  });
  unsigned failed = 0;
  for (unsigned i = 1; i <= kWrites; ++i) {
    const std::string value = std::to_string(i);
    if (host.writer.put("key", value).status != Status::kOk) ++failed;
    written.store(i);
    // In between slots are hosted again.
    if (i % 16 == 0) CHECK(far.reader.settle("key"));
    if (i % 16 < 2 && far.reader.get("key").value != value) ++stale;
    CHECK(host.writer.settle("key"));
  }
  near_by.join();
  CHECK(failed == 0);
  CHECK(stale == 0);
  CHECK(host.writer.stats().writes_at_once > 0);
  CHECK(host.writer.stats().invalidations_sent > 0);
}

}  // namespace kvstore::test
