// Clients that vanish in the middle of what they do: others go on, nothing acknowledged is lost,
// and everything that the dead held comes back.

#include <thread>

#include "store/walk.hpp"
#include "tests/store/fixture.hpp"

namespace kvstore::test {
namespace {

std::string name(const std::string& prefix, uint64_t i) {
  return prefix + std::to_string(i);
}

// All segments but those of the index.
bool all_free(StoreNode& node) {
  const kv_node_stats stats = node.stats();
  return stats.object_bytes == 0 && stats.segments_free * stats.segment_bytes + stats.index_bytes ==
                                        stats.segments_total * stats.segment_bytes;
}

uint64_t blocks_taken(StoreClient& client) {
  const BlockAllocator& allocator = client.attachment()->allocator;
  uint64_t taken = 0;
  for (unsigned c = 1; c < layout::kSizeClasses; ++c) {
    const uint64_t owned = allocator.owned_blocks(c);
    taken += owned - std::min(owned, allocator.free_blocks(c));
  }
  return taken;
}

// Dies in front of its n-th batch from here on.
void die_at(StoreClient& client, unsigned n) {
  client.fault.before = [&client, n, batch = 0u](const kv_batch&) mutable {
    if (batch++ == n) client.vanish();
  };
}

}  // namespace

TEST_CASE("store: what a client held comes back after it vanished") {
  StoreNode node(uint64_t{64} << 20);
  REQUIRE(all_free(node));
  {
    StoreClient survivor(node);
    StoreClient dead(node);
    for (unsigned i = 0; i < 500; ++i) {
      REQUIRE(dead.put(name("dead-", i), std::string(i * 20, 'd')).status == Status::kOk);
    }
    REQUIRE(dead.put("dead-large", std::string(6u << 20, 'L')).status == Status::kOk);
    dead.vanish();
    CHECK(eventually_true([&] { return node.stats().clients_live == 1; }));
    for (unsigned i = 0; i < 500; ++i) {
      REQUIRE((survivor.get(name("dead-", i)).value == std::string(i * 20, 'd')));
      REQUIRE(survivor.remove(name("dead-", i)).status == Status::kOk);
    }
    REQUIRE(survivor.get("dead-large").value.size() == 6u << 20);
    REQUIRE(survivor.remove("dead-large").status == Status::kOk);
  }
  CHECK(eventually_true([&] { return all_free(node); }));
}

TEST_CASE("store: blocks that a dead client had unlinked come back to their owner") {
  StoreNode node(uint64_t{64} << 20);
  StoreClient owner(node);
  auto dead = std::make_unique<StoreClient>(node);
  {
    // A client that never renews its epoch: nothing leaves a limbo as long as it is there.
    uint32_t holder = 0;
    LocalRegion region;
    std::string error;
    REQUIRE(node.node().admit_local(holder, region, error) == Status::kOk);
    for (unsigned i = 0; i < 200; ++i) {
      REQUIRE(owner.put(name("k", i), std::string(100 + i, 'o')).status == Status::kOk);
    }
    REQUIRE(owner.put("large", std::string(6u << 20, 'L')).status == Status::kOk);
    for (unsigned i = 0; i < 200; ++i) {
      const Outcome done = i % 2 == 0 ? dead->remove(name("k", i)) : dead->put(name("k", i), "x");
      REQUIRE(done.status == Status::kOk);
    }
    REQUIRE(dead->remove("large").status == Status::kOk);
    CHECK(blocks_taken(owner) == 200);
    dead->vanish();
    REQUIRE(node.node().dismiss(holder) == Status::kOk);
  }
  CHECK(eventually_true([&] { return blocks_taken(owner) == 0; }));
  for (unsigned i = 1; i < 200; i += 2) {
    REQUIRE(owner.get(name("k", i)).value == "x");
    REQUIRE(owner.remove(name("k", i)).status == Status::kOk);
  }
  // The extent of the large object has no other owner who would give it back.
  CHECK(eventually_true([&] { return node.stats().object_bytes < 6u << 20; }));
  dead.reset();
}

// A client dies in front of the n-th batch of a write; the survivor finds the key as it was or as
// the dead one was told that it is, and can use it.
void die_in_write(StoreNode& node, StoreClient& survivor, const std::string& what, unsigned n,
                  bool warm) {
  CAPTURE(n);
  CAPTURE(what);
  const std::string key = what + std::to_string(n);
  const bool inserts = what == "insert";
  const bool removes = what == "remove";
  if (!inserts) REQUIRE(survivor.put(key, "old").status == Status::kOk);
  StoreClient dead(node);
  if (warm) {
    REQUIRE(dead.put("warm", std::string(20, 'w')).status == Status::kOk);
    REQUIRE(survivor.remove("warm").status == Status::kOk);
  }
  die_at(dead, n);
  const std::string fresh(what == "large" ? 50'000 : 10, 'f');
  const Outcome done = removes ? dead.remove(key) : dead.put(key, fresh);
  const Outcome now = survivor.get(key);
  if (done.status != Status::kOk) {
    // In front of the batch: nothing of it was applied.
    REQUIRE(now.status == (inserts ? Status::kAbsent : Status::kOk));
    if (!inserts) REQUIRE(now.value == "old");
  } else if (removes) {
    REQUIRE(now.status == Status::kAbsent);
  } else {
    REQUIRE((now.value == fresh));
  }
  if (dead.attachment()->state.load() == Attachment::State::kUp) dead.vanish();
  // The key is as good as any: a tentative entry of the dead blocks nobody.
  REQUIRE(survivor.put(key, "after").status == Status::kOk);
  REQUIRE(survivor.get(key).value == "after");
  REQUIRE(survivor.remove(key).status == Status::kOk);
}

TEST_CASE("store: a client that vanishes in front of any batch of a write leaves nothing behind") {
  StoreNode node(uint64_t{16} << 20);
  {
    StoreClient survivor(node);
    // The first write of a client claims an extent before it writes.
    for (unsigned n = 0; n < 7; ++n) die_in_write(node, survivor, "insert", n, false);
    for (const unsigned n : {1u, 2u}) {
      die_in_write(node, survivor, "insert", n, true);
      die_in_write(node, survivor, "replace", n, true);
      die_in_write(node, survivor, "remove", n, true);
    }
    for (const unsigned n : {5u, 6u, 7u}) die_in_write(node, survivor, "large", n, false);
    CHECK(eventually_true([&] { return blocks_taken(survivor) == 0; }));
  }
  CHECK(eventually_true([&] { return all_free(node); }));
}

TEST_CASE("store: a split whose client vanishes is finished by the node") {
  for (const unsigned n : {2u, 5u, 9u, 12u, 200u, 1000u}) {
    CAPTURE(n);
    StoreNode node(uint64_t{16} << 20);
    StoreClient survivor(node), dead(node);
    uint64_t keys = 0;
    // Up to the first split; the one that would need it dies in it.
    bool dying = false;
    dead.fault.before = [&, batch = 0u](const kv_batch& batch_seen) mutable {
      const kv_op& op = batch_seen.ops[0];
      dying |= op.kind == KV_OP_READ && op.offset == layout::kSplitRecordOffset;
      if (dying && batch++ == n) dead.vanish();
    };
    while (dead.put(name("k", keys), "v").status == Status::kOk && node.stats().global_depth < 2) {
      ++keys;
    }
    REQUIRE(keys > 3000);
    unsigned lost = 0;
    for (uint64_t i = 0; i < keys; ++i) lost += survivor.get(name("k", i)).value != "v";
    CHECK(lost == 0);
    for (uint64_t i = 0; i < 2000; ++i) {
      REQUIRE(survivor.put(name("more", i), "w").status == Status::kOk);
    }
    CHECK(eventually_true([&] { return node.stats().clients_live == 1; }));
    uint64_t counted = 0;
    REQUIRE(survivor.run_task([&](Channel& channel) { return count_keys(channel, counted); }) ==
            Status::kOk);
    CHECK(counted - keys - 2000 <= 1);  // the last put of the dead may have been applied
  }
}

// Clears the node, from another lane or from another client, while a split stands still in front of
// its n-th batch for as long as a clearing takes, and then goes on.
void clear_in_split(unsigned n, bool same_client) {
  CAPTURE(n);
  CAPTURE(same_client);
  StoreNode node(uint64_t{8} << 20);
  StoreClient writer(node), other(node);
  StoreClient& cleaner = same_client ? writer : other;
  std::thread clearing;
  std::atomic<bool> begun{false};
  uint64_t deleted = 0;
  Status status = Status::kPending;
  writer.fault.before = [&, splitting = false, batch = 0u](const kv_batch& seen) mutable {
    if (begun.load()) return;  // also when it is the cleaner's own
    const kv_op& op = seen.ops[0];
    splitting |= op.kind == KV_OP_READ && op.offset == layout::kSplitRecordOffset;
    if (!splitting || batch++ != n) return;
    begun.store(true);
    clearing = std::thread([&] {
      status = cleaner.run_task([&](Channel& channel) { return clear_keys(channel, deleted); });
    });
    usleep(20'000);
  };
  uint64_t keys = 0;
  while (!begun.load()) {
    REQUIRE(writer.put(name("k", keys++), "v").status == Status::kOk);
  }
  clearing.join();
  REQUIRE(status == Status::kOk);
  // The last key was put meanwhile.
  const bool kept = writer.get(name("k", keys - 1)).status == Status::kOk;
  CHECK(deleted + (kept ? 1 : 0) == keys);  // each once
  unsigned left = 0;
  for (uint64_t i = 0; i + 1 < keys; ++i) {
    left += writer.get(name("k", i)).status != Status::kAbsent;
  }
  CHECK(left == 0);
  CHECK(eventually_true([&] { return blocks_taken(writer) == (kept ? 1 : 0); }));
}

TEST_CASE("store: clearing while a split is under way removes every key once and for good") {
  for (const unsigned n : {12u, 40u, 101u}) {
    clear_in_split(n, false);
    clear_in_split(n, true);
  }
}

}  // namespace kvstore::test
