// Regular nodes: a write is seen before the copies of what it replaces have ended, and returns when
// they have.

#include <doctest/doctest.h>

#include <thread>

#include "tests/cache/fixture.hpp"

namespace kvstore::test {
namespace {

// What a put takes once its client has met everybody. `conditional`: on the version that is there.
uint64_t trips_of_a_put(uint32_t consistency, bool conditional) {
  StoreNode node(layout::kRegionBytesMin, KV_EVICTION_NONE, consistency);
  CopyingClient reader(node), writer(node);
  uint64_t trips = 0;
  for (const std::string value : {"first", "second", "third"}) {
    const uint64_t version = writer.get("key").version;
    const uint32_t flags = conditional && version != 0 ? uint32_t{KV_IF_VERSION} : 0;
    trips = writer.stats().round_trips;
    REQUIRE(writer.put("key", value, flags, version).status == Status::kOk);
    trips = writer.stats().round_trips - trips;
    CHECK(reader.get("key").value == value);
    REQUIRE(writer.settle("key"));
    REQUIRE(reader.settle("key"));
  }
  // A busy reader may have been asked again.
  CHECK(writer.stats().invalidations_sent >= 2);
  return trips;
}

}  // namespace

TEST_CASE("regular: a write whose condition is still to be seen takes a round trip less") {
  CHECK(trips_of_a_put(KV_LINEARIZABLE, true) == 3);
  CHECK(trips_of_a_put(KV_REGULAR, true) == 2);
}

TEST_CASE("regular: a write that can't fail waits for its messages and for the node at once") {
  CHECK(trips_of_a_put(KV_LINEARIZABLE, false) == 2);
  CHECK(trips_of_a_put(KV_REGULAR, false) == 2);
}

TEST_CASE("regular: while a write waits for an owner others see it, and the owner does not") {
  StoreNode node(layout::kRegionBytesMin, KV_EVICTION_NONE, KV_REGULAR);
  CopyingClient reader(node), writer(node), other(node);
  REQUIRE(writer.put("key", "first").status == Status::kOk);
  REQUIRE(reader.settle("key"));
  reader.fall_silent();
  std::atomic<bool> over{false};
  std::thread writing([&] {
    CHECK(writer.put("key", "second").status == Status::kOk);
    over.store(true);
  });
  bool seen = false;
  while (!seen && !over.load()) {
    seen = other.get("key", KV_UNCACHED).value == "second" && !over.load();
  }
  CHECK(seen);
  writing.join();
  CHECK(reader.get("key").value == "second");
  CHECK(writer.stats().leases_waited == 1);
}

TEST_CASE("regular: a write that gives up is applied, and its heartbeat ends the copies") {
  StoreNode node(layout::kRegionBytesMin, KV_EVICTION_NONE, KV_REGULAR);
  CopyingClient reader(node), writer(node);
  REQUIRE(writer.put("key", "first").status == Status::kOk);
  REQUIRE(reader.settle("key"));
  writer.fall_silent();
  const std::string key = "key";
  kv_call call = StoreClient::call_for(KV_PUT, key);
  call.value = "second";
  call.value_bytes = 6;
  // On a busy machine the time may be over before there is anything to give up.
  Status status = Status::kDeadlineExceeded;
  for (int i = 0; i < 100 && status == Status::kDeadlineExceeded; ++i) {
    status = writer.run(call, 30 * kMillisecond).status;
  }
  CHECK(status == Status::kOutcomeUnknown);
  std::string value;
  for (int i = 0; i < 1000 && value != "second"; ++i) {
    value = reader.get("key").value;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  CHECK(value == "second");
  CHECK(reader.stats().cache_revoked == 1);
}

TEST_CASE("regular: who leaves pays what it owes, or says that it has not") {
  StoreNode node(layout::kRegionBytesMin, KV_EVICTION_NONE, KV_REGULAR);
  CopyingClient reader(node);
  {
    CopyingClient pays(node);
    pays.attachment().coherence.owe(uint64_t{1} << reader.attachment().coherence.group());
    pays.client.close();
    CHECK(pays.client.members_owed() == 0);
  }
  while (reader.stats().cache_revoked == 0) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  CopyingClient cut_off(node);
  cut_off.attachment().state.store(Attachment::State::kDown);
  cut_off.attachment().coherence.owe(1);
  cut_off.client.close();
  CHECK(cut_off.client.members_owed() == 1);
}

TEST_CASE("regular: a client's farewell leaves the others their copies") {
  StoreNode node(layout::kRegionBytesMin, KV_EVICTION_NONE, KV_REGULAR);
  CopyingClient reader(node);
  REQUIRE(reader.put("key", "first").status == Status::kOk);
  REQUIRE(reader.settle("key"));
  const uint32_t live = node.stats().clients_live;
  {
    CopyingClient leaves(node);
  }
  while (node.stats().clients_live > live) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  // The node has told of it; now for some heartbeats.
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  CHECK(reader.stats().cache_entries == 1);
}

}  // namespace kvstore::test
