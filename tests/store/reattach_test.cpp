// A client is attached to another incarnation of its node while calls are under way: what belongs
// to the old one never reaches the new one.

#include <thread>

#include "tests/store/fixture.hpp"

namespace kvstore::test {
namespace {

// Two incarnations in which the same key stands in the same slot with the versions that `before`
// and `after` writes give it. `known`: the client remembers the slot, and puts in two round trips.
struct Restart {
  StoreNode old_node{uint64_t{8} << 20};
  StoreNode new_node{uint64_t{8} << 20};
  StoreClient witness{new_node};
  StoreClient other{old_node};
  StoreClient client{old_node};

  Restart(unsigned before, unsigned after, bool known) {
    StoreClient& writer = known ? client : other;
    for (unsigned i = 0; i < before; ++i) REQUIRE(writer.put("key", "old").status == Status::kOk);
    for (unsigned i = 0; i < after; ++i) {
      REQUIRE(witness.put("key", "theirs").status == Status::kOk);
    }
  }
};

void put_beside_restart(bool known, uint32_t executed, unsigned batches, unsigned after) {
  CAPTURE(known);
  CAPTURE(executed);
  CAPTURE(batches);
  CAPTURE(after);
  Restart restart(2, after, known);
  bool attached = false;
  restart.client.fault = {batches, executed, [&](const kv_batch&) {
                            if (restart.client.fault.batches != 0 || attached) return;
                            attached = true;
                            restart.client.attach(restart.new_node);
                          }};
  const Outcome outcome = restart.client.put("key", "mine");
  restart.client.fault = {};
  REQUIRE(attached);
  // Either it began anew on the new node, or it had nothing to do with it.
  const Outcome now = restart.witness.get("key");
  REQUIRE(now.status == Status::kOk);
  REQUIRE(now.value == (outcome.status == Status::kOk ? "mine" : "theirs"));
}

}  // namespace

TEST_CASE("store: a lost write to a node that restarted is not repeated on its successor") {
  for (const bool known : {false, true}) {
    for (const uint32_t executed : {0u, UINT32_MAX}) {
      for (unsigned batches = 0; batches < (known ? 2 : 3); ++batches) {
        for (unsigned after = 1; after <= 4; ++after)
          put_beside_restart(known, executed, batches, after);
      }
    }
  }
}

TEST_CASE("store: a batch under way when the node restarts ends call by call") {
  StoreNode old_node(uint64_t{8} << 20), new_node(uint64_t{8} << 20);
  StoreClient witness(new_node);
  StoreClient client(old_node);
  constexpr unsigned kKeys = 64;
  std::vector<std::string> keys;
  for (unsigned i = 0; i < kKeys; ++i) keys.push_back(std::string("k").append(std::to_string(i)));
  for (const std::string& key : keys) {
    REQUIRE(client.put(key, "old").status == Status::kOk);
    REQUIRE(witness.put(key, "theirs").status == Status::kOk);
  }
  std::vector<kv_call> calls;
  for (const std::string& key : keys) {
    calls.push_back(StoreClient::call_for(KV_PUT, key));
    calls.back().value = "mine";
    calls.back().value_bytes = 4;
  }
  unsigned batch = 0;
  client.fault = {70, 1, [&](const kv_batch&) {
                    if (batch++ == 70) client.attach(new_node);
                  }};
  client.run(calls);
  client.fault = {};
  for (unsigned i = 0; i < kKeys; ++i) {
    const Outcome now = witness.get(keys[i]);
    CAPTURE(i);
    REQUIRE(now.status == Status::kOk);
    REQUIRE((now.value == "mine" || now.value == "theirs"));
    const Status status = Status(calls[i].status);
    REQUIRE((status == Status::kOk || status == Status::kOutcomeUnknown ||
             status == Status::kNodeUnreachable));
  }
}

}  // namespace kvstore::test
