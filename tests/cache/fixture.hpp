// A node and clients of it that make copies, in one process. What a client's port receives can be
// kept from it.

#pragma once

#include <doctest/doctest.h>

#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "fabric/cpu/datagram_port.hpp"
#include "store/service.hpp"
#include "store/walk.hpp"
#include "tests/store/fixture.hpp"

namespace kvstore::test {

// A port that loses what is sent from it while `loses` says so.
struct DeafPort {
  kv_port port;
  PortPtr inner;
  std::shared_ptr<std::atomic<bool>> loses;

  static DeafPort* of(kv_port* port) { return reinterpret_cast<DeafPort*>(port); }
  static uint32_t send(kv_port* port, const kv_datagram_address* to, const void* data,
                       uint32_t bytes) {
    DeafPort* self = of(port);
    if (self->loses->load()) return 1;
    return self->inner->ops->send(self->inner.get(), to, data, bytes);
  }
  static uint32_t receive(kv_port* port, void* into) {
    DeafPort* self = of(port);
    return self->inner->ops->receive(self->inner.get(), into);
  }
  static int wait_descriptor(kv_port* port) {
    DeafPort* self = of(port);
    return self->inner->ops->wait_descriptor(self->inner.get());
  }
  static void destroy(kv_port* port) { delete of(port); }
  static constexpr kv_port_ops kOps = {KV_DATAGRAM_ABI_VERSION, send, receive, wait_descriptor,
                                       destroy};
};

struct CopyingTransport : Transport {
  LocalRegion region;
  std::shared_ptr<std::atomic<bool>> loses;

  CopyingTransport(LocalRegion given, std::shared_ptr<std::atomic<bool>> deaf)
      : region(std::move(given)), loses(std::move(deaf)) {}
  kv_connection* connect(uint32_t, uint64_t, std::string&) override {
    return shm_connection(region.data, region.bytes, region.dead.get());
  }
  uint32_t fabric() const override { return KV_FABRIC_LOCAL; }
  PortPtr open_port(std::string& error) override {
    auto port = std::make_unique<DeafPort>();
    port->inner = open_datagram_port({}, error);
    port->port.ops = &DeafPort::kOps;
    port->port.address = port->inner->address;
    port->loses = loses;
    return PortPtr(&port.release()->port);
  }
};

class CopyingClient {
 public:
  explicit CopyingClient(StoreNode& node, uint64_t cache_bytes = 4 << 20, uint32_t lanes = 2,
                         std::shared_ptr<HostStamps> stamps = nullptr)
      : client(lanes, 1024, {"self"}, true, cache_bytes), node_(node.node()) {
    std::string error;
    LocalRegion region;
    KV_ASSERT(node_.admit_local(registration_, region, error) == Status::kOk);
    region.dead = gone_;
    layout::Superblock superblock;
    std::memcpy(&superblock, region.data, sizeof superblock);
    layout::Geometry geometry;
    KV_ASSERT(read_superblock(superblock, geometry, error));
    region_ = region.data;
    attachment_ = std::make_shared<Attachment>(std::make_unique<CopyingTransport>(region, loses),
                                               superblock, geometry, registration_, 1024);
    refresh(region);
    if (stamps != nullptr) client.share_stamps([stamps](uint64_t) { return stamps; });
    client.attach(0, attachment_);
    // From here on copies may be made.
    while (cache_bytes > 0 && !cache().is_current()) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }
  ~CopyingClient() {
    client.close();
    node_.dismiss(registration_);
  }
  CopyingClient(const CopyingClient&) = delete;
  CopyingClient& operator=(const CopyingClient&) = delete;

  ClientCache& cache() { return *client.member(0).cache; }
  Attachment& attachment() { return *attachment_; }
  uint32_t registration() const { return registration_; }

