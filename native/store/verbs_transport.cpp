#include "store/verbs_transport.hpp"

#include <algorithm>
#include <map>
#include <mutex>

#include "base/assert.hpp"
#include "fabric/cpu/datagram_port.hpp"
#include "store/transports.hpp"

namespace kvstore {
namespace {

// A way to the node: a port of this host, and which of the node's.
struct Rail {
  std::shared_ptr<kv_verbs_port> port;
  uint32_t at_node;
};

class VerbsTransport : public Transport {
 public:
  VerbsTransport(const kv_verbs_api& api, std::vector<Rail> rails, VerbsTarget target)
      : api_(api), rails_(std::move(rails)), target_(std::move(target)) {}

  kv_connection* connect(uint32_t lane, uint64_t deadline_ns, std::string& error) override {
    // A rail that does not even take a queue pair, at either end, is passed over at once. One that
    // loses packets is found out by the connection, and passed over by the lane's next.
    for (size_t tries = 0; tries < rails_.size(); ++tries) {
      bool silent = false;
      kv_connection* const connection =
          connect_over(next_rail(lane), lane, deadline_ns, silent, error);
      if (connection != nullptr || silent) return connection;
    }
    return nullptr;
  }
  bool register_memory(void* memory, uint64_t bytes, std::string& error) override {
    const std::vector<kv_verbs_port*> all = ports();
    for (size_t i = 0; i < all.size(); ++i) {
      char line[512] = "";
      if (api_.register_memory(all[i], memory, bytes, line, sizeof line) == 0) continue;
      error = line;
      while (i-- > 0) api_.unregister_memory(all[i], memory);
      return false;
    }
    return true;
  }
  void unregister_memory(void* memory) override {
    for (kv_verbs_port* port : ports()) api_.unregister_memory(port, memory);
  }
  // Messages are few and small, so they go over the network's ordinary sockets: they need no queue
  // pair, no receive ring and no device that has unreliable datagrams.
  PortPtr open_port(std::string& error) override {
    return open_datagram_port(numeric_address(target_.reached_at), error);
  }
  uint32_t fabric() const override { return KV_FABRIC_VERBS; }
  layout::Domain domain() const override { return layout::Domain::kVerbs; }

 private:
  // The rails of this host's side, each once.
  std::vector<kv_verbs_port*> ports() const {
    std::vector<kv_verbs_port*> all;
    for (const Rail& rail : rails_) {
      if (std::find(all.begin(), all.end(), rail.port.get()) == all.end()) {
        all.push_back(rail.port.get());
      }
    }
    return all;
  }

  const Rail& next_rail(uint32_t lane) {
    const std::lock_guard lock(mutex_);
    const auto [turn, added] = turns_.try_emplace(lane, lane);
    return rails_[turn->second++ % rails_.size()];
  }

  // `silent`: the node was asked and did not answer.
  kv_connection* connect_over(const Rail& rail, uint32_t lane, uint64_t deadline_ns, bool& silent,
                              std::string& error) {
    char line[512] = "";
    kv_verbs_endpoint mine{};
    kv_verbs_grant grant{};
    kv_connection* const connection = api_.prepare(rail.port.get(), &mine, line, sizeof line);
    if (connection == nullptr) {
      error = line;
      return nullptr;
    }
    mine.rail = rail.at_node;
    const uint64_t now_ns = monotonic_ns();
    const uint64_t left_ns = deadline_ns > now_ns ? deadline_ns - now_ns : 1;
    const Status exchanged = target_.exchange(lane, mine, left_ns, grant, error);
    silent = exchanged == Status::kNodeUnreachable;
    const bool granted = exchanged == Status::kOk && grant.region_bytes >= layout::kRegionBytesMin;
    if (granted && api_.establish(connection, &grant, line, sizeof line) == 0) return connection;
    if (granted) error = line;
    if (error.empty()) error = "the node did not connect the queue pair";
    connection->ops->destroy(connection);
    return nullptr;
  }

  const kv_verbs_api& api_;
  const std::vector<Rail> rails_;
  const VerbsTarget target_;
  std::mutex mutex_;
  std::map<uint32_t, uint32_t> turns_;  // by lane: counts its connections
};

// Adds a rail over the port, or over the same one if it has been opened before.
void add_rail(const kv_verbs_api& api, VerbsPort port, uint32_t at_node, std::vector<Rail>& rails) {
  kv_verbs_port_description mine, other;
  api.describe_port(port.get(), &mine);
  for (const Rail& rail : rails) {
    api.describe_port(rail.port.get(), &other);
    if (std::string(mine.device) != other.device || mine.port != other.port ||
        !std::equal(mine.gid, mine.gid + sizeof mine.gid, other.gid)) {
      continue;
    }
    rails.push_back({rail.port, at_node});
    return;
  }
  rails.push_back({std::shared_ptr<kv_verbs_port>(std::move(port)), at_node});
}

// The ways to the node: for each of its addresses the port that packets leave by, where addresses
// tell. A device that was named and is none of those is used as well, and the nearest if there is
// nothing else to go by.
std::vector<Rail> rails_towards(const kv_verbs_api& api, const VerbsTarget& target,
                                std::string& error) {
  std::vector<std::string> names = device_names(target.device);
  if (names.empty()) names.emplace_back();
  std::vector<Rail> rails;
  std::vector<uint32_t> without;
  for (uint32_t i = 0; i < names.size(); ++i) {
    const size_t before = rails.size();
    for (uint32_t at_node = 0; at_node < target.node.size(); ++at_node) {
      RdmaAddress mine{};
      if (!rdma_address_towards(target.node[at_node], mine)) continue;
      VerbsPort port = open_verbs_port(names[i], &mine, error);
      if (port) add_rail(api, std::move(port), at_node, rails);
    }
    if (rails.size() == before) without.push_back(i);
  }
  const uint32_t node_rails = uint32_t(target.node.size());
  for (const uint32_t i : without) {
    for (uint32_t at_node = 0; at_node < node_rails; ++at_node) {
      // Of several devices each gets one of the node's rails, a single one all of them.
      if (names.size() > 1 && at_node != i % node_rails) continue;
      VerbsPort port = open_verbs_port(names[i], nullptr, error);
      if (port) add_rail(api, std::move(port), at_node, rails);
    }
  }
  return rails;
}

}  // namespace

Status attach_verbs(Client& client, uint32_t member, const VerbsTarget& target,
                    uint64_t deadline_ns, std::string& error) {
  const kv_verbs_api* const api = verbs_library(error);
  if (api == nullptr) return Status::kRefused;
  KV_ASSERT(!target.node.empty());
  // Held here too: a transport that fails goes before the connection that it made.
  std::vector<Rail> rails = rails_towards(*api, target, error);
  if (rails.empty()) return Status::kRefused;
  // The first look at the node goes over one rail, so a dead one must not be the only one tried.
  Status status = Status::kNodeUnreachable;
  for (size_t tries = 0; tries < rails.size() && status == Status::kNodeUnreachable; ++tries) {
    if (tries > 0 && monotonic_ns() >= deadline_ns) break;
    error.clear();
    status = take_up(client, member, std::make_unique<VerbsTransport>(*api, rails, target),
                     target.registration, deadline_ns, error);
    std::rotate(rails.begin(), rails.begin() + 1, rails.end());
  }
  return status;
}

}  // namespace kvstore
