// What evictors remember between samples: above all that which should have gone next.

#include <doctest/doctest.h>

#include <vector>

#include "store/eviction_pool.hpp"

namespace kvstore::test {
namespace {

EvictionEntry entry_at(uint64_t offset) {
  return {{offset, {}}, 0, {}, true};
}

std::vector<uint64_t> taken_of(EvictionPool& pool) {
  std::vector<uint64_t> offsets;
  pool.take(1, 1, 0, 0, [&](const EvictionEntry& entry) { offsets.push_back(entry.ref.offset); });
  return offsets;
}

}  // namespace

TEST_CASE("eviction pool: what comes back to a full one takes the place of the last") {
  EvictionPool pool;
  taken_of(pool);
  for (uint64_t i = 1; !pool.full(); ++i) pool.keep(entry_at(i));
  pool.put_back(entry_at(1001));
  pool.put_back(entry_at(1002));
  CHECK(pool.full());
  const std::vector<uint64_t> offsets = taken_of(pool);
  REQUIRE(offsets.size() == EvictionPool::kEntries);
  CHECK(offsets[0] == 1002);
  CHECK(offsets[1] == 1001);
  CHECK(offsets[2] == 1);
  CHECK(offsets.back() == EvictionPool::kEntries - 2);
}

TEST_CASE("eviction pool: what comes back to one with room displaces nothing") {
  EvictionPool pool;
  taken_of(pool);
  pool.put_back(entry_at(7));
  pool.keep(entry_at(8));
  pool.put_back(entry_at(9));
  CHECK(taken_of(pool) == std::vector<uint64_t>{9, 7, 8});
  CHECK(taken_of(pool).empty());
}

}  // namespace kvstore::test
