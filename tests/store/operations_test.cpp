// The operations of one or many keys: outcomes, conditions, lifetimes, sizes.

#include <random>
#include <thread>

#include "base/crc32c.hpp"
#include "tests/store/fixture.hpp"

namespace kvstore::test {
namespace {

constexpr uint64_t kCapacity = uint64_t{32} << 20;

std::string name(uint64_t i) {
  return std::string("key-").append(std::to_string(i));
}

}  // namespace

TEST_CASE("store: each call of a batch has its own outcome") {
  StoreNode node(kCapacity);
  StoreClient client(node);
  constexpr unsigned kCalls = 500;
  std::vector<std::string> keys, values(kCalls), got(kCalls);
  for (unsigned i = 0; i < kCalls; ++i) keys.push_back(name(i));
  keys[17] = "";
  keys[18] = std::string(1025, 'k');
  std::vector<kv_call> calls;
  for (unsigned i = 0; i < kCalls; ++i) {
    values[i] = value_of(keys[i], i, i * 37 % 3000);
    calls.push_back(StoreClient::call_for(KV_PUT, keys[i]));
    calls.back().value = values[i].data();
    calls.back().value_bytes = values[i].size();
    if (i == 19) calls.back().value_bytes = uint64_t{1} << 30;  // never read: refused before
    if (i == 20) calls.back().kind = 99;
  }
  client.run(calls);
  for (unsigned i = 0; i < kCalls; ++i) {
    CAPTURE(i);
    const Status expected = i == 17 || i == 18 ? Status::kKeyInvalid
                            : i == 19          ? Status::kValueTooLarge
                            : i == 20          ? Status::kInvalid
                                               : Status::kOk;
    REQUIRE(Status(calls[i].status) == expected);
  }
  for (unsigned i = 0; i < kCalls; ++i) {
    calls[i] = StoreClient::call_for(i % 5 == 4 ? KV_DELETE : KV_GET, keys[i]);
    calls[i].context = &got[i];
  }
  client.run(calls);
  for (unsigned i = 0; i < kCalls; ++i) {
    if (i >= 17 && i <= 20) continue;
    CAPTURE(i);
    REQUIRE(Status(calls[i].status) == Status::kOk);
    if (calls[i].kind == KV_GET) REQUIRE(got[i] == values[i]);
  }
  CHECK(Status(calls[20].status) == Status::kAbsent);
  for (unsigned i = 0; i < kCalls; ++i) calls[i] = StoreClient::call_for(KV_CONTAINS, keys[i]);
  client.run(calls);
  for (unsigned i = 21; i < kCalls; ++i) {
    REQUIRE(Status(calls[i].status) == (i % 5 == 4 ? Status::kAbsent : Status::kOk));
    if (i % 5 != 4) REQUIRE(calls[i].data_bytes == values[i].size());
  }
}

TEST_CASE("store: values of every size come back, into memory of either side") {
  StoreNode node(kCapacity);
  StoreClient client(node);
  for (const uint64_t bytes : {0u, 1u, 7u, 63u, 64u, 4000u, 4043u, 4044u, 4045u, 4096u, 16'000u,
                               16'300u, 16'400u, 65'535u, 65'536u, 65'537u, 1u << 20, 5u << 20}) {
    for (const std::string& key : {std::string("k"), std::string(1024, 'K')}) {
      CAPTURE(bytes);
      CAPTURE(key.size());
      std::string value(bytes, '\0');
      std::mt19937 random{uint32_t(bytes)};
      for (char& byte : value) byte = char(random());
      const Outcome stored = client.put(key, value);
      REQUIRE(stored.status == Status::kOk);
      // Twice: by the remembered address, and after another client put it anew.
      for (int again = 0; again < 2; ++again) {
        const Outcome got = client.get(key);
        REQUIRE(got.status == Status::kOk);
        REQUIRE((got.value == value));
        REQUIRE(got.version == stored.version);
      }
      std::string buffer(bytes + 64, '!');
      for (const uint64_t room : {bytes, bytes + 64}) {
        if (room == 0) continue;
        kv_call into = StoreClient::call_for(KV_GET, key);
        into.buffer = buffer.data();
        into.buffer_bytes = room;
        REQUIRE(client.run_one(into).status == Status::kOk);
        REQUIRE((buffer.compare(0, bytes, value) == 0));
      }
      if (bytes > 1) {
        kv_call into = StoreClient::call_for(KV_GET, key);
        into.buffer = buffer.data();
        into.buffer_bytes = bytes - 1;
        std::vector<kv_call> calls{into};
        client.run(calls);
        REQUIRE(Status(calls[0].status) == Status::kBufferTooSmall);
        REQUIRE(calls[0].data_bytes == bytes);
      }
      REQUIRE(client.remove(key).status == Status::kOk);
      REQUIRE(client.get(key).status == Status::kAbsent);
    }
  }
}

// The value of a remembered address may reach the caller's buffer before it is verified.
TEST_CASE("store: a damaged value is not found, whatever it leaves in the buffer") {
  StoreNode node(kCapacity);
  StoreClient client(node);
  const std::string key = "k";
  for (const size_t bytes : {100u, 2000u, 100'000u}) {
    CAPTURE(bytes);
    std::string value(bytes, '\0');
    std::mt19937 random{uint32_t(bytes)};
    for (char& byte : value) byte = char(random());
    REQUIRE(client.put(key, value).status == Status::kOk);
    std::string buffer(bytes, '!');
    kv_call into = StoreClient::call_for(KV_GET, key);
    into.buffer = buffer.data();
    into.buffer_bytes = bytes;
    REQUIRE(client.run_one(into).status == Status::kOk);
    // Looked for in a copy, taken as clients take theirs: the node and its own client go on
    // writing.
    std::string image(client.region_bytes(), '\0');
    region_copy(image.data(), client.region(), image.size());
    const size_t at = image.find(value);
    REQUIRE(at != std::string::npos);
    uint8_t* const last = client.region() + at + bytes - 1;
    *last ^= 1;
    const Status damaged = client.run_one(into, 100 * kMillisecond).status;
    CHECK((damaged == Status::kCorrupt || damaged == Status::kDeadlineExceeded));
    *last ^= 1;
    REQUIRE(client.run_one(into).status == Status::kOk);
    CHECK((buffer == value));
    REQUIRE(client.remove(key).status == Status::kOk);
  }
}

TEST_CASE("store: conditions hold or refuse, and refusing changes nothing") {
  StoreNode node(kCapacity);
  StoreClient client(node);
  StoreClient other(node);
  CHECK(client.put("a", "1", KV_IF_VERSION, 77).status == Status::kConditionFailed);
  CHECK(client.remove("a", KV_IF_VERSION, 77).status == Status::kConditionFailed);
  CHECK(client.remove("a").status == Status::kAbsent);
  const Outcome first = client.put("a", "1", KV_IF_ABSENT);
  REQUIRE(first.status == Status::kOk);
  CHECK(other.put("a", "2", KV_IF_ABSENT).status == Status::kConditionFailed);
  CHECK(other.put("a", "2", KV_IF_VERSION, first.version + 1).status == Status::kConditionFailed);
  CHECK(other.get("a").value == "1");
  const Outcome second = other.put("a", "2", KV_IF_VERSION, first.version);
  REQUIRE(second.status == Status::kOk);
  CHECK(second.version != first.version);
  CHECK(client.put("a", "3", KV_IF_VERSION, first.version).status == Status::kConditionFailed);
  CHECK(client.remove("a", KV_IF_VERSION, first.version).status == Status::kConditionFailed);
  CHECK(client.get("a").value == "2");
  CHECK(client.remove("a", KV_IF_VERSION, second.version).status == Status::kOk);
  CHECK(client.contains("a").status == Status::kAbsent);
  CHECK(client.put("a", "4", KV_IF_ABSENT).status == Status::kOk);
}

TEST_CASE("store: additions by condition from many threads are all counted") {
  StoreNode node(kCapacity);
  StoreClient first(node, 2), second(node, 2);
  constexpr unsigned kCounters = 3;
  const unsigned additions = sanitized() ? 100 : 2000;
  std::atomic<unsigned> failed{0};
  const auto add = [&](StoreClient& client, uint32_t seed) {
    std::mt19937 random(seed);
    for (unsigned i = 0; i < additions; ++i) {
      const std::string key = name(random() % kCounters);
      const uint64_t end_ns = monotonic_ns() + 20 * kSecond;
      for (;;) {
        const Outcome seen = client.get(key);
        const bool absent = seen.status == Status::kAbsent;
        const std::string next = std::to_string(absent ? 1 : std::stoull(seen.value) + 1);
        const Outcome put = absent ? client.put(key, next, KV_IF_ABSENT)
                                   : client.put(key, next, KV_IF_VERSION, seen.version);
        if (put.status == Status::kOk) break;
        if (put.status != Status::kConditionFailed || monotonic_ns() > end_ns) {
          ++failed;
          break;
        }
      }
    }
  };
  std::vector<std::thread> threads;
  for (uint32_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] { add(t % 2 == 0 ? first : second, t); });
  }
  for (std::thread& thread : threads) thread.join();
  uint64_t sum = 0;
  for (unsigned i = 0; i < kCounters; ++i) sum += std::stoull(first.get(name(i)).value);
  CHECK(failed == 0);
  CHECK(sum == 4 * additions);
}

TEST_CASE("store: a value lives as long as it was told, and is gone for good then") {
  StoreNode node(kCapacity);
  StoreClient writer(node), reader(node);
  REQUIRE(writer.put("short", "1", 0, 0, 150).status == Status::kOk);
  REQUIRE(writer.put("long", "2", 0, 0, 3'600'000).status == Status::kOk);
  const uint64_t began = monotonic_ns();
  CHECK(reader.get("short").status == Status::kOk);
  bool gone = false, came_back = false, early = false;
  while (monotonic_ns() - began < 500 * kMillisecond) {
    const bool absent = reader.get("short").status == Status::kAbsent;
    early |= absent && monotonic_ns() - began < 100 * kMillisecond;
    came_back |= gone && !absent;
    gone |= absent;
  }
  CHECK(gone);
  CHECK(!came_back);
  CHECK(!early);
  CHECK(reader.contains("short").status == Status::kAbsent);
  CHECK(reader.get("long").value == "2");
  // For conditions it is absent, too.
  CHECK(writer.put("short", "3", KV_IF_VERSION, 1).status == Status::kConditionFailed);
  CHECK(writer.put("short", "3", KV_IF_ABSENT).status == Status::kOk);
  CHECK(reader.get("short").value == "3");
}

TEST_CASE("store: the node's clock as a client tells it never goes back") {
  StoreNode node(kCapacity);
  StoreClient client(node);
  const Attachment& opened = *client.attachment();
  // One of our own, since the heartbeats of a client's see the clock, too.
  Attachment attachment(std::make_unique<LossyTransport>(LocalRegion{}, 0, nullptr),
                        opened.superblock, opened.geometry, opened.registration, 1024);
  // Each heartbeat sees the clock some ticks late, now more, now less.
  uint64_t last = 0;
  std::mt19937 random(3);
  for (unsigned beat = 0; beat < 200; ++beat) {
    const uint64_t now_ns = boottime_ns();
    attachment.saw_clock(100'000 + now_ns / kMillisecond - random() % 20, now_ns);
    const uint64_t told = attachment.node_clock_ms();
    REQUIRE(told >= last);
    last = told;
  }
}

TEST_CASE("store: a call that can't end in time ends, and the lane serves the next") {
  StoreNode node(uint64_t{8} << 20);
  StoreClient client(node);
  // Nobody gives memory back: the node is full of live keys.
  const std::string value(100'000, 'x');
  Status status = Status::kOk;
  unsigned stored = 0;
  for (; status == Status::kOk; ++stored) status = client.put(name(stored), value).status;
  CHECK(status == Status::kOutOfMemory);
  CHECK(stored > 50);
  const uint64_t began = monotonic_ns();
  const std::string key = name(stored);
  kv_call call = StoreClient::call_for(KV_PUT, key);
  call.value = value.data();
  call.value_bytes = value.size();
  const Status late = client.run_one(call, 20 * kMillisecond).status;
  CHECK((late == Status::kOutOfMemory || late == Status::kDeadlineExceeded));
  CHECK(monotonic_ns() - began < 5 * kSecond);
  for (unsigned i = 0; i + 1 < stored; ++i) REQUIRE((client.get(name(i)).value == value));
  for (unsigned i = 0; i < 10; ++i) REQUIRE(client.remove(name(i)).status == Status::kOk);
  CHECK(eventually_true([&] { return client.put("more", value).status == Status::kOk; }));
}

}  // namespace kvstore::test
