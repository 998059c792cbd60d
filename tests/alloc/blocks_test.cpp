// Blocks inside extents: each is held by one at a time, comes back whoever gives it back, and
// whole extents return to the node.

#include <doctest/doctest.h>

#include <random>
#include <set>
#include <thread>

#include "alloc/allocator.hpp"
#include "tests/index/fixture.hpp"

namespace kvstore::test {
namespace {

using layout::SegmentEntry;

constexpr uint64_t kRegionBytes = uint64_t{16} << 20;

// A client with its allocator. More lanes of it are RawClients of the same registration.
struct Owner {
  RawClient client;
  BlockAllocator allocator{client.segments};

  Owner(FormattedRegion& region, uint32_t registration) : client(region, registration) {}
  TakeResult take(unsigned size_class) { return take(client, size_class); }
  TakeResult take(RawClient& lane, unsigned size_class) {
    return lane.run([&] { return allocator.take(lane.remote, size_class); });
  }
  Status give_back(const std::vector<Block>& blocks) {
    return client.run([&] { return allocator.give_back(client.remote, blocks); });
  }
  Status harvest() {
    return client.run([&] { return allocator.harvest(client.remote, UINT32_MAX); });
  }
  Status release_empty(unsigned kept_class = 0) {
    return client.run([&] { return allocator.release_empty(client.remote, kept_class); });
  }
};

// Who holds each 64 bytes of the region.
class Ledger {
 public:
  explicit Ledger(const FormattedRegion& region)
      : holders_(std::make_unique<std::atomic<uint32_t>[]>(region.bytes() / 64)) {}
  // How many units of the block somebody else holds already.
  unsigned take(Block block, uint32_t holder) { return exchange(block, 0, holder); }
  unsigned free(Block block, uint32_t holder) { return exchange(block, holder, 0); }

