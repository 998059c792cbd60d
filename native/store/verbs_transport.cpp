#include "store/verbs_transport.hpp"

#include <algorithm>

#include "fabric/cpu/datagram_port.hpp"
#include "store/transports.hpp"

namespace kvstore {
namespace {

class VerbsTransport : public Transport {
 public:
  VerbsTransport(const kv_verbs_api& api, std::shared_ptr<kv_verbs_port> port, VerbsTarget target)
      : api_(api), port_(std::move(port)), target_(std::move(target)) {}

  kv_connection* connect(uint32_t lane, uint64_t deadline_ns, std::string& error) override {
    char line[512] = "";
    kv_verbs_endpoint mine{};
    kv_verbs_grant grant{};
    kv_connection* const connection = api_.prepare(port_.get(), &mine, line, sizeof line);
    if (connection == nullptr) {
      error = line;
      return nullptr;
    }
    const uint64_t now_ns = monotonic_ns();
    const uint64_t left_ns = deadline_ns > now_ns ? deadline_ns - now_ns : 1;
    const Status exchanged = target_.exchange(lane, mine, left_ns, grant, error);
    const bool granted = exchanged == Status::kOk && grant.region_bytes >= layout::kRegionBytesMin;
    if (granted && api_.establish(connection, &grant, line, sizeof line) == 0) return connection;
    if (granted) error = line;
    if (error.empty()) error = "the node did not connect the queue pair";
    connection->ops->destroy(connection);
    return nullptr;
  }
  bool register_memory(void* memory, uint64_t bytes, std::string& error) override {
    char line[512] = "";
    if (api_.register_memory(port_.get(), memory, bytes, line, sizeof line) == 0) return true;
    error = line;
    return false;
  }
  // Messages are few and small, so they go over the network's ordinary sockets: they need no queue
  // pair, no receive ring and no device that has unreliable datagrams.
  PortPtr open_port(std::string& error) override {
    return open_datagram_port(numeric_address(target_.reached_at), error);
  }
  void unregister_memory(void* memory) override { api_.unregister_memory(port_.get(), memory); }
  uint32_t fabric() const override { return KV_FABRIC_VERBS; }
  layout::Domain domain() const override { return layout::Domain::kVerbs; }

 private:
  const kv_verbs_api& api_;
  const std::shared_ptr<kv_verbs_port> port_;
  const VerbsTarget target_;
};

// The port that packets to the node leave by, where addresses tell; else the nearest active one.
VerbsPort port_towards(const VerbsTarget& target, std::string& error) {
  RdmaAddress mine{};
  if (rdma_address_towards(target.node, mine)) {
    if (VerbsPort port = open_verbs_port(target.device, &mine, error)) return port;
  }
  return open_verbs_port(target.device, nullptr, error);
}

}  // namespace

Status attach_verbs(Client& client, uint32_t member, const VerbsTarget& target,
                    uint64_t deadline_ns, std::string& error) {
  const kv_verbs_api* const api = verbs_library(error);
  if (api == nullptr) return Status::kRefused;
  // Held here too: a transport that fails goes before the connection that it made.
  const std::shared_ptr<kv_verbs_port> port = port_towards(target, error);
  if (!port) return Status::kRefused;
  return take_up(client, member, std::make_unique<VerbsTransport>(*api, port, target),
                 target.registration, deadline_ns, error);
}

}  // namespace kvstore
