// A node of the sim fabric for rules that use connections from several threads: whoever polls holds
// the lock and lets virtual time go on until something arrives for it.

#pragma once

#include <memory>
#include <mutex>

#include "fabric/sim/sim.hpp"
#include "tcp_node.hpp"

namespace kvstore::test {

class LockedSimNode {
 public:
  explicit LockedSimNode(uint64_t region_bytes, const sim::SimTiming& timing, uint64_t seed = 1)
      : region_(region_bytes),
        schedule_(seed),
        node_(schedule_, static_cast<uint8_t*>(region_.data()), region_bytes, timing) {}

  ConnectionPtr connect() {
    const std::lock_guard lock(mutex_);
    auto connection = std::make_unique<Connection>();
    connection->inner = node_.connect(1, next_lane_++);
    REQUIRE(connection->inner != nullptr);
    static_cast<kv_connection&>(*connection) = *connection->inner;
    connection->ops = &kOps;
    connection->owner = this;
    return ConnectionPtr(connection.release());
  }
  void kill() {
    const std::lock_guard lock(mutex_);
    node_.kill();
  }
  uint64_t word(uint64_t offset) const {
    const std::lock_guard lock(mutex_);
    return region_.word(offset);
  }

 private:
  struct Connection : kv_connection {
    kv_connection* inner;
    LockedSimNode* owner;
  };

  // Does something with the inner connection, and shows its state.
  template <class Use>
  static auto with(kv_connection* connection, Use&& use) {
    Connection& self = *static_cast<Connection*>(connection);
    const std::lock_guard lock(self.owner->mutex_);
    const auto result = use(*self.inner, self.owner->schedule_);
    self.broken = self.inner->broken;
    return result;
  }
  static uint32_t post(kv_connection* connection, kv_batch* batch) {
    return with(connection, [&](kv_connection& inner, sim::Schedule&) {
      return inner.ops->post(&inner, batch);
    });
  }
  static uint32_t poll(kv_connection* connection) {
    return with(connection, [&](kv_connection& inner, sim::Schedule& schedule) {
      uint32_t completed = inner.ops->poll(&inner);
      while (completed == 0 && inner.broken == 0 && schedule.run_next()) {
        completed = inner.ops->poll(&inner);
      }
      return completed;
    });
  }
  static int wait_descriptor(kv_connection*, short*) { return -1; }
  static void close(kv_connection* connection) {
    with(connection, [](kv_connection& inner, sim::Schedule&) {
      inner.ops->close(&inner);
      return 0;
    });
  }
  static void destroy(kv_connection* connection) {
    with(connection, [](kv_connection& inner, sim::Schedule&) {
      inner.ops->close(&inner);
      return 0;
    });
    Connection* self = static_cast<Connection*>(connection);
    const std::lock_guard lock(self->owner->mutex_);
    self->inner->ops->destroy(self->inner);
    delete self;
  }
  static constexpr kv_connection_ops kOps = {KV_FABRIC_ABI_VERSION, post,  poll,
                                             wait_descriptor,       close, destroy};

  mutable std::mutex mutex_;
  PrivateRegion region_;
  sim::Schedule schedule_;
  sim::SimNode node_;
  uint32_t next_lane_ = 0;
};

}  // namespace kvstore::test
