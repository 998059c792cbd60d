#include "node/verbs_door.hpp"

#include <algorithm>

namespace kvstore {
namespace {

// More lanes than a client can have, with its heartbeat and its set-up: whoever asks for more wants
// to use the device up.
constexpr size_t kLanesMax = 1032;

std::string device_of(const kv_verbs_port_description& port) {
  return port.device;
}

}  // namespace

bool one_atomic_domain(const std::vector<kv_verbs_port_description>& ports, std::string& error) {
  for (size_t i = 1; i < ports.size(); ++i) {
    for (size_t before = 0; before < i; ++before) {
      const bool same = device_of(ports[i]) == device_of(ports[before]);
      if (same && ports[i].port == ports[before].port) {
        error = device_of(ports[i]) + ":" + std::to_string(ports[i].port) + " is named twice";
        return false;
      }
      const bool span =
          ports[i].atomics_span_devices != 0 && ports[before].atomics_span_devices != 0;
      if (same || span) continue;
      error =
          device_of(ports[before]) + " and " + device_of(ports[i]) +
          " can't serve one region: the atomics of each exclude its own only, and would destroy "
          "the other's; start one node on each, or name ports of one device (NAME:1,NAME:2)";
      return false;
    }
  }
  return true;
}

bool VerbsDoor::open_ports(const std::string& devices, const RdmaAddress* address,
                           std::string& error) {
  std::vector<std::string> names = device_names(devices);
  if (names.empty()) names.emplace_back();
  if (names.size() > KV_VERBS_RAILS_MAX) {
    error = "at most " + std::to_string(KV_VERBS_RAILS_MAX) + " RDMA devices serve one region";
    return false;
  }
  std::vector<kv_verbs_port_description> ports;
  for (const std::string& name : names) {
    rails_.push_back({open_verbs_port(name, address, error), nullptr});
    if (!rails_.back().port) return false;
    api_->describe_port(rails_.back().port.get(), &ports.emplace_back());
    addresses_.push_back(rdma_addresses(ports.back().gid, 1)[0]);
    devices_ += (devices_.empty() ? "" : ",") + (name.empty() ? device_of(ports.back()) : name);
  }
  return one_atomic_domain(ports, error);
}

std::unique_ptr<VerbsDoor> VerbsDoor::open(const std::string& devices, const std::string& address,
                                           const Region& region, std::string& error) {
  std::unique_ptr<VerbsDoor> door(new VerbsDoor());
  door->api_ = verbs_library(error);
  if (door->api_ == nullptr) return nullptr;
  RdmaAddress wanted{};
  if (!address.empty() && !rdma_address(address, wanted)) {
    error = "'" + address + "' is no IP address";
    return nullptr;
  }
  if (!door->open_ports(devices, address.empty() ? nullptr : &wanted, error)) return nullptr;
  for (Rail& rail : door->rails_) {
    char line[512] = "";
    rail.target =
        door->api_->expose(rail.port.get(), region.data(), region.bytes(), line, sizeof line);
    if (rail.target == nullptr) {
      error = line;
      return nullptr;
    }
  }
  return door;
}

VerbsDoor::~VerbsDoor() {
  for (const auto& [lane, peer] : peers_) api_->dismiss(peer);
  for (const Rail& rail : rails_) {
    if (rail.target != nullptr) api_->withdraw(rail.target);
  }
}

bool VerbsDoor::connect(uint32_t registration, uint32_t lane, const kv_verbs_endpoint& client,
                        kv_verbs_grant& grant, std::string& error) {
  if (client.rail >= rails_.size()) {
    error = "the node has " + std::to_string(rails_.size()) + " rails, and none with the number " +
            std::to_string(client.rail);
    return false;
  }
  const std::lock_guard lock(mutex_);
  const auto begin = peers_.lower_bound({registration, 0});
  const auto end = peers_.upper_bound({registration, UINT32_MAX});
  if (size_t(std::distance(begin, end)) >= kLanesMax) {
    error = "the client has more connections than it can have lanes";
    return false;
  }
  if (!registrations_.admit(registration)) {
    error = "the client has been fenced: attach again";
    return false;
  }
  kv_verbs_peer*& peer = peers_[{registration, lane}];
  if (peer != nullptr) {
    api_->dismiss(peer);
    registrations_.release(registration);
  }
  char line[512] = "";
  peer = api_->accept(rails_[client.rail].target, &client, &grant, line, sizeof line);
  grant.node.rail = client.rail;
  if (peer != nullptr) return true;
  peers_.erase({registration, lane});
  registrations_.release(registration);
  error = line;
  return false;
}

void VerbsDoor::fence(uint32_t registration) {
  const std::lock_guard lock(mutex_);
  registrations_.fence(registration);
  const auto begin = peers_.lower_bound({registration, 0});
  const auto end = peers_.upper_bound({registration, UINT32_MAX});
  for (auto at = begin; at != end; ++at) {
    api_->dismiss(at->second);
    registrations_.release(registration);
  }
  peers_.erase(begin, end);
}

}  // namespace kvstore
