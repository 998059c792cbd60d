// A node and clients of it that use locks, in one process.

#pragma once

#include <doctest/doctest.h>

#include <memory>
#include <string>

#include "fabric/cpu/datagram_port.hpp"
#include "node/node.hpp"
#include "store/hold.hpp"
#include "tests/store/fixture.hpp"

namespace kvstore::test {

class LockNode {
 public:
  LockNode() : store_(layout::kRegionBytesMin) {}
  Node& node() { return store_.node(); }

  // Before any client uses a lock.
  void make_table(const layout::LockTableShape& shape);

 private:
  StoreNode store_;
};

// As a client of a mapped region: its own switch makes the node gone for it alone.
struct LockTransport : Transport {
  LocalRegion region;

  explicit LockTransport(LocalRegion given) : region(std::move(given)) {}
  kv_connection* connect(uint32_t, uint64_t, std::string&) override {
    return shm_connection(region.data, region.bytes, region.dead.get());
  }
  uint32_t fabric() const override { return KV_FABRIC_LOCAL; }
  PortPtr open_port(std::string& error) override { return open_datagram_port({}, error); }
};

class LockClient {
 public:
  explicit LockClient(LockNode& node, uint32_t lanes = 4) : node_(node.node()) {
    client_ = std::make_unique<Client>(lanes, 1, std::vector<std::string>{"self"});
    std::string error;
    LocalRegion region;
    KV_ASSERT(node_.admit_local(registration_, region, error) == Status::kOk);
    region.dead = gone_;
    layout::Superblock superblock;
    std::memcpy(&superblock, region.data, sizeof superblock);
    layout::Geometry geometry;
    KV_ASSERT(read_superblock(superblock, geometry, error));
    attachment_ = std::make_shared<Attachment>(std::make_unique<LockTransport>(region), superblock,
                                               geometry, registration_, 1);
    client_->attach(0, attachment_);
  }
  ~LockClient() {
    client_->close();
    node_.dismiss(registration_);
  }
  LockClient(const LockClient&) = delete;
  LockClient& operator=(const LockClient&) = delete;

  Client& client() { return *client_; }
  Attachment& attachment() { return *attachment_; }

  Status acquire(LockHold& hold, const std::string& name, bool exclusive = true, uint64_t owner = 0,
                 uint64_t timeout_ns = 20 * kSecond) {
    const uint64_t deadline_ns = monotonic_ns() + timeout_ns;
    const Status s = hold.begin({name_of(name), owner, exclusive, false}, deadline_ns);
    return s == Status::kPending ? hold.wait(deadline_ns) : s;
  }
  Status try_acquire(LockHold& hold, const std::string& name, bool exclusive = true) {
    return hold.begin({name_of(name), 0, exclusive, true}, monotonic_ns() + kSecond);
  }

  // As if the process was killed.
  void vanish() {
    gone_->store(1);
    attachment_->state.store(Attachment::State::kDown);
    node_.dismiss(registration_);
  }

  kv_client_stats stats() {
    kv_client_stats stats{};
    client_->read_stats(stats);
    return stats;
  }
  uint64_t resets() const { return attachment_->locks.counts().resets.load(); }
  uint64_t questions() const { return attachment_->locks.counts().questions.load(); }
  // How many threads of this client do.
  uint32_t waiting(const std::string& name) {
    if (!attachment_->locks.is_open()) return 0;
    return lock(name).view(true).waiting + lock(name).view(false).waiting;
  }
  uint32_t holding(const std::string& name) {
    if (!attachment_->locks.is_open()) return 0;
    return lock(name).view(true).holding + lock(name).view(false).holding;
  }
  // Whether its writers have a place in the queue, and wait.
  bool queued(const std::string& name) {
    return attachment_->locks.is_open() && lock(name).view(true).place == LocalLock::Place::kQueued;
  }
  // Another name that has the same lock.
  std::string other_name_of(const std::string& name) {
    for (int i = 0;; ++i) {
      std::string other = "other " + std::to_string(i);
      if (&lock(other) == &lock(name)) return other;
    }
  }

 private:
  static LockName name_of(const std::string& name) {
    return make_lock_name(name.data(), name.size());
  }
  LocalLock& lock(const std::string& name) { return attachment_->locks.lock_of(name_of(name)); }

  Node& node_;
  std::unique_ptr<Client> client_;
  std::shared_ptr<std::atomic<uint32_t>> gone_ = std::make_shared<std::atomic<uint32_t>>(0);
  std::shared_ptr<Attachment> attachment_;
  uint32_t registration_ = 0;
};

inline void LockNode::make_table(const layout::LockTableShape& shape) {
  LockClient first(*this);
  first.attachment().locks.table().want(shape);
  LockHold hold(first.client());
  REQUIRE(first.acquire(hold, "first") == Status::kOk);
  REQUIRE(hold.release() == Status::kOk);
}

}  // namespace kvstore::test
