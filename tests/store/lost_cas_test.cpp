// Connections that break at every batch of a write, with every prefix of it applied: what the
// caller is told is what happened, and no block is lost for good.

#include "tests/index/contents.hpp"
#include "tests/store/fixture.hpp"

namespace kvstore::test {
namespace {

constexpr uint64_t kCapacity = uint64_t{8} << 20;
constexpr unsigned kBatchesMax = 40;
constexpr uint32_t kPrefixes[] = {0, 1, 2, 3, UINT32_MAX};

enum class Write { kInsert, kReplace, kLarge, kIfVersion, kIfAbsent, kRemove };

struct Scene {
  StoreNode node{kCapacity};
  StoreClient client{node};
  StoreClient other{node};
  const std::string key = "the key";
  const std::string small = std::string(3, 'n');
  const std::string large = std::string(100'000, 'n');
  std::string fresh;  // what the write stores

  // Brings the key to the state in which the write can begin; returns its version.
  uint64_t prepare(Write write) {
    fresh = write == Write::kLarge ? large : small;
    if (write == Write::kInsert || write == Write::kIfAbsent) {
      other.remove(key);
      return 0;
    }
    const Outcome put = other.put(key, "old");
    REQUIRE(put.status == Status::kOk);
    return put.version;
  }
  Outcome perform(Write write, uint64_t version) {
    switch (write) {
      case Write::kIfVersion:
        return client.put(key, fresh, KV_IF_VERSION, version);
      case Write::kIfAbsent:
        return client.put(key, fresh, KV_IF_ABSENT);
      case Write::kRemove:
        return client.remove(key);
      default:
        return client.put(key, fresh);
    }
  }
  // Slots in the whole index that lead to anything.
  Contents contents() {
    Contents contents;
    const auto attachment = other.attachment();
    const uint64_t subtable = attachment->directory.entry_at(0).offset();
    for (uint64_t at = 0; at < layout::kSubtableBucketBytes; at += 8) {
      if (at % layout::kBucketBytes == 0) continue;
      uint64_t word;
      region_copy(&word, other.region() + subtable + at, 8);
      contents.slots += layout::Slot{word}.readable();
      contents.tentative += layout::Slot{word}.tentative();
    }
    return contents;
  }
  // All blocks of the client but `kept` are free again, by the limbo or by the scrub.
  bool blocks_come_back(StoreClient& of, uint64_t kept) {
    return eventually_true([&] {
      const BlockAllocator& allocator = of.attachment()->allocator;
      uint64_t taken = 0;
      for (unsigned c = 1; c < layout::kSizeClasses; ++c) {
        taken += allocator.owned_blocks(c) -
                 std::min(allocator.owned_blocks(c), allocator.free_blocks(c));
      }
      return taken <= kept;
    });
  }
};

void break_everywhere(Write write) {
  Scene scene;
  bool ended = false;
  unsigned broken = 0;
  for (unsigned batches = 0; !ended; ++batches) {
    REQUIRE(batches < kBatchesMax);
    for (const uint32_t ops : kPrefixes) {
      const uint64_t version = scene.prepare(write);
      CAPTURE(int(write));
      CAPTURE(batches);
      CAPTURE(ops);
      scene.client.fault = {batches, ops, {}};
      const Outcome outcome = scene.perform(write, version);
      ended = scene.client.fault.batches != UINT64_MAX;  // it has fewer batches
      broken += !ended;
      scene.client.fault = {};
      // One break is mended within the call, and nobody else is there. But an empty slot says not
      // who emptied it.
      const bool unknown = write == Write::kRemove && outcome.status == Status::kOutcomeUnknown;
      REQUIRE((unknown || outcome.status == Status::kOk));
      const Outcome now = scene.other.get(scene.key);
      if (write == Write::kRemove) {
        REQUIRE(now.status == Status::kAbsent);
      } else {
        REQUIRE(now.status == Status::kOk);
        REQUIRE((now.value == scene.fresh));
        REQUIRE(now.version == outcome.version);
      }
      const Contents contents = scene.contents();
      REQUIRE(contents.slots == (write == Write::kRemove ? 0 : 1));
      if (ended) break;
    }
  }
  CHECK(broken >= 10);
  scene.other.remove(scene.key);
  CHECK(scene.blocks_come_back(scene.client, 0));
  // Who lost the answer to a delete does not know whether to retire the block: it stays taken in
  // the extent of its owner, until that one scrubs.
  if (write != Write::kRemove) CHECK(scene.blocks_come_back(scene.other, 0));
  CHECK(scene.contents().tentative == 0);
}

}  // namespace

TEST_CASE("store: a write whose connection breaks anywhere is applied once") {
  break_everywhere(Write::kInsert);
  break_everywhere(Write::kReplace);
  break_everywhere(Write::kLarge);
  break_everywhere(Write::kIfVersion);
  break_everywhere(Write::kIfAbsent);
  break_everywhere(Write::kRemove);
}

TEST_CASE("store: a lost write that others overtook is never told wrongly") {
  Scene scene;
  unsigned unknown = 0, known = 0;
  for (const Write write : {Write::kReplace, Write::kIfVersion, Write::kRemove, Write::kInsert}) {
    bool ended = false;
    for (unsigned batches = 0; !ended; ++batches) {
      for (const uint32_t ops : kPrefixes) {
        const uint64_t version = scene.prepare(write);
        CAPTURE(int(write));
        CAPTURE(batches);
        CAPTURE(ops);
        // The batch after the broken one is the look that resolves it, or a new beginning.
        bool overtaken = false;
        scene.client.fault = {batches, ops, [&](const kv_batch&) {
                                if (scene.client.fault.batches != UINT64_MAX || overtaken) return;
                                overtaken = true;
                                REQUIRE(scene.other.put(scene.key, "theirs").status == Status::kOk);
                              }};
        const Outcome outcome = scene.perform(write, version);
        ended = !overtaken && scene.client.fault.batches != UINT64_MAX;
        scene.client.fault = {};
        if (ended) break;
        if (!overtaken) continue;  // it broke in the last batch
        const Outcome now = scene.other.get(scene.key);
        if (outcome.status == Status::kOk) {
          // Written after the others: nothing of theirs is left.
          ++known;
          if (write == Write::kRemove) {
            REQUIRE(now.status == Status::kAbsent);
          } else {
            REQUIRE((now.value == scene.fresh));
          }
        } else {
          REQUIRE((now.value == "theirs"));
          const bool refused = outcome.status == Status::kConditionFailed;
          REQUIRE((refused || outcome.status == Status::kOutcomeUnknown));
          // Refused means: not applied, so the others replaced what was there before.
          if (refused) REQUIRE(write == Write::kIfVersion);
          unknown += !refused;
        }
        REQUIRE(scene.contents().slots <= 1);
      }
    }
  }
  CHECK(unknown > 0);
  CHECK(known > 0);
}

TEST_CASE("store: a batch of writes over a connection that breaks has an outcome each") {
  Scene scene;
  constexpr unsigned kKeys = 100;
  std::vector<std::string> keys;
  for (unsigned i = 0; i < kKeys; ++i) keys.push_back(std::string("k").append(std::to_string(i)));
  for (const unsigned batches : {0u, 5u, 50u, 130u, 199u, 250u}) {
    std::vector<kv_call> calls;
    const std::string value = std::string("v").append(std::to_string(batches));
    for (const std::string& key : keys) {
      calls.push_back(StoreClient::call_for(KV_PUT, key));
      calls.back().value = value.data();
      calls.back().value_bytes = value.size();
    }
    scene.client.fault = {batches, 1, {}};
    scene.client.run(calls);
    scene.client.fault = {};
    for (unsigned i = 0; i < kKeys; ++i) {
      REQUIRE(Status(calls[i].status) == Status::kOk);
      REQUIRE(scene.other.get(keys[i]).value == value);
    }
  }
}

}  // namespace kvstore::test
