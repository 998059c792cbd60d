// A node and clients of it in one process. A client's connections can be made to fail, and a client
// can vanish as one that was killed does.

#pragma once

#include <doctest/doctest.h>

#include <memory>
#include <string>
#include <vector>

#include "node/node.hpp"
#include "tests/index/fixture.hpp"

namespace kvstore::test {

class StoreNode {
 public:
  explicit StoreNode(uint64_t capacity_bytes, uint32_t eviction = KV_EVICTION_NONE,
                     uint32_t consistency = KV_LINEARIZABLE) {
    kv_node_config config{};
    config.capacity_bytes = capacity_bytes;
    config.eviction = eviction;
    config.consistency = consistency;
    std::string error;
    node_ = Node::open(config, error);
    KV_ASSERT(node_ != nullptr);
  }
  Node& node() { return *node_; }
  kv_node_stats stats() {
    kv_node_stats stats{};
    node_->read_stats(stats);
    return stats;
  }
  void close() { node_.reset(); }

 private:
  std::unique_ptr<Node> node_;
};

// Connections for operations obey `fault`; that of the heartbeat never fails by itself.
struct LossyTransport : Transport {
  LocalRegion region;
  uint32_t lanes;
  Fault* fault;
  Fault none;

  LossyTransport(LocalRegion given, uint32_t operation_lanes, Fault* shared)
      : region(std::move(given)), lanes(operation_lanes), fault(shared) {}
  ~LossyTransport() override {
    if (region.detached) region.detached();
  }
  kv_connection* connect(uint32_t lane, uint64_t, std::string&) override {
    Fault* const chosen = lane < lanes ? fault : &none;
    return lossy_connection(region.data, region.bytes, region.dead.get(), chosen);
  }
  uint32_t fabric() const override { return KV_FABRIC_LOCAL; }
};

struct Outcome {
  Status status = Status::kPending;
  std::string value;
  uint64_t version = 0;
};

class StoreClient {
 public:
  explicit StoreClient(StoreNode& node, uint32_t lanes = 2, uint32_t address_entries = 1024)
      : client(lanes, address_entries, {"self"}), lanes_(lanes) {
    attach(node);
  }
  StoreClient(const StoreClient&) = delete;
  StoreClient& operator=(const StoreClient&) = delete;

  void attach(StoreNode& node) {
    node_ = &node.node();
    std::string error;
    KV_ASSERT(node_->admit_local(registration_, region_, error) == Status::kOk);
    LocalRegion mine = region_;
    // Our own switch: only this client finds the node gone.
    mine.dead = gone_;
    auto transport = std::make_unique<LossyTransport>(std::move(mine), lanes_, &fault);
    layout::Superblock superblock;
    std::memcpy(&superblock, region_.data, sizeof superblock);
    layout::Geometry geometry;
    KV_ASSERT(read_superblock(superblock, geometry, error));
    auto attachment = std::make_shared<Attachment>(std::move(transport), superblock, geometry,
                                                   registration_, client.address_entries());
    refresh(*attachment);
    client.attach(0, std::move(attachment));
  }

  // As if the process was killed: from here on nothing of it executes, and nobody says good-bye.
  void vanish() {
    gone_->store(1);
    attachment()->state.store(Attachment::State::kDown);
    KV_ASSERT(node_->dismiss(registration_) == Status::kOk);
  }

  std::shared_ptr<Attachment> attachment() { return client.attachment(0); }
  uint32_t registration() const { return registration_; }
  uint8_t* region() const { return region_.data; }
  uint64_t region_bytes() const { return region_.bytes; }

  void run(std::vector<kv_call>& calls, uint64_t timeout_ns = 10 * kSecond) {
    with_lane([&](Lane& lane) {
      KV_ASSERT(lane.run(calls.data(), uint32_t(calls.size()), timeout_ns, false) == KV_OK);
      for (kv_call& call : calls) {
        // Values of the lane's own memory are kept past its release.
        if (call.kind != KV_GET || call.status != KV_OK || call.buffer != nullptr) continue;
        const char* data = static_cast<const char*>(call.data);
        kept_for(call).assign(data, data + call.data_bytes);
      }
    });
  }
  Outcome run_one(kv_call call, uint64_t timeout_ns = 10 * kSecond) {
    Outcome outcome;
    with_lane([&](Lane& lane) {
      KV_ASSERT(lane.run(&call, 1, timeout_ns, false) == KV_OK);
      outcome.status = Status(call.status);
      outcome.version = call.version;
      if (call.kind == KV_GET && outcome.status == Status::kOk) {
        outcome.value.assign(static_cast<const char*>(call.data), call.data_bytes);
      }
    });
    return outcome;
  }
  template <class Start>
  Status run_task(Start&& start, uint64_t timeout_ns = 10 * kSecond) {
    Status status = Status::kPending;
    with_lane([&](Lane& lane) {
      Channel& channel = lane.channel(0);
      status = channel.ready(monotonic_ns() + kSecond);
      if (status != Status::kOk) return;
      status = lane.run_task([&] { return start(channel); }, monotonic_ns() + timeout_ns);
    });
    return status;
  }

