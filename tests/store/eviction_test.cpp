// A full node: with eviction it keeps serving and forgets what was used longest ago, whoever owns
// the memory; without, it refuses and forgets nothing.

#include <algorithm>
#include <numeric>
#include <random>
#include <thread>
#include <vector>

#include "tests/store/fixture.hpp"

namespace kvstore::test {
namespace {

std::string name(const char* prefix, uint64_t i) {
  return std::string(prefix).append(std::to_string(i));
}

Outcome put_as(StoreClient& client, const std::string& key, const std::string& value,
               unsigned category) {
  kv_call call = StoreClient::call_for(KV_PUT, key);
  call.value = value.data();
  call.value_bytes = value.size();
  call.reuse = category << KV_REUSE_CATEGORY_SHIFT;
  return client.run_one(call);
}

// Until the heartbeat has told the node of all uses so far: the second from here on begins once the
// first has ended, which began behind them.
void wait_until_told(StoreClient& client) {
  const auto tick = [&] { return client.client.tick().load(); };
  const uint64_t now = tick();
  REQUIRE(eventually_true([&] { return tick() >= now + 2; }));
}

// Puts what does not fit, and now and then lets the heartbeat tell the node of it.
void churn(StoreClient& client, const std::string& value, unsigned count, unsigned category = 0) {
  static unsigned number = 0;
  for (unsigned i = 0; i < count; ++i) {
    REQUIRE(put_as(client, name("new", number++), value, category).status == Status::kOk);
    if (i % 500 == 0) wait_until_told(client);
  }
}

unsigned present(StoreClient& client, const char* prefix, unsigned count) {
  unsigned found = 0;
  for (unsigned i = 0; i < count; ++i) {
    kv_call call{};
    const std::string key = name(prefix, i);
    call = StoreClient::call_for(KV_CONTAINS, key);
    call.flags = KV_PROBE;
    found += client.run_one(call).status == Status::kOk;
  }
  return found;
}

}  // namespace

TEST_CASE("store: a full node that evicts goes on taking values of many threads and clients") {
  StoreNode node(uint64_t{12} << 20, KV_EVICTION_SAMPLED_LRU);
  StoreClient first(node), second(node);
  const unsigned puts = sanitized() ? 1500 : 15'000;
  std::atomic<unsigned> failed{0}, wrong{0}, hits{0};
  const auto work = [&](StoreClient& client, uint32_t seed) {
    std::mt19937 random(seed);
    for (unsigned i = 0; i < puts; ++i) {
      const std::string key = name("k", random() % (2 * puts));
      failed += client.put(key, value_of(key, i, 1500)).status != Status::kOk;
      const std::string asked = name("k", random() % (2 * puts));
      const Outcome got = client.get(asked);
      uint64_t number = 0;
      hits += got.status == Status::kOk;
      wrong += got.status == Status::kOk ? !value_matches(got.value, asked, number)
                                         : got.status != Status::kAbsent;
    }
  };
  std::vector<std::thread> threads;
  for (uint32_t t = 0; t < 3; ++t) {
    threads.emplace_back([&, t] { work(t % 2 == 0 ? first : second, t); });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(failed == 0);
  CHECK(wrong == 0);
  CHECK(hits > puts / 50);
  if (!sanitized()) CHECK(first.stats().evictions + second.stats().evictions > puts);
}

TEST_CASE("store: what was used lately outlives what was not") {
  StoreNode node(uint64_t{12} << 20, KV_EVICTION_SAMPLED_LRU);
  StoreClient client(node);
  constexpr unsigned kHot = 300;
  const std::string value(2000, 'v');
  for (unsigned i = 0; i < kHot; ++i)
    REQUIRE(client.put(name("hot", i), value).status == Status::kOk);
  for (unsigned i = 0; i < kHot; ++i) {
    REQUIRE(client.put(name("cold", i), value).status == Status::kOk);
  }
  // Three times what fits. All the time the hot ones are read, so that they are never the oldest.
  const unsigned churn = 15'000;
  for (unsigned i = 0; i < churn; ++i) {
    REQUIRE(client.put(name("new", i), value).status == Status::kOk);
    client.get(name("hot", i % kHot));
    // A client's reads are told to the node by its heartbeat.
    if (i % 500 == 0) usleep(12'000);
  }
  unsigned hot = 0, cold = 0;
  for (unsigned i = 0; i < kHot; ++i) {
    hot += client.contains(name("hot", i)).status == Status::kOk;
    cold += client.contains(name("cold", i)).status == Status::kOk;
  }
  CHECK(hot > kHot / 2);
  CHECK(cold < kHot / 4);
}

TEST_CASE("store: keys count as used when their caller says, but not later than now") {
  StoreNode node(uint64_t{12} << 20, KV_EVICTION_SAMPLED_LRU);
  StoreClient client(node);
  constexpr unsigned kEach = 300;
  const std::string value(2000, 'v');
  const auto put_used = [&](const std::string& key, uint64_t used_ns) {
    kv_call call = StoreClient::call_for(KV_PUT, key);
    call.value = value.data();
    call.value_bytes = value.size();
    call.used_ns = used_ns;
    REQUIRE(client.run_one(call).status == Status::kOk);
  };
  const uint64_t earlier_ns = monotonic_ns() - 60 * kSecond;
  for (unsigned i = 0; i < kEach; ++i) put_used(name("now", i), 0);
  for (unsigned i = 0; i < kEach; ++i) put_used(name("earlier", i), earlier_ns);
  for (unsigned i = 0; i < kEach; ++i) put_used(name("later", i), UINT64_MAX);
  usleep(60'000);
  unsigned earlier = kEach;
  // As soon as the node is full those go of which it was said.
  for (unsigned part = 0; part < 100 && earlier > kEach / 4; ++part) {
    churn(client, value, 200);
    earlier = present(client, "earlier", kEach);
  }
  CHECK(earlier <= kEach / 4);
  CHECK(present(client, "now", kEach) > kEach / 2);
  churn(client, value, 9000);
  CHECK(present(client, "later", kEach) < kEach / 4);
}

TEST_CASE("store: what was read often outlives what was read lately, by frequency") {
  for (const uint32_t policy : {KV_EVICTION_LFU, KV_EVICTION_GDSF}) {
    CAPTURE(policy);
    StoreNode node(uint64_t{12} << 20, policy);
    StoreClient client(node);
    constexpr unsigned kOften = 200;
    const std::string value(2000, 'v');
    for (unsigned i = 0; i < kOften; ++i) {
      REQUIRE(client.put(name("often", i), value).status == Status::kOk);
    }
    usleep(60'000);
    for (unsigned round = 0; round < 20; ++round) {
      for (unsigned i = 0; i < kOften; ++i) client.get(name("often", i));
      usleep(12'000);
    }
    // Not read any more from here on.
    churn(client, value, 9000);
    CHECK(present(client, "often", kOften) > kOften * 3 / 4);
  }
}

TEST_CASE("store: first in, first out, whatever is read") {
  StoreNode node(uint64_t{12} << 20, KV_EVICTION_FIFO);
  StoreClient client(node);
  constexpr unsigned kEarly = 200;
  const std::string value(2000, 'v');
  for (unsigned i = 0; i < kEarly; ++i) {
    REQUIRE(client.put(name("early", i), value).status == Status::kOk);
  }
  usleep(60'000);
  for (unsigned part = 0; part < 30; ++part) {
    churn(client, value, 300);
    for (unsigned i = 0; i < kEarly; ++i) client.get(name("early", i));
  }
  CHECK(present(client, "early", kEarly) < kEarly / 4);
}

TEST_CASE("store: the adaptive policy keeps the category that comes back") {
  StoreNode node(uint64_t{12} << 20, KV_EVICTION_ADAPTIVE);
  StoreClient client(node);
  const std::string value(2000, 'v');
  constexpr unsigned kKept = 400;
  // Keys of category 1 are put again, after longer than a node of this size remembers by recency;
  // those of category 2 never are.
  for (unsigned round = 0; round < 12; ++round) {
    for (unsigned i = 0; i < kKept; ++i) {
      REQUIRE(put_as(client, name("back", i), value, 1).status == Status::kOk);
    }
    churn(client, value, 6000, 2);
  }
  CHECK(present(client, "back", kKept) > kKept * 3 / 4);
}

TEST_CASE("store: a probe keeps nothing from eviction, a pin does, and too many pins do not") {
  StoreNode node(uint64_t{12} << 20, KV_EVICTION_SAMPLED_LRU);
  StoreClient client(node);
  const std::string value(2000, 'v');
  constexpr unsigned kEach = 200;
  for (unsigned i = 0; i < kEach; ++i) {
    REQUIRE(client.put(name("pinned", i), value).status == Status::kOk);
    REQUIRE(client.put(name("probed", i), value).status == Status::kOk);
  }
  for (unsigned i = 0; i < kEach; ++i) {
    const std::string key = name("pinned", i);
    kv_call pin = StoreClient::call_for(KV_CONTAINS, key);
    pin.pin_s = 60;
    REQUIRE(client.run_one(pin).status == Status::kOk);
  }
  usleep(120'000);
  for (unsigned part = 0; part < 30; ++part) {
    churn(client, value, 300);
    present(client, "probed", kEach);
  }
  CHECK(present(client, "pinned", kEach) > kEach * 9 / 10);
  CHECK(present(client, "probed", kEach) < kEach / 4);
  // Pins for everything: puts go on, and old pins go.
  for (unsigned i = 0; i < 12'000; ++i) {
    const std::string key = name("more", i);
    REQUIRE(client.put(key, value).status == Status::kOk);
    kv_call pin = StoreClient::call_for(KV_CONTAINS, key);
    pin.pin_s = 60;
    client.run_one(pin);
    if (i % 500 == 0) usleep(12'000);
  }
  CHECK(present(client, "more", 12'000) < 8'000);
}

TEST_CASE("store: a full node makes room for another size and for another client") {
  StoreNode node(uint64_t{16} << 20, KV_EVICTION_SAMPLED_LRU);
  StoreClient first(node);
  const std::string small(1000, 's');
  for (unsigned i = 0; i < 25'000; ++i)
    REQUIRE(first.put(name("s", i), small).status == Status::kOk);
  REQUIRE(node.stats().segments_free < 20);
  StoreClient second(node);
  for (const size_t bytes : {100u, 20'000u, 300'000u, 2'000'000u}) {
    CAPTURE(bytes);
    const std::string value(bytes, 'b');
    for (unsigned i = 0; i < 4; ++i) {
      REQUIRE(second.put(name("b", i), value).status == Status::kOk);
      REQUIRE((first.get(name("b", i)).value == value));
    }
  }
}

TEST_CASE("store: a full node that evicts nothing keeps every key") {
  StoreNode node(uint64_t{8} << 20, KV_EVICTION_NONE);
  StoreClient client(node);
  const std::string value(3000, 'v');
  unsigned stored = 0;
  Status status = Status::kOk;
  for (; status == Status::kOk; ++stored) status = client.put(name("k", stored), value).status;
  CHECK(status == Status::kOutOfMemory);
  CHECK(stored > 1800);
  for (unsigned i = 0; i + 1 < stored; ++i) REQUIRE((client.get(name("k", i)).value == value));
  CHECK(client.stats().evictions == 0);
  // Replacing needs a block, too; deleting does not.
  REQUIRE(client.remove(name("k", 0)).status == Status::kOk);
  CHECK(eventually_true([&] { return client.put("again", value).status == Status::kOk; }));
}

TEST_CASE("the uses of a long prompt's blocks are remembered until the node is told") {
  constexpr unsigned kBlocks = 4000;
  constexpr unsigned kSubtables = 8;
  constexpr uint64_t kSegmentBytes = uint64_t{2} << 20;
  // Where hashes put them: at any place of any subtable, which begin at multiples of a segment.
  std::vector<uint64_t> places(kSubtables * layout::kSlotsPerSubtable);
  std::iota(places.begin(), places.end(), 0);
  std::shuffle(places.begin(), places.end(), std::mt19937_64{1});
  const auto metadata_of = [&](unsigned i) {
    const uint64_t any = places[i];
    return any / layout::kSlotsPerSubtable * kSegmentBytes + layout::kSubtableBucketBytes +
           any % layout::kSlotsPerSubtable * sizeof(layout::EvictionMetadata);
  };
  RecentUses uses;
  const layout::EvictionMetadata unknown{};
  for (unsigned i = 1; i <= kBlocks; ++i) {
    uses.note(metadata_of(i), 1000 + i, 7 << KV_REUSE_CATEGORY_SHIFT | i, true);
  }
  unsigned forgotten = 0;
  for (unsigned i = 1; i <= kBlocks; ++i) {
    layout::EvictionMetadata metadata = unknown;
    uses.apply(metadata_of(i), metadata);
    if (metadata.last_access_ms == 0) {
      ++forgotten;
      continue;
    }
    REQUIRE(metadata.last_access_ms == 1000 + i);
    REQUIRE(metadata.category == 7);
    REQUIRE(metadata.place == i);
  }
  CHECK(forgotten <= kBlocks / 100);
}

TEST_CASE("a use that is forgotten, or before the client was attached anew, says nothing") {
  constexpr uint64_t kOne = 1024;
  constexpr uint64_t kOther = 2048;
  RecentUses uses;
  uses.note(kOne, 1000, 0, true);
  uses.note(kOther, 1000, 0, true);
  layout::EvictionMetadata metadata{};
  uses.forget(kOne);
  uses.apply(kOne, metadata);
  CHECK(metadata.last_access_ms == 0);
  uses.clear();
  uses.apply(kOther, metadata);
  CHECK(metadata.last_access_ms == 0);
}

TEST_CASE("the latest use of a slot counts, however often it was used") {
  constexpr uint64_t kOffset = 1024;
  RecentUses uses;
  for (unsigned i = 1; i <= 100; ++i) uses.note(kOffset, 1000 + i, 0, false);
  layout::EvictionMetadata metadata{};
  metadata.last_access_ms = 900;
  uses.apply(kOffset, metadata);
  CHECK(metadata.last_access_ms == 1100);
  uses.forget(kOffset);
  metadata.last_access_ms = 900;
  uses.apply(kOffset, metadata);
  CHECK(metadata.last_access_ms == 900);
}

TEST_CASE("a ring of uses counts those that it has no room for") {
  const auto ring = std::make_unique<TouchRing>();
  uint64_t taken = 0;
  for (unsigned i = 0; i < 10'000; ++i) ring->push({1, i, 0, 0, 0, 0, false});
  Touch touch;
  while (ring->pop(touch)) CHECK(touch.metadata_offset == taken++);
  CHECK(taken > 0);
  CHECK(taken + ring->dropped() == 10'000);
}

}  // namespace kvstore::test
