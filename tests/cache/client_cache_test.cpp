// What a client makes of the word that others change a key.

#include "cache/client_cache.hpp"

#include <doctest/doctest.h>

#include <string>

#include "base/crc32c.hpp"

namespace kvstore::test {
namespace {

constexpr uint32_t kRecord = 3;
constexpr int kReads = 2;

struct Owner {
  Owner() {
    term = cache.bind();
    cache.renew(term, boottime_ns() + 60 * kSecond, 0);
  }
  // A key that has been read a few times, each time from the node.
  void read(int times) {
    cache.met(key.hash);
    for (int i = 0; i < times; ++i) cache.unchanged(key.hash);
  }
  kv_copy_state state() const {
    kv_copy_state state;
    cache.read_state(key, state);
    return state;
  }

  const std::string name = "key";
  const Key key = make_key(name.data(), name.size());
  ClientCache cache{1 << 20};
  uint64_t term = 0;
};

}  // namespace

TEST_CASE("client cache: a change of what it has no copy of is a change all the same") {
  Owner owner;
  owner.read(kReads);
  CHECK(owner.cache.wants(owner.key, 10));
  CHECK(owner.cache.drop(owner.key.hash, kRecord, ClientCache::By::kOther));
  CHECK(!owner.cache.wants(owner.key, 10));
  CHECK(owner.state().reads_to_wait > 0);
}

TEST_CASE("client cache: a copy that came too late counts as one that nobody has read") {
  Owner owner;
  owner.read(kReads);
  {
    ClientCache::Fill fill;
    REQUIRE(owner.cache.begin_fill(owner.key.hash, kRecord, owner.term, {}, fill));
    fill.found_changed();
  }
  CHECK(!owner.cache.wants(owner.key, 10));
  CHECK(owner.state().reads_to_wait > 0);
}

TEST_CASE("client cache: a change during the making of a copy counts once, however that ends") {
  for (const bool finishes : {false, true}) {
    CAPTURE(finishes);
    Owner owner;
    const std::string value = "value";
    owner.read(kReads);
    ClientCache::Fill fill;
    REQUIRE(owner.cache.begin_fill(owner.key.hash, kRecord, owner.term, {}, fill));
    CHECK(!owner.cache.drop(owner.key.hash, kRecord, ClientCache::By::kOther));
    const uint32_t crc =
        crc32c(crc32c(0, owner.key.data, owner.key.bytes), value.data(), value.size());
    CopyFacts facts;
    facts.value_bytes = value.size();
    facts.record = kRecord;
    if (finishes) fill.finish(owner.key, facts, value.data(), crc);
    fill.abandon();
    CHECK(!owner.cache.wants(owner.key, 10));
    CHECK(owner.cache.storage().entries() == 0);
    // One poor change is made up for by one good one, two are not.
    owner.read(int(2 * owner.state().uses_that_pay));
    CHECK(owner.cache.drop(owner.key.hash, kRecord, ClientCache::By::kOther));
    CHECK(owner.cache.wants(owner.key, 10));
  }
}

}  // namespace kvstore::test
