// What the sim fabric promises beyond the rules of every fabric: one seed is one history, transfers
// tear, broken connections leave every legal remainder, and a fence is final.

#include "fabric/sim/sim.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <set>
#include <vector>

#include "base/crc32c.hpp"
#include "conformance.hpp"

namespace kvstore::test {
namespace {

constexpr uint64_t kBytes = 1 << 16;

// A node and the time in which it lives.
struct World {
  explicit World(uint64_t seed, const sim::SimTiming& timing = {})
      : region(kBytes / 8, 0), schedule(seed), node(schedule, bytes(), kBytes, timing) {}
  uint8_t* bytes() { return reinterpret_cast<uint8_t*>(region.data()); }
  ConnectionPtr connect(uint32_t registration, uint32_t lane = 0) {
    return ConnectionPtr(node.connect(registration, lane));
  }
  void run() {
    while (schedule.run_next()) {
    }
  }
  // Runs until the batch is done.
  void finish(kv_connection& connection, const TestBatch& batch) {
    while (!batch.done()) {
      if (connection.ops->poll(&connection) > 0) continue;
      REQUIRE(schedule.run_next());
    }
  }

  std::vector<uint64_t> region;
  sim::Schedule schedule;
  sim::SimNode node;
};

kv_op read_word(uint64_t offset, uint64_t& into) {
  return read_into(offset, &into, 8);
}

sim::SimTiming torn_timing() {
  sim::SimTiming timing;
  timing.pieces_max = sim::SimNode::kPiecesLimit;
  timing.step_ns_max = 2000;
  return timing;
}

// What two clients see who write and read 64 words at the same time; a digest of all of it.
uint32_t digest_of(uint64_t seed, unsigned& torn) {
  World world(seed, torn_timing());
  const ConnectionPtr writer = world.connect(1), reader = world.connect(2);
  uint32_t digest = 0;
  for (uint64_t round = 1; round <= 40; ++round) {
    std::array<uint64_t, 64> written{}, seen{};
    written.fill(round);
    TestBatch write({write_from(64, written.data(), sizeof written)});
    TestBatch read({read_into(64, seen.data(), sizeof seen)});
    write.post(*writer);
    read.post(*reader);
    world.finish(*writer, write);
    world.finish(*reader, read);
    torn += seen.front() != seen.back();
    for (const uint64_t word : seen) CHECK((word == round || word == round - 1));
    digest = crc32c(digest, seen.data(), sizeof seen);
    const uint64_t now_ns = world.schedule.now_ns();
    digest = crc32c(digest, &now_ns, sizeof now_ns);
  }
  return digest;
}

}  // namespace

TEST_CASE("sim fabric: one seed is one history, another seed another one") {
  std::set<uint32_t> digests;
  unsigned torn = 0;
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    const uint32_t digest = digest_of(seed, torn);
    CHECK(digest == digest_of(seed, torn));
    digests.insert(digest);
  }
  CHECK(digests.size() == 20);
  CHECK(torn > 20);
}

TEST_CASE("sim fabric: an unaligned transfer tears at the words of the region only") {
  for (uint64_t seed = 1; seed <= 50; ++seed) {
    World world(seed, torn_timing());
    const ConnectionPtr writer = world.connect(1), reader = world.connect(2);
    std::array<uint8_t, 29> ones{}, seen{};
    ones.fill(1);
    TestBatch write({write_from(67, ones.data(), ones.size())});
    TestBatch read({read_into(67, seen.data(), seen.size())});
    write.post(*writer);
    read.post(*reader);
    world.finish(*writer, write);
    world.finish(*reader, read);
    for (size_t i = 1; i < seen.size(); ++i) {
      if ((67 + i) % 8 != 0) CHECK(seen[i] == seen[i - 1]);
    }
  }
}

TEST_CASE("sim fabric: a break leaves a prefix executed, any prefix") {
  std::set<uint64_t> remainders;
  for (uint64_t seed = 1; seed <= 400; ++seed) {
    World world(seed);
    const ConnectionPtr connection = world.connect(1);
    std::vector<kv_op> ops;
    for (uint64_t i = 0; i < 6; ++i) ops.push_back(fetch_and_add(i * 8, 1));
    TestBatch batch(ops);
    batch.post(*connection);
    for (uint64_t n = world.schedule.random().below(8); n > 0; --n) world.schedule.run_next();
    world.node.break_connections(1);
    world.run();
    connection->ops->poll(connection.get());
    REQUIRE(batch.done());
    const uint64_t executed = uint64_t(std::count(&world.region[0], &world.region[6], 1));
    for (uint64_t i = 0; i < executed; ++i) CHECK(world.region[i] == 1);
    CHECK((batch.status() == KV_FABRIC_LOST || (batch.status() == KV_FABRIC_OK && executed == 6)));
    if (batch.status() == KV_FABRIC_LOST) remainders.insert(executed);
  }
  CHECK(remainders == std::set<uint64_t>{0, 1, 2, 3, 4, 5, 6});
}