  Outcome put(const std::string& key, const std::string& value, uint32_t flags = 0,
              uint64_t if_version = 0, uint64_t ttl_ms = 0) {
    kv_call call = StoreClient::call_for(KV_PUT, key);
    call.value = value.data();
    call.value_bytes = value.size();
    call.flags = flags;
    call.if_version = if_version;
    call.ttl_ms = ttl_ms;
    return run(call);
  }
  Outcome get(const std::string& key, uint32_t flags = 0) {
    kv_call call = StoreClient::call_for(KV_GET, key);
    call.flags = flags;
    return run(call);
  }
  Outcome remove(const std::string& key) { return run(StoreClient::call_for(KV_DELETE, key)); }
  Outcome contains(const std::string& key) { return run(StoreClient::call_for(KV_CONTAINS, key)); }
  // Reads until a copy serves it: four times as often as a copy must be read to pay, and some more.
  bool settle(const std::string& key) {
    for (int i = 0; i < 1000; ++i) {
      // Without a lease no copy is made, and a thousand reads take less than a late heartbeat.
      REQUIRE(eventually_true([&] { return cache().is_current(); }));
      const uint64_t before = cache().hits();
      get(key);
      if (cache().hits() != before) return true;
    }
    return false;
  }
  template <class Start>
  Status run_task(Start&& start) {
    Status status = Status::kPending;
    Lane* lane = client.acquire_lane(20 * kSecond, status);
    KV_ASSERT(lane != nullptr);
    Channel& channel = lane->channel(0);
    status = channel.ready(monotonic_ns() + kSecond);
    if (status == Status::kOk) {
      status = lane->run_task([&] { return start(channel); }, monotonic_ns() + 10 * kSecond);
    }
    client.release_lane(*lane);
    return status;
  }
  kv_client_stats stats() {
    kv_client_stats stats{};
    client.read_stats(stats);
    return stats;
  }
  uint64_t verbs() {
    const kv_client_stats s = stats();
    return s.reads + s.writes + s.cas + s.faa;
  }
  layout::CoherenceRecord record_of(const std::string& key) {
    const layout::Geometry& geometry = attachment_->geometry;
    const uint32_t record = geometry.record_of(make_key(key.data(), key.size()).hash);
    layout::CoherenceRecord word;
    std::memcpy(&word, region_ + geometry.record_offset(record), sizeof word);
    return word;
  }
  // As if its process stood still: nothing that it is told is answered.
  void fall_silent() { loses->store(true); }
  void damage_postbox_line() {
    const uint64_t offset = attachment_->geometry.postboxes_offset +
                            registration_ % layout::kClientsMax * layout::kLineBytes;
    region_[offset + offsetof(layout::PostboxLine, address)] ^= 1;
  }

  std::shared_ptr<std::atomic<bool>> loses = std::make_shared<std::atomic<bool>>(false);

 private:
  std::shared_ptr<std::atomic<uint32_t>> gone_ = std::make_shared<std::atomic<uint32_t>>(0);

 public:
  Client client;

  Outcome run(kv_call call, uint64_t timeout_ns = 10 * kSecond) {
    Outcome outcome;
    Status status = Status::kOk;
    Lane* lane = client.acquire_lane(20 * kSecond, status);
    KV_ASSERT(lane != nullptr);
    KV_ASSERT(lane->run(&call, 1, timeout_ns, false) == KV_OK);
    outcome.status = Status(call.status);
    outcome.version = call.version;
    if (call.kind == KV_GET && outcome.status == Status::kOk) {
      outcome.value.assign(static_cast<const char*>(call.data), call.data_bytes);
    }
    client.release_lane(*lane);
    return outcome;
  }

 private:
  void refresh(const LocalRegion& region) {
    Executor executor;
    const Executor::Scope scope(executor);
    kv_connection* connection = shm_connection(region.data, region.bytes, region.dead.get());
    Remote remote;
    remote.bind(connection, &executor);
    Task<Status> task = attachment_->directory.refresh(remote);
    KV_ASSERT(task.done() && task.take() == Status::kOk);
    remote.bind(nullptr, nullptr);
    connection->ops->destroy(connection);
  }

  Node& node_;
  uint32_t registration_ = 0;
  uint8_t* region_ = nullptr;
  std::shared_ptr<Attachment> attachment_;
};

}  // namespace kvstore::test
