// Writes with the token of a lock's holder: who held the lock before is refused, whatever became of
// the value since.

#include <doctest/doctest.h>

#include <string>

#include "base/crc32c.hpp"
#include "layout/object.hpp"
#include "tests/store/fixture.hpp"

namespace kvstore::test {
namespace {

constexpr uint64_t kCapacity = 16 << 20;

kv_fence fence_of(uint64_t token, uint64_t name = 7, uint64_t era = 1) {
  return {layout::FenceLock::make(name, era).word, token};
}

Outcome put(StoreClient& client, const std::string& key, const std::string& value, kv_fence fence,
            uint32_t flags = 0) {
  kv_call call = StoreClient::call_for(KV_PUT, key);
  call.value = value.data();
  call.value_bytes = value.size();
  call.flags = KV_WITH_FENCE | flags;
  call.fence = fence;
  return client.run_one(call);
}

Outcome remove(StoreClient& client, const std::string& key, kv_fence fence) {
  kv_call call = StoreClient::call_for(KV_DELETE, key);
  call.flags = KV_WITH_FENCE;
  call.fence = fence;
  return client.run_one(call);
}

}  // namespace

TEST_CASE("fence: an older holder is refused, the same and a newer one are not") {
  StoreNode node(kCapacity);
  StoreClient client(node), other(node);
  for (const size_t bytes : {0, 5, 100, 5000, 20'000, 100'000}) {
    CAPTURE(bytes);
    const std::string key = "key " + std::to_string(bytes);
    const auto value = [&](uint64_t n) { return bytes == 0 ? "" : value_of(key, n, bytes); };
    REQUIRE(put(client, key, value(1), fence_of(10)).status == Status::kOk);
    CHECK(put(other, key, value(2), fence_of(9)).status == Status::kFencedWrite);
    CHECK(client.get(key).value == value(1));
    CHECK(put(other, key, value(3), fence_of(10)).status == Status::kOk);
    CHECK(put(other, key, value(4), fence_of(11)).status == Status::kOk);
    CHECK(put(client, key, value(5), fence_of(10)).status == Status::kFencedWrite);
    CHECK(other.get(key).value == value(4));
  }
}

TEST_CASE("fence: the first fenced write fences what was there") {
  StoreNode node(kCapacity);
  StoreClient client(node);
  REQUIRE(client.put("a", "plain").status == Status::kOk);
  REQUIRE(put(client, "a", "mine", fence_of(5)).status == Status::kOk);
  CHECK(put(client, "a", "late", fence_of(4)).status == Status::kFencedWrite);
}

TEST_CASE("fence: writes without one carry it on") {
  StoreNode node(kCapacity);
  StoreClient client(node), other(node);
  REQUIRE(put(client, "a", "1", fence_of(10)).status == Status::kOk);
  for (const size_t bytes : {1, 40, 3000, 50'000}) {
    CAPTURE(bytes);
    const std::string value = value_of("a", bytes, bytes);
    REQUIRE(other.put("a", value).status == Status::kOk);
    CHECK(client.get("a").value == value);
    CHECK(put(client, "a", "late", fence_of(9)).status == Status::kFencedWrite);
  }
  const Outcome seen = other.get("a");
  CHECK(other.put("a", "3", KV_IF_VERSION, seen.version + 1).status == Status::kConditionFailed);
  CHECK(other.put("a", "3", KV_IF_VERSION, seen.version).status == Status::kOk);
  CHECK(put(client, "a", "late", fence_of(9)).status == Status::kFencedWrite);
}

TEST_CASE("fence: it outlives the value, and nothing shows of it") {
  StoreNode node(kCapacity);
  StoreClient client(node), other(node);
  const Outcome first = put(client, "a", "1", fence_of(10));
  REQUIRE(first.status == Status::kOk);
  SUBCASE("deleted without a fence") {
    const Outcome removed = other.remove("a");
    CHECK(removed.status == Status::kOk);
    CHECK(removed.version == first.version);
  }
  SUBCASE("deleted with one") {
    CHECK(remove(other, "a", fence_of(11)).status == Status::kOk);
  }
  SUBCASE("expired") {
    REQUIRE(client.put("a", "2", 0, 0, 1).status == Status::kOk);
    REQUIRE(eventually_true([&] { return client.get("a").status == Status::kAbsent; }));
  }
  for (StoreClient* one : {&client, &other}) {
    CHECK(one->get("a").status == Status::kAbsent);
    CHECK(one->contains("a").status == Status::kAbsent);
    CHECK(one->remove("a").status == Status::kAbsent);
  }
  CHECK(client.put("a", "x", KV_IF_VERSION, first.version).status == Status::kConditionFailed);
  CHECK(put(client, "a", "late", fence_of(9)).status == Status::kFencedWrite);
  CHECK(remove(client, "a", fence_of(9)).status == Status::kFencedWrite);
  CHECK(other.put("a", "3", KV_IF_ABSENT).status == Status::kOk);
  CHECK(put(client, "a", "late", fence_of(9)).status == Status::kFencedWrite);
  CHECK(client.get("a").value == "3");
}

TEST_CASE("fence: a delete of what is not there keeps older holders out") {
  StoreNode node(kCapacity);
  StoreClient client(node);
  CHECK(remove(client, "a", fence_of(10)).status == Status::kAbsent);
  CHECK(client.get("a").status == Status::kAbsent);
  CHECK(put(client, "a", "late", fence_of(9)).status == Status::kFencedWrite);
  CHECK(put(client, "a", "mine", fence_of(10)).status == Status::kOk);
}

TEST_CASE("fence: of another lock it is refused; the table's era comes before the token") {
  StoreNode node(kCapacity);
  StoreClient client(node);
  REQUIRE(put(client, "a", "1", fence_of(10, 7, 5)).status == Status::kOk);
  CHECK(put(client, "a", "2", fence_of(11, 8, 5)).status == Status::kFenceMismatch);
  CHECK(put(client, "a", "2", kv_fence{0, 11}).status == Status::kFenceMismatch);
  CHECK(remove(client, "a", fence_of(11, 8, 5)).status == Status::kFenceMismatch);
  CHECK(client.get("a").value == "1");
  // Its node has begun anew meanwhile, and so have the tokens.
  CHECK(put(client, "a", "3", fence_of(1, 7, 6)).status == Status::kOk);
  CHECK(put(client, "a", "2", fence_of(99, 7, 5)).status == Status::kFencedWrite);
  REQUIRE(put(client, "b", "1", kv_fence{0, 3}).status == Status::kOk);
  CHECK(put(client, "b", "1", kv_fence{0, 2}).status == Status::kFencedWrite);
}

TEST_CASE("fence: a damaged one is not taken for none") {
  StoreNode node(kCapacity);
  StoreClient client(node);
  REQUIRE(put(client, "a", "value", fence_of(0x1122334455667788)).status == Status::kOk);
  const uint64_t token = 0x1122334455667788;
  std::string image(client.region_bytes(), '\0');
  region_copy(image.data(), client.region(), image.size());
  const size_t at = image.find(std::string(reinterpret_cast<const char*>(&token), sizeof token));
  REQUIRE(at != std::string::npos);
  client.region()[at] ^= 1;
  CHECK(put(client, "a", "late", fence_of(1)).status == Status::kCorrupt);
  CHECK(client.put("a", "late").status == Status::kCorrupt);
  CHECK(client.get("a").value == "value");
  client.region()[at] ^= 1;
  CHECK(put(client, "a", "late", fence_of(1)).status == Status::kFencedWrite);
}

}  // namespace kvstore::test