TEST_CASE("sim fabric: what a client gave up may still execute, with the bytes that it had") {
  unsigned late = 0;
  for (uint64_t seed = 1; seed <= 100; ++seed) {
    World world(seed);
    ConnectionPtr connection = world.connect(1);
    auto source = std::make_unique<std::array<uint64_t, 4>>();
    source->fill(7);
    TestBatch batch({write_from(0, source->data(), 32), compare_and_swap(32, 0, 7)});
    batch.post(*connection);
    connection->ops->close(connection.get());
    CHECK(batch.status() == KV_FABRIC_LOST);
    source->fill(9);
    source.reset();
    connection.reset();
    CHECK(world.region[0] == 0);
    world.run();
    CHECK((world.region[0] == 0 || world.region[0] == 7));
    if (world.region[4] == 7) CHECK(world.region[3] == 7);
    late += world.region[4] == 7;
    CHECK((world.region[4] == 0 || world.node.counts().orphans == 2));
  }
  CHECK(late > 10);
  CHECK(late < 90);
}

TEST_CASE("sim fabric: a new connection of a lane ends the old one at the node") {
  for (uint64_t seed = 1; seed <= 100; ++seed) {
    World world(seed);
    const ConnectionPtr old = world.connect(1, 3), other = world.connect(1, 4);
    TestBatch lost({fetch_and_add(0, 1)}), unharmed({fetch_and_add(8, 1)});
    lost.post(*old);
    unharmed.post(*other);
    old->ops->close(old.get());
    for (uint64_t n = world.schedule.random().below(4); n > 0; --n) world.schedule.run_next();
    const ConnectionPtr again = world.connect(1, 3);
    const uint64_t at_reconnect = world.region[0];
    uint64_t seen = 0;
    TestBatch read({read_word(0, seen)});
    read.post(*again);
    world.finish(*again, read);
    world.finish(*other, unharmed);
    world.run();
    CHECK(seen == at_reconnect);
    CHECK(world.region[0] == at_reconnect);
    CHECK(world.region[1] == 1);
  }
}

TEST_CASE("sim fabric: after a fence nothing of the client executes, and it can't come back") {
  for (uint64_t seed = 1; seed <= 100; ++seed) {
    World world(seed);
    const ConnectionPtr fenced = world.connect(1), other = world.connect(2);
    TestBatch batch({fetch_and_add(0, 1), fetch_and_add(8, 1)}), more({fetch_and_add(16, 1)});
    batch.post(*fenced);
    for (uint64_t n = world.schedule.random().below(3); n > 0; --n) world.schedule.run_next();
    world.node.fence(1);
    const auto at_fence = world.region;
    world.run();
    CHECK(world.region == at_fence);
    CHECK(world.node.connect(1, 9) == nullptr);
    fenced->ops->poll(fenced.get());
    CHECK(batch.done());
    CHECK(fenced->broken == 1);
    more.post(*other);
    world.finish(*other, more);
    CHECK(more.status() == KV_FABRIC_OK);
  }
}

TEST_CASE("sim fabric: connections break by chance, and only then are batches lost") {
  sim::SimTiming timing;
  timing.breaks_per_million = 100'000;
  World world(5, timing);
  unsigned lost = 0;
  uint64_t sure = 0;
  constexpr unsigned kBatches = 1000;
  for (unsigned n = 0; n < kBatches; ++n) {
    const ConnectionPtr connection = world.connect(1);
    TestBatch batch({fetch_and_add(0, 1)});
    batch.post(*connection);
    world.finish(*connection, batch);
    lost += batch.status() == KV_FABRIC_LOST;
    sure += batch.status() == KV_FABRIC_OK;
  }
  world.run();
  CHECK(world.node.counts().breaks > kBatches / 20);
  CHECK(lost > 0);
  CHECK(lost <= world.node.counts().breaks);
  CHECK(world.region[0] >= sure);
  CHECK(world.region[0] <= kBatches);
}

}  // namespace kvstore::test
