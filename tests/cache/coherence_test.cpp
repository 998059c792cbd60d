// Copies among clients of one node, on real threads: writes end them before they show.

#include <doctest/doctest.h>

#include <atomic>
#include <thread>

#include "tests/cache/fixture.hpp"

namespace kvstore::test {

TEST_CASE("a copy serves reads without a verb, and a write of another client ends it") {
  StoreNode node(layout::kRegionBytesMin);
  CopyingClient reader(node), writer(node);
  REQUIRE(writer.put("key", "first").status == Status::kOk);
  REQUIRE(reader.settle("key"));
  const uint64_t verbs = reader.verbs();
  for (int i = 0; i < 100; ++i) CHECK(reader.get("key").value == "first");
  CHECK(reader.contains("key").status == Status::kOk);
  CHECK(reader.verbs() == verbs);
  CHECK(reader.record_of("key").owners() == uint64_t{1} << (reader.registration() % 48));

  CHECK(reader.get("key", KV_UNCACHED).value == "first");
  CHECK(reader.verbs() > verbs);

  const Outcome second = writer.put("key", "second");
  REQUIRE(second.status == Status::kOk);
  const Outcome seen = reader.get("key");
  CHECK(seen.value == "second");
  CHECK(seen.version == second.version);
  CHECK(reader.stats().cache_invalidated == 1);
  CHECK(writer.stats().leases_waited == 0);
  REQUIRE(reader.settle("key"));
  REQUIRE(writer.remove("key").status == Status::kOk);
  CHECK(reader.get("key").status == Status::kAbsent);
  CHECK(reader.contains("key").status == Status::kAbsent);
}

TEST_CASE("who reads a key stays registered, who has ceased to does not") {
  StoreNode node(layout::kRegionBytesMin);
  CopyingClient one(node), two(node), writer(node, 0);
  const auto bit_of = [](const CopyingClient& client) {
    return uint64_t{1} << (client.registration() % 48);
  };
  REQUIRE(writer.put("key", "0").status == Status::kOk);
  REQUIRE(one.settle("key"));
  REQUIRE(two.settle("key"));
  CHECK(one.record_of("key").owners() == (bit_of(one) | bit_of(two)));
  REQUIRE(writer.put("key", "1").status == Status::kOk);
  CHECK(one.record_of("key").owners() == (bit_of(one) | bit_of(two)));
  REQUIRE(two.settle("key"));
  REQUIRE(writer.put("key", "2").status == Status::kOk);
  CHECK(one.record_of("key").owners() == bit_of(two));
  CHECK(writer.stats().leases_waited == 0);
}

TEST_CASE("a client's own write ends its own copy") {
  StoreNode node(layout::kRegionBytesMin);
  CopyingClient client(node);
  REQUIRE(client.put("key", "first").status == Status::kOk);
  REQUIRE(client.settle("key"));
  REQUIRE(client.put("key", "second").status == Status::kOk);
  CHECK(client.get("key").value == "second");
  CHECK(client.stats().cache_overwritten == 1);
  CHECK(client.stats().invalidations_sent == 0);
}

TEST_CASE("a client whose copy was worth having keeps one of what it writes") {
  StoreNode node(layout::kRegionBytesMin);
  CopyingClient client(node), other(node);
  REQUIRE(client.put("key", "first").status == Status::kOk);
  REQUIRE(client.settle("key"));
  for (int i = 0; i < 1000; ++i) client.get("key");
  const Outcome second = client.put("key", "the second");
  REQUIRE(second.status == Status::kOk);
  const uint64_t verbs = client.verbs();
  const Outcome seen = client.get("key");
  CHECK(seen.value == "the second");
  CHECK(seen.version == second.version);
  CHECK(client.verbs() == verbs);

  // It is registered as any other, and ends as any other.
  REQUIRE(other.put("key", "third").status == Status::kOk);
  CHECK(client.stats().cache_invalidated == 1);
  CHECK(client.get("key").value == "third");
  // Not so what is mortal, and what is not there any more.
  REQUIRE(client.settle("key"));
  for (int i = 0; i < 1000; ++i) client.get("key");
  REQUIRE(client.put("key", "mortal", 0, 0, 60'000).status == Status::kOk);
  CHECK(!client.settle("key"));
  REQUIRE(client.remove("key").status == Status::kOk);
  CHECK(client.get("key").status == Status::kAbsent);
  CHECK(client.stats().leases_waited + other.stats().leases_waited == 0);
}

TEST_CASE("a writer's own copy is of what it wrote, whatever becomes of the caller's buffer") {
  StoreNode node(layout::kRegionBytesMin);
  CopyingClient client(node), other(node);
  REQUIRE(client.put("key", "first").status == Status::kOk);
  REQUIRE(client.settle("key"));
  for (int i = 0; i < 1000; ++i) client.get("key");
  REQUIRE(other.settle("key"));
  other.fall_silent();
  std::string buffer = "the second";
  std::thread writer([&] { CHECK(client.put("key", buffer).status == Status::kOk); });
  // It waits for a lease meanwhile: what it is to write has left the buffer.
  while (client.stats().leases_waited == 0) std::this_thread::yield();
  const std::string other_bytes = "not at all";
  REQUIRE(other_bytes.size() == buffer.size());
  for (size_t i = 0; i < buffer.size(); ++i) {
    // The client may read it at the same time, in units as small as a byte.
    std::atomic_ref<char>(buffer[i]).store(other_bytes[i], std::memory_order_relaxed);
  }
  writer.join();
  const uint64_t verbs = client.verbs();
  CHECK(client.get("key").value == "the second");
  CHECK(client.verbs() == verbs);
}

TEST_CASE("who ends a copy tells where its successor is") {
  StoreNode node(layout::kRegionBytesMin);
  CopyingClient reader(node), writer(node, 0);
  REQUIRE(writer.put("key", "first").status == Status::kOk);
  REQUIRE(reader.settle("key"));
  REQUIRE(writer.put("key", "of another length").status == Status::kOk);
  const kv_client_stats before = reader.stats();
  CHECK(reader.get("key").value == "of another length");
  const kv_client_stats after = reader.stats();
  CHECK(after.address_hits - before.address_hits == 1);
  CHECK(after.address_stale == before.address_stale);
}

TEST_CASE("a write to what nobody has a copy of costs what it costs without copies") {
  StoreNode node(layout::kRegionBytesMin);
  CopyingClient with(node), without(node, 0);
  for (CopyingClient* client : {&with, &without}) {
    REQUIRE(client->put("key", "value").status == Status::kOk);
    const kv_client_stats before = client->stats();
    REQUIRE(client->put("key", "other").status == Status::kOk);
    const kv_client_stats after = client->stats();
    CHECK(after.round_trips - before.round_trips == 2);
    CHECK(after.cas - before.cas == 1);
    CHECK(after.writes_guarded == 0);
  }
}

TEST_CASE("a copy of an absence serves reads without a verb, and an insert ends it") {
  StoreNode node(layout::kRegionBytesMin);
  CopyingClient reader(node), writer(node, 0);
  REQUIRE(reader.settle("key"));
  const uint64_t verbs = reader.verbs();
  for (int i = 0; i < 100; ++i) CHECK(reader.get("key").status == Status::kAbsent);
  CHECK(reader.contains("key").status == Status::kAbsent);
  CHECK(reader.verbs() == verbs);
  CHECK(reader.get("key", KV_UNCACHED).status == Status::kAbsent);
  CHECK(reader.verbs() > verbs);

  REQUIRE(writer.put("key", "first").status == Status::kOk);
  CHECK(reader.get("key").value == "first");
  CHECK(reader.contains("key").status == Status::kOk);
  CHECK(reader.stats().cache_invalidated == 1);
  CHECK(writer.stats().writes_guarded == 1);
  REQUIRE(writer.remove("key").status == Status::kOk);
  CHECK(reader.get("key").status == Status::kAbsent);
  // Its own inserts end it likewise.
  REQUIRE(reader.settle("key"));
  REQUIRE(reader.put("key", "second").status == Status::kOk);
  CHECK(reader.get("key").value == "second");
  CHECK(reader.stats().leases_waited + writer.stats().leases_waited == 0);
}

TEST_CASE("a copy of an absence ends with a delete's tombstone too, and none is made of one") {
  StoreNode node(layout::kRegionBytesMin);
  CopyingClient reader(node), writer(node, 0);
  const std::string key = "key";
  REQUIRE(reader.settle(key));
  kv_call bury = StoreClient::call_for(KV_DELETE, key);
  bury.flags = KV_WITH_FENCE;
  bury.fence = {1, 1};
  CHECK(writer.run(bury).status == Status::kAbsent);
  CHECK(!reader.settle(key));
  kv_call put = StoreClient::call_for(KV_PUT, key);
  put.flags = KV_WITH_FENCE;
  put.fence = {1, 2};
  put.value = "value";
  put.value_bytes = 5;
  REQUIRE(writer.run(put).status == Status::kOk);
  CHECK(reader.get(key).value == "value");
}

TEST_CASE("an insert of what nobody has looked for costs one READ more, and no round trip") {
  StoreNode node(layout::kRegionBytesMin);
  CopyingClient reader(node), writer(node, 0);
  REQUIRE(reader.settle("another key"));
  REQUIRE(writer.put("first", "value").status == Status::kOk);
  const kv_client_stats before = writer.stats();
  REQUIRE(writer.put("second", "value").status == Status::kOk);
  const kv_client_stats after = writer.stats();
  CHECK(after.round_trips - before.round_trips == 3);
  CHECK(after.reads - before.reads == 7);
  CHECK(after.writes_guarded == 0);
}

TEST_CASE("an insert waits for a lease where a reader of the absence does not answer") {
  StoreNode node(layout::kRegionBytesMin);
  CopyingClient reader(node), writer(node);
  REQUIRE(reader.settle("key"));
  reader.fall_silent();
  REQUIRE(writer.put("key", "value").status == Status::kOk);
  CHECK(writer.stats().leases_waited == 1);
  CHECK(reader.get("key").value == "value");
}

TEST_CASE("absences that nobody reads again are not worth being asked about") {
  StoreNode node(layout::kRegionBytesMin);
  CopyingClient reader(node), writer(node, 0);
  for (int i = 0; i < 1000; ++i) {
    const std::string key = "key " + std::to_string(i);
    // The second one makes a copy, where that is thought to pay.
    CHECK(reader.get(key).status == Status::kAbsent);
    CHECK(reader.get(key).status == Status::kAbsent);
    REQUIRE(writer.put(key, "value").status == Status::kOk);
    CHECK(reader.get(key).value == "value");
    REQUIRE(writer.remove(key).status == Status::kOk);
  }
  CHECK(reader.stats().cache_fills < 300);
}

TEST_CASE("writers without copies of their own end those of others") {
  StoreNode node(layout::kRegionBytesMin);
  CopyingClient reader(node), writer(node, 0);
  REQUIRE(writer.put("key", "first").status == Status::kOk);
  REQUIRE(reader.settle("key"));
  REQUIRE(writer.put("key", "second").status == Status::kOk);
  CHECK(reader.get("key").value == "second");
  CHECK(writer.stats().leases_waited == 0);
}

TEST_CASE("an owner that does not answer is waited for no longer than a lease") {
  StoreNode node(layout::kRegionBytesMin);
  CopyingClient reader(node), writer(node);
  REQUIRE(writer.put("key", "first").status == Status::kOk);
  REQUIRE(writer.put("other", "still").status == Status::kOk);
  REQUIRE(reader.settle("key"));
  REQUIRE(reader.settle("other"));
  reader.fall_silent();
  REQUIRE(writer.put("key", "second").status == Status::kOk);
  CHECK(writer.stats().leases_waited == 1);
  CHECK(reader.get("key").value == "second");
  CHECK(reader.get("other").value == "still");
  CHECK(reader.stats().cache_revoked == 1);
  // It makes no copies for a while: nobody can end them.
  CHECK(!reader.settle("key"));
}

TEST_CASE("an owner whose postbox line is damaged is not taken for one without copies") {
  StoreNode node(layout::kRegionBytesMin);
  CopyingClient reader(node), writer(node);
  REQUIRE(writer.put("key", "first").status == Status::kOk);
  REQUIRE(reader.settle("key"));
  reader.damage_postbox_line();
  REQUIRE(writer.put("key", "second").status == Status::kOk);
  CHECK(reader.get("key").value == "second");
  CHECK(writer.stats().leases_waited == 1);
}

TEST_CASE("clearing a node ends all copies") {
  StoreNode node(layout::kRegionBytesMin);
  CopyingClient reader(node), writer(node);
  for (int i = 0; i < 20; ++i) {
    const std::string key = "key " + std::to_string(i);
    REQUIRE(writer.put(key, "value").status == Status::kOk);
    REQUIRE(reader.settle(key));
  }
  uint64_t deleted = 0;
  REQUIRE(writer.run_task([&](Channel& channel) { return clear_keys(channel, deleted); }) ==
          Status::kOk);
  CHECK(deleted == 20);
  for (int i = 0; i < 20; ++i) {
    CHECK(reader.get("key " + std::to_string(i)).status == Status::kAbsent);
  }
}

TEST_CASE("values with a time to live are not copied") {
  StoreNode node(layout::kRegionBytesMin);
  CopyingClient client(node);
  REQUIRE(client.put("key", "value", 0, 0, 60'000).status == Status::kOk);
  CHECK(!client.settle("key"));
}

TEST_CASE("a key that is written all the time is left alone") {
  StoreNode node(layout::kRegionBytesMin);
  CopyingClient client(node);
  for (int i = 0; i < 4000; ++i) {
    REQUIRE(client.put("key", std::to_string(i)).status == Status::kOk);
    REQUIRE(client.get("key").value == std::to_string(i));
  }
  CHECK(client.stats().cache_fills < 40);
}

TEST_CASE("versions only go up for whoever reads, while others write") {
  StoreNode node(layout::kRegionBytesMin * 2);
  constexpr int kClients = 3;
  constexpr int kKeys = 4;
  std::vector<std::unique_ptr<CopyingClient>> clients;
  for (int i = 0; i < kClients; ++i) clients.push_back(std::make_unique<CopyingClient>(node));
  std::atomic<uint64_t> written[kKeys] = {};
  for (int k = 0; k < kKeys; ++k) {
    REQUIRE(clients[0]->put("key " + std::to_string(k), "0").status == Status::kOk);
  }
  std::atomic<uint64_t> stale{0};
  std::atomic<uint64_t> failed{0};
  std::atomic<bool> over{false};
  std::vector<std::thread> threads;
  for (int c = 0; c < kClients; ++c) {
    threads.emplace_back([&, c] {
      for (uint64_t i = c; !over.load(); ++i) {
        const int k = int(i % kKeys);
        const uint64_t before = written[k].load();
        const Outcome seen = clients[c]->get("key " + std::to_string(k));
        failed += seen.status != Status::kOk;
        if (seen.status == Status::kOk && std::stoull(seen.value) < before) ++stale;
      }
    });
  }
  const auto hits = [&] {
    uint64_t sum = 0;
    for (const auto& client : clients) sum += client->cache().hits();
    return sum;
  };
  // On a busy machine readers may not have had their turn by then.
  constexpr uint64_t kRounds = 400;
  for (uint64_t round = 1; round <= kRounds || (hits() == 0 && round <= 100 * kRounds); ++round) {
    const int k = int(round % kKeys);
    CopyingClient& writer = *clients[round % kClients];
    const std::string value = std::to_string(round);
    if (writer.put("key " + std::to_string(k), value).status != Status::kOk) ++failed;
    written[k].store(round);
    std::this_thread::yield();
  }
  over.store(true);
  for (std::thread& thread : threads) thread.join();
  CHECK(stale.load() == 0);
  CHECK(failed.load() == 0);
  CHECK(hits() > 0);
}

}  // namespace kvstore::test