  Outcome put(const std::string& key, const std::string& value, uint32_t flags = 0,
              uint64_t if_version = 0, uint64_t ttl_ms = 0) {
    kv_call call = call_for(KV_PUT, key);
    call.value = value.data();
    call.value_bytes = value.size();
    call.flags = flags;
    call.if_version = if_version;
    call.ttl_ms = ttl_ms;
    return run_one(call);
  }
  Outcome get(const std::string& key) { return run_one(call_for(KV_GET, key)); }
  Outcome remove(const std::string& key, uint32_t flags = 0, uint64_t if_version = 0) {
    kv_call call = call_for(KV_DELETE, key);
    call.flags = flags;
    call.if_version = if_version;
    return run_one(call);
  }
  Outcome contains(const std::string& key) { return run_one(call_for(KV_CONTAINS, key)); }
  kv_client_stats stats() {
    kv_client_stats stats{};
    client.read_stats(stats);
    return stats;
  }

  static kv_call call_for(uint32_t kind, const std::string& key) {
    kv_call call{};
    call.kind = kind;
    call.key = key.data();
    call.key_bytes = key.size();
    return call;
  }

  // Shared by the lanes: to be set while one thread uses the client.
  Fault fault;

 private:
  std::shared_ptr<std::atomic<uint32_t>> gone_ = std::make_shared<std::atomic<uint32_t>>(0);

 public:
  Client client;

 private:
  template <class Use>
  void with_lane(Use&& use) {
    Status status = Status::kOk;
    Lane* lane = client.acquire_lane(20 * kSecond, status);
    KV_ASSERT(lane != nullptr);
    use(*lane);
    client.release_lane(*lane);
  }
  static std::string& kept_for(kv_call& call) { return *static_cast<std::string*>(call.context); }
  void refresh(Attachment& attachment) {
    Executor executor;
    const Executor::Scope scope(executor);
    std::string error;
    kv_connection* connection = shm_connection(region_.data, region_.bytes, region_.dead.get());
    Remote remote;
    remote.bind(connection, &executor);
    Task<Status> task = attachment.directory.refresh(remote);
    KV_ASSERT(task.done() && task.take() == Status::kOk);
    layout::NodeLine line;
    region_copy(&line, region_.data + layout::kNodeLineOffset, sizeof line);
    attachment.saw_clock(line.clock_ms, boottime_ns());
    remote.bind(nullptr, nullptr);
    connection->ops->destroy(connection);
  }

  const uint32_t lanes_;
  Node* node_ = nullptr;
  uint32_t registration_ = 0;
  LocalRegion region_;
};

// Waits up to ten seconds for `condition`.
template <class Condition>
bool eventually_true(Condition&& condition) {
  const uint64_t end_ns = monotonic_ns() + 10 * kSecond;
  while (!condition()) {
    if (monotonic_ns() > end_ns) return false;
    const timespec pause{0, 1'000'000};
    nanosleep(&pause, nullptr);
  }
  return true;
}

// A value that names its key and its number, and fills its length.
inline std::string value_of(const std::string& key, uint64_t number, size_t bytes) {
  std::string value = key + '#' + std::to_string(number) + '#';
  uint64_t state = number * 0x9e3779b97f4a7c15ull + bytes;
  while (value.size() < bytes) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    value.push_back(char(state >> 56));
  }
  return value;
}

// The number in a value of the key, if the value is whole.
inline bool value_matches(const std::string& value, const std::string& key, uint64_t& number) {
  if (value.compare(0, key.size() + 1, key + '#') != 0) return false;
  number = std::strtoull(value.c_str() + key.size() + 1, nullptr, 10);
  return value == value_of(key, number, value.size());
}

}  // namespace kvstore::test