 private:
  unsigned exchange(Block block, uint32_t before, uint32_t after) {
    unsigned wrong = 0;
    for (uint64_t at = 0; at < block.bytes(); at += 64) {
      wrong += holders_[(block.offset + at) / 64].exchange(after) != before;
    }
    return wrong;
  }
  std::unique_ptr<std::atomic<uint32_t>[]> holders_;
};

std::vector<Block> take_all(Owner& owner, unsigned size_class) {
  std::vector<Block> blocks;
  for (;;) {
    const TakeResult taken = owner.take(size_class);
    if (taken.status != Status::kOk) return blocks;
    blocks.push_back(taken.block);
  }
}

// So many blocks of a class, and no free one beside them.
std::vector<Block> take_only(Owner& owner, unsigned size_class, unsigned count) {
  std::vector<Block> blocks;
  for (unsigned i = 0; i < count; ++i) blocks.push_back(owner.take(size_class).block);
  while (owner.allocator.take_local(size_class)) {
  }
  return blocks;
}

std::vector<Block> every_third(const std::vector<Block>& blocks) {
  std::vector<Block> chosen;
  for (size_t i = 0; i < blocks.size(); i += 3) chosen.push_back(blocks[i]);
  return chosen;
}

}  // namespace

TEST_CASE("alloc: blocks of all classes are apart and inside the segments") {
  FormattedRegion region(uint64_t{64} << 20);
  Owner owner(region, 1);
  Ledger ledger(region);
  const uint64_t free = region.free_segments();
  std::vector<Block> blocks;
  for (unsigned size_class = 1; layout::class_bytes(size_class) <= (4u << 20); size_class += 3) {
    for (unsigned i = 0; i < (size_class < layout::kLinearClasses ? 40u : 1u); ++i) {
      const TakeResult taken = owner.take(size_class);
      CAPTURE(size_class);
      REQUIRE(taken.status == Status::kOk);
      REQUIRE(taken.block.size_class == size_class);
      REQUIRE(taken.block.offset % layout::kUnitBytes == 0);
      REQUIRE(region.geometry().holds_block(taken.block.offset, size_class));
      REQUIRE(ledger.take(taken.block, 1) == 0);
      blocks.push_back(taken.block);
    }
  }
  REQUIRE(owner.give_back(blocks) == Status::kOk);
  REQUIRE(owner.release_empty() == Status::kOk);
  CHECK(region.free_segments() == free);
}

TEST_CASE("alloc: a block given back is taken again before the extent grows") {
  FormattedRegion region(kRegionBytes);
  Owner owner(region, 1);
  const TakeResult first = owner.take(5);
  REQUIRE(first.status == Status::kOk);
  const uint64_t left = owner.allocator.free_blocks(5);
  CHECK(owner.allocator.owned_blocks(5) == left + 1);
  REQUIRE(owner.give_back({first.block}) == Status::kOk);
  CHECK(owner.allocator.free_blocks(5) == left + 1);
  std::set<uint64_t> seen;
  for (uint64_t i = 0; i <= left; ++i) {
    const std::optional<Block> block = owner.allocator.take_local(5);
    REQUIRE(block.has_value());
    REQUIRE(seen.insert(block->offset).second);
  }
  CHECK(!owner.allocator.take_local(5));
  CHECK(seen.contains(first.block.offset));
}

TEST_CASE("alloc: a node that is full says so, and gives everything again") {
  FormattedRegion region(kRegionBytes);
  Owner owner(region, 1);
  const uint64_t free = region.free_segments();
  const std::vector<Block> blocks = take_all(owner, 16);
  CHECK(blocks.size() * 1024 > free * 65536 * 9 / 10);
  CHECK(region.free_segments() == 0);
  REQUIRE(owner.give_back(blocks) == Status::kOk);
  REQUIRE(owner.release_empty(16) == Status::kOk);  // of this class it keeps what it needs
  CHECK(owner.allocator.free_blocks(16) > 0);
  REQUIRE(owner.release_empty() == Status::kOk);
  CHECK(region.free_segments() == free);
  CHECK(owner.allocator.owned_blocks(16) == 0);
}

TEST_CASE("alloc: what another client gives back, and only that, comes in by the harvest") {
  FormattedRegion region(kRegionBytes);
  Owner owner(region, 1);
  Owner other(region, 2);
  const std::vector<Block> blocks = take_only(owner, 2, 300);
  const std::vector<Block> returned = every_third(blocks);
  REQUIRE(other.give_back(returned) == Status::kOk);
  CHECK(owner.allocator.free_blocks(2) == 0);
  REQUIRE(owner.harvest() == Status::kOk);
  CHECK(owner.allocator.free_blocks(2) == returned.size());
  std::set<uint64_t> expected, got;
  for (const Block& block : returned) expected.insert(block.offset);
  while (const std::optional<Block> block = owner.allocator.take_local(2)) {
    got.insert(block->offset);
  }
  CHECK(got == expected);
  REQUIRE(owner.harvest() == Status::kOk);
  CHECK(owner.allocator.free_blocks(2) == 0);  // the bits were cleared
}

TEST_CASE("alloc: blocks of others go back with a look at each segment and a CAS of each word") {
  FormattedRegion region(kRegionBytes);
  Owner owner(region, 1);
  Owner other(region, 2);
  const std::vector<Block> blocks = take_all(owner, 8);
  std::vector<Block> odd, even;
  std::set<uint64_t> segments;
  for (size_t i = 0; i < blocks.size(); ++i) {
    (i % 2 == 0 ? even : odd).push_back(blocks[i]);
    segments.insert(region.geometry().segment_of(blocks[i].offset));
  }
  const uint64_t words_least = blocks.size() / 64;
  REQUIRE(words_least > segments.size());

  VerbCounts& counts = other.client.remote.counts();
  const uint64_t reads_before = counts.reads.get(), cas_before = counts.cas.get();
  const uint64_t batches_before = counts.round_trips.get();
  REQUIRE(other.give_back(odd) == Status::kOk);
  const uint64_t reads = counts.reads.get() - reads_before;
  const uint64_t words = counts.cas.get() - cas_before;
  CHECK(reads <= 2 * segments.size());
  CHECK(counts.round_trips.get() - batches_before == reads + (words + 63) / 64);
  CHECK(words >= words_least);
  CHECK(words <= words_least + segments.size());
  // What the owner has not yet taken in costs a second CAS of the word.
  REQUIRE(other.give_back(even) == Status::kOk);
  CHECK(counts.cas.get() - cas_before == 3 * words);

  REQUIRE(owner.harvest() == Status::kOk);
  CHECK(owner.allocator.free_blocks(8) == blocks.size());
}

TEST_CASE("alloc: lanes that harvest at the same time take in each block once") {
  FormattedRegion region(kRegionBytes);
  Owner owner(region, 1);
  RawClient second_lane(region, 1);
  Owner other(region, 2);
  const std::vector<Block> blocks = take_only(owner, 2, 200);
  const std::vector<Block> returned(blocks.begin() + 10, blocks.begin() + 20);
  REQUIRE(other.give_back(returned) == Status::kOk);
  // Between the READ of the bitmap and what clears it, the other lane harvests from begin to end.
  bool harvested = false;
  owner.client.fault.before = [&](const kv_batch& batch) {
    if (batch.ops[0].kind != KV_OP_CAS || harvested) return;
    harvested = true;
    REQUIRE(second_lane.run([&] {
      return owner.allocator.harvest(second_lane.remote, UINT32_MAX);
    }) == Status::kOk);
  };
  REQUIRE(owner.harvest() == Status::kOk);
  CHECK(harvested);
  owner.client.fault.before = {};
  REQUIRE(owner.harvest() == Status::kOk);
  CHECK(owner.allocator.free_blocks(2) == returned.size());
}

TEST_CASE("alloc: a harvest takes in whole words that others set more bits of meanwhile") {
  FormattedRegion region(kRegionBytes);
  Owner owner(region, 1);
  Owner other(region, 2);
  const std::vector<Block> blocks = take_only(owner, 2, 200);
  size_t returned = 0;
  const auto give_back_one = [&] { REQUIRE(other.give_back({blocks[returned++]}) == Status::kOk); };
  for (unsigned i = 0; i < 100; ++i) give_back_one();
  // Behind the look at the bitmap, and ahead of each of the first swings of its words.
  unsigned swings = 0;
  owner.client.fault.before = [&](const kv_batch& batch) {
    if (batch.ops[0].kind == KV_OP_CAS && swings++ < 3) give_back_one();
  };
  REQUIRE(owner.harvest() == Status::kOk);
  CHECK(swings == 4);
  CHECK(owner.allocator.free_blocks(2) == returned);
  CHECK(returned == 103);
}

TEST_CASE("alloc: a harvest that was lost, and is executed behind the next one, frees no block") {
  FormattedRegion region(kRegionBytes);
  Owner owner(region, 1);
  Owner other(region, 2);
  const std::vector<Block> blocks = take_only(owner, 2, 300);
  const std::vector<Block> returned = every_third(blocks);
  REQUIRE(other.give_back(returned) == Status::kOk);

  std::vector<kv_op> late;
  owner.client.fault.before = [&](const kv_batch& batch) {
    for (uint32_t i = 0; i < batch.op_count; ++i) {
      if (batch.ops[i].kind != KV_OP_READ) late.push_back(batch.ops[i]);
    }
  };
  owner.client.fault.batches = 1;  // the look at the bitmap
  REQUIRE(owner.harvest() != Status::kOk);
  REQUIRE(late.size() >= 300 / 64);
  owner.client.fault.before = {};
  owner.client.reconnect();
  REQUIRE(owner.harvest() == Status::kOk);
  CHECK(owner.allocator.free_blocks(2) == returned.size());
  owner.client.run([&]() -> Task<uint32_t> { co_return co_await owner.client.remote.batch(late); });
  REQUIRE(owner.harvest() == Status::kOk);
  CHECK(owner.allocator.free_blocks(2) == returned.size());
}

TEST_CASE("alloc: a client takes over extents without an owner when nothing else is left") {
  FormattedRegion region(kRegionBytes);
  Owner gone(region, 1);
  Owner other(region, 2);
  std::vector<Block> blocks = take_all(gone, 8);
  const size_t half = blocks.size() / 2;
  CHECK(other.take(8).status == Status::kOutOfMemory);
  // What a sweep leaves behind: bits of the dead blocks, heads that say `adoptable`.
  REQUIRE(other.give_back({blocks.begin(), blocks.begin() + long(half)}) == Status::kOk);
  for (uint64_t i = 0; i < region.geometry().segment_count; ++i) {
    const SegmentEntry head = region.entry(i);
    if (head.kind() != SegmentEntry::kObjects) continue;
    const SegmentEntry adoptable =
        head.successor(SegmentEntry::kAdoptable, 0, head.run(), head.size_class());
    std::memcpy(region.data() + region.geometry().entry_offset(i), &adoptable.word, 8);
  }
  usleep(5000);  // a full table is not looked at by every put
  CHECK(other.take(9).status == Status::kOutOfMemory);  // another class
  usleep(5000);
  std::set<uint64_t> got, expected;
  for (const Block& block : take_all(other, 8)) got.insert(block.offset);
  for (size_t i = 0; i < half; ++i) expected.insert(blocks[i].offset);
  CHECK(got == expected);
}

TEST_CASE("alloc: an extent that is given up serves another client, live blocks and all") {
  FormattedRegion region(kRegionBytes);
  Owner owner(region, 1);
  Owner other(region, 2);
  Ledger ledger(region);
  std::vector<Block> kept = take_all(owner, 4);
  for (const Block& block : kept) REQUIRE(ledger.take(block, 1) == 0);
  std::vector<Block> freed;
  for (size_t i = 0; i < kept.size(); i += 2) {
    REQUIRE(ledger.free(kept[i], 1) == 0);
    freed.push_back(kept[i]);
  }
  REQUIRE(owner.give_back(freed) == Status::kOk);
  const uint64_t owned = owner.allocator.owned_blocks(4);
  REQUIRE(owner.client.run([&] { return owner.allocator.yield(owner.client.remote, 4); }) ==
          Status::kOk);
  CHECK(owner.allocator.owned_blocks(4) < owned);
  unsigned got = 0, shared = 0;
  for (const Block& block : take_all(other, 4)) {
    shared += ledger.take(block, 2);
    ++got;
  }
  CHECK(got > 0);
  CHECK(shared == 0);
  // What the first owner still holds there goes back through the bitmap to the new one.
  std::vector<Block> rest;
  for (size_t i = 1; i < kept.size(); i += 2) rest.push_back(kept[i]);
  REQUIRE(owner.give_back(rest) == Status::kOk);
  for (const Block& block : rest) REQUIRE(ledger.free(block, 1) == 0);
  REQUIRE(other.harvest() == Status::kOk);
  unsigned more = 0;
  while (const std::optional<Block> block = other.allocator.take_local(4)) {
    shared += ledger.take(*block, 2);
    ++more;
  }
  CHECK(more > 0);
  CHECK(shared == 0);
}

TEST_CASE("alloc: several lanes and clients never hold one block twice, and all of it comes back") {
  FormattedRegion region(kRegionBytes);
  const uint64_t free = region.free_segments();
  Ledger ledger(region);
  {
    Owner owners[2] = {{region, 1}, {region, 2}};
    std::mutex mutex;
    std::vector<std::pair<Block, uint32_t>> pool;  // held blocks, given back by whoever comes
    std::atomic<unsigned> wrong{0}, taken_count{0};
    const unsigned rounds = sanitized() ? 1500 : 40'000;
    const auto work = [&](Owner& owner, uint32_t holder) {
      RawClient lane(region, owner.client.registration());
      std::mt19937 random(holder);
      for (unsigned round = 0; round < rounds; ++round) {
        const unsigned size_class = random() % 3 == 0 ? 70 : 1 + random() % 3;
        const TakeResult taken = owner.take(lane, size_class);
        if (taken.status == Status::kOk) {
          wrong += ledger.take(taken.block, holder);
          ++taken_count;
        } else {
          wrong += taken.status != Status::kOutOfMemory;
        }
        std::pair<Block, uint32_t> victim{};
        {
          const std::lock_guard lock(mutex);
          if (taken.status == Status::kOk) pool.push_back({taken.block, holder});
          if (pool.size() > 3000 || (taken.status != Status::kOk && !pool.empty())) {
            std::swap(pool[random() % pool.size()], pool.back());
            victim = pool.back();
            pool.pop_back();
          }
        }
        if (victim.second != 0) {
          wrong += ledger.free(victim.first, victim.second);
          const std::vector<Block> one{victim.first};
          wrong +=
              lane.run([&] { return owner.allocator.give_back(lane.remote, one); }) != Status::kOk;
        }
        if (round % 64 == 0) {
          lane.run([&] { return owner.allocator.harvest(lane.remote, 8); });
          lane.run([&] { return owner.allocator.release_empty(lane.remote, 0); });
        }
      }
    };
    std::vector<std::thread> threads;
    for (uint32_t t = 0; t < 4; ++t) {
      threads.emplace_back([&, t] { work(owners[t % 2], t + 1); });
    }
    for (std::thread& thread : threads) thread.join();
    CHECK(wrong == 0);
    CHECK(taken_count > rounds);
    for (const auto& [block, holder] : pool) REQUIRE(owners[0].give_back({block}) == Status::kOk);
    for (Owner& owner : owners) {
      REQUIRE(owner.harvest() == Status::kOk);
      REQUIRE(owner.release_empty() == Status::kOk);
    }
  }
  CHECK(region.free_segments() == free);
}

}  // namespace kvstore::test
