// A memory node: the region, the doors through which clients come, and the upkeep that no client
// can do: epochs, leases, fencing, and sweeping after clients that died. It stays off the data
// path.

#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "api/kvstore.h"
#include "fabric/cpu/tcp.hpp"
#include "node/liveness.hpp"
#include "node/prefault.hpp"
#include "node/region.hpp"
#include "node/registry.hpp"
#include "node/shm_door.hpp"
#include "node/sweeper.hpp"
#include "node/upkeep.hpp"
#include "node/verbs_door.hpp"
#include "store/client.hpp"
#include "store/transports.hpp"
#include "store/verbs_transport.hpp"

namespace kvstore {

class Node {
 public:
  static std::unique_ptr<Node> open(const kv_node_config& config, std::string& error);
  ~Node();

  void describe(kv_node_description& description);
  Status admit(const std::string& peer, kv_admission& admission, std::string& error);
  // Admits a client of this process.
  Status admit_local(uint32_t& registration, LocalRegion& region, std::string& error);
  // Of this incarnation of the node, as whoever is in its process knows.
  Status dismiss(uint32_t registration);
  // kAbsent if the token is not that of the registration.
  Status dismiss(const kv_admission& admission);
  // Connects a queue pair of an admitted client, in the place of the lane's earlier one.
  Status connect_verbs(const kv_admission& admission, uint32_t lane,
                       const kv_verbs_endpoint& client, kv_verbs_grant& grant, std::string& error);
  Status set_members(const std::string& cluster_id, const std::string& members, std::string& error);
  void read_stats(kv_node_stats& stats);
  uint32_t clients(kv_client_record* records, uint32_t capacity) {
    return registry_->list(records, capacity, {janitor_registration_.load(), successor_.load()});
  }
  uint32_t ports(kv_port_record* records, uint32_t capacity);
  void drain();
  // See kv_node_revoke.
  void revoke();

 private:
  // A client that had the region mapped and is dead or gone, since its socket hung up.
  struct Gone {
    uint32_t registration;
    bool left;
  };

  Node() = default;
  bool start(const kv_node_config& config, std::string& error);
  bool open_verbs(const kv_node_config& config, std::string& error);
  // A new attachment of the node's own client; the earlier one is fenced. A registration for which
  // that fails is kept for the next attempt: however many fail, they use up no more lines.
  bool attach_janitor(uint64_t timeout_ns, std::string& error);
  bool connect_janitor(uint32_t registration, uint64_t timeout_ns, std::string& error);
  bool open_tcp(const kv_node_config& config, std::string& error);
  bool open_shm(const kv_node_config& config, std::string& error);
  void start_upkeep(uint64_t fence_after_ns);
  void maintain(std::unique_ptr<Liveness> liveness);
  void look_after_janitor();
  void sweep_dead();
  void count_memory(kv_node_stats& stats);
  void count_ports(kv_node_stats& stats);

  // How an attachment of this process finds the node, if it is still there.
  struct Handle {
    std::mutex mutex;
    Node* node = nullptr;
  };

  std::shared_ptr<Region> region_;
  std::shared_ptr<Handle> handle_;
  layout::Geometry geometry_;
  uint64_t node_id_ = 0;
  uint64_t incarnation_ = 0;
  layout::Domain domain_ = layout::Domain::kCpu;
  uint32_t eviction_ = 0;
  uint32_t consistency_ = 0;
  uint64_t lease_ns_ = 0;
  std::string shm_name_;
  std::mutex members_mutex_;
  std::string cluster_id_;
  std::string members_;
  std::shared_ptr<std::atomic<uint32_t>> dead_;
  std::unique_ptr<Registry> registry_;
  std::unique_ptr<VerbsDoor> verbs_;
  std::unique_ptr<TcpAgent> agent_;
  std::unique_ptr<ShmDoor> door_;
  std::unique_ptr<Client> janitor_;  // sweeps; no client of anybody's
  std::atomic<uint32_t> janitor_registration_{0};
  std::atomic<uint32_t> successor_{0};  // admitted, but not attached yet; 0: none
  std::atomic<uint64_t> janitors_{0};   // ever
  uint64_t janitor_tried_ns_ = 0;
  std::unique_ptr<Sweeper> sweeper_;
  std::unique_ptr<Upkeep> upkeep_;
  std::atomic<bool> stopping_{false};
  std::atomic<bool> draining_{false};
  std::atomic<bool> revoked_{false};
  std::atomic<bool> cut_off_{false};  // when that has been carried out
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Gone> hung_up_;
  bool sweep_wanted_ = false;
  std::thread maintenance_;
  std::thread sweeping_;
  std::unique_ptr<Prefault> prefault_;
};

}  // namespace kvstore
