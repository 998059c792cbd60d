// A client of the store over verbs, in the process of its node: what the benches read with.

#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/assert.hpp"
#include "fabric/verbs_library.hpp"
#include "node/node.hpp"
#include "store/client.hpp"
#include "store/verbs_transport.hpp"

namespace kvstore {

inline constexpr uint32_t kBatch = 32;
inline constexpr uint32_t kKeys = 64;  // of small values; the next one has a large value
inline constexpr size_t kSmallBytes = 64;
inline constexpr size_t kLargeBytes = 1 << 20;

class StoreReader {
 public:
  StoreReader(Node& node, uint32_t address_entries) : client_(1, address_entries, {"self"}) {
    std::string error;
    kv_admission admission{};
    KV_ASSERT(node.admit("bench", admission, error) == Status::kOk);
    kv_node_description description;
    node.describe(description);
    VerbsTarget target;
    target.node = rdma_addresses(description.verbs_gids[0], description.verbs_rails);
    target.registration = admission.registration;
    target.exchange = [&node, admission](uint32_t lane, const kv_verbs_endpoint& mine, uint64_t,
                                         kv_verbs_grant& grant, std::string& line) {
      return node.connect_verbs(admission, lane, mine, grant, line);
    };
    const uint64_t until_ns = monotonic_ns() + 60 * kSecond;
    KV_ASSERT(attach_verbs(client_, 0, target, until_ns, error) == Status::kOk);
    into_.resize(kBatch * kSmallBytes + kLargeBytes);
    for (uint32_t i = 0; i <= kKeys; ++i)
      keys_.push_back("key-0123456789" + std::to_string(10 + i));
    KV_ASSERT(client_.register_memory(into_.data(), into_.size(), error) == Status::kOk);
  }

  void put(uint32_t number, const std::string& value) {
    kv_call call = call_for(KV_PUT, keys_[number]);
    call.value = value.data();
    call.value_bytes = value.size();
    run(&call, 1);
  }
  void get(uint32_t number, size_t bytes) { get_into(number, into_.data(), bytes); }
  // Into memory that is not registered.
  void get_elsewhere(uint32_t number, size_t bytes) {
    elsewhere_.resize(bytes);
    get_into(number, elsewhere_.data(), bytes);
  }
  void get_into(uint32_t number, uint8_t* into, size_t bytes) {
    kv_call call = call_for(KV_GET, keys_[number]);
    call.buffer = into;
    call.buffer_bytes = bytes;
    run(&call, 1);
  }
  kv_client_stats stats() {
    kv_client_stats stats;
    client_.read_stats(stats);
    return stats;
  }
  void get_batch() {
    kv_call calls[kBatch];
    for (uint32_t i = 0; i < kBatch; ++i) {
      calls[i] = call_for(KV_GET, keys_[i]);
      calls[i].buffer = into_.data() + i * kSmallBytes;
      calls[i].buffer_bytes = kSmallBytes;
    }
    run(calls, kBatch);
  }

 private:
  static kv_call call_for(uint32_t kind, const std::string& key) {
    kv_call call{};
    call.kind = kind;
    call.key = key.data();
    call.key_bytes = key.size();
    return call;
  }
  void run(kv_call* calls, uint32_t count) {
    Status status = Status::kOk;
    Lane* lane = client_.acquire_lane(kSecond, status);
    KV_ASSERT(lane != nullptr);
    lane->run(calls, count, 60 * kSecond, false);
    client_.release_lane(*lane);
    for (uint32_t i = 0; i < count; ++i) KV_ASSERT(calls[i].status == KV_OK);
  }

  std::vector<uint8_t> into_, elsewhere_;
  std::vector<std::string> keys_;
  Client client_;
};

}  // namespace kvstore
