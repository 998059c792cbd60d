#include "node/verbs_door.hpp"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>

#include "base/assert.hpp"

namespace kvstore {
namespace {

// More lanes than a client can have, with its heartbeat and its set-up: whoever asks for more wants
// to use the device up.
constexpr size_t kLanesMax = 1032;
constexpr int kServeAgainMs = 1000;

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
    Rail& rail = rails_.emplace_back();
    rail.port = open_verbs_port(name, address, error);
    if (!rail.port) return false;
    api_->describe_port(rail.port.get(), &ports.emplace_back());
    rail.name = name.empty() ? device_of(ports.back()) : name;
    addresses_.push_back(rdma_addresses(ports.back().gid, 1)[0]);
    devices_ += (devices_.empty() ? "" : ",") + rail.name;
  }
  return one_atomic_domain(ports, error);
}

std::unique_ptr<VerbsDoor> VerbsDoor::open(const std::string& devices, const std::string& address,
                                           const Region& region, std::string& error) {
  std::unique_ptr<VerbsDoor> door(new VerbsDoor(region));
  door->api_ = verbs_library(error);
  if (door->api_ == nullptr) return nullptr;
  RdmaAddress wanted{};
  if (!address.empty() && !rdma_address(address, wanted)) {
    error = "'" + address + "' is no IP address";
    return nullptr;
  }
  if (!door->open_ports(devices, address.empty() ? nullptr : &wanted, error)) return nullptr;
  for (Rail& rail : door->rails_) {
    rail.target = door->expose(rail.port.get(), error);
    if (rail.target == nullptr) return nullptr;
  }
  door->stop_descriptor_ = ::eventfd(0, EFD_CLOEXEC);
  KV_ASSERT(door->stop_descriptor_ >= 0);
  door->watcher_ = std::thread([watched = door.get()] { watched->watch(); });
  return door;
}

VerbsDoor::~VerbsDoor() {
  if (watcher_.joinable()) {
    stopping_.store(true);
    const uint64_t one = 1;
    [[maybe_unused]] const ssize_t written = ::write(stop_descriptor_, &one, sizeof one);
    watcher_.join();
  }
  if (stop_descriptor_ >= 0) ::close(stop_descriptor_);
  for (const auto& [lane, peer] : peers_) api_->dismiss(peer.end);
  for (const Rail& rail : rails_) {
    if (rail.target != nullptr) api_->withdraw(rail.target);
  }
}

kv_verbs_target* VerbsDoor::expose(kv_verbs_port* port, std::string& error) {
  char line[512] = "";
  kv_verbs_target* const target =
      api_->expose(port, region_.data(), region_.bytes(), line, sizeof line);
  if (target == nullptr) error = line;
  return target;
}

// ---- Clients --------------------------------------------------------------------------------

bool VerbsDoor::connect(uint32_t registration, uint32_t lane, const kv_verbs_endpoint& client,
                        kv_verbs_grant& grant, std::string& error) {
  if (client.rail >= addresses_.size()) {
    error = "the node has " + std::to_string(addresses_.size()) +
            " rails, and none with the number " + std::to_string(client.rail);
    return false;
  }
  const std::lock_guard lock(mutex_);
  const Rail& rail = rails_[client.rail];
  if (rail.state != KV_PORT_UP) {
    error = rail.state == KV_PORT_DOWN ? "the node's RDMA port " + rail.name + " is down"
                                       : "the node has lost its RDMA device " + rail.name;
    return false;
  }
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
  Peer& peer = peers_[{registration, lane}];
  if (peer.end != nullptr) {
    api_->dismiss(peer.end);
    registrations_.release(registration);
  }
  char line[512] = "";
  peer = {api_->accept(rail.target, &client, &grant, line, sizeof line), client.rail};
  grant.node.rail = client.rail;
  if (peer.end != nullptr) return true;
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
    api_->dismiss(at->second.end);
    registrations_.release(registration);
  }
  peers_.erase(begin, end);
}

// ---- Devices --------------------------------------------------------------------------------

std::vector<kv_port_record> VerbsDoor::ports() {
  const std::lock_guard lock(mutex_);
  std::vector<kv_port_record> records;
  for (const Rail& rail : rails_) {
    kv_port_record& record = records.emplace_back();
    rail.name.copy(record.device, sizeof record.device - 1);
    record.state = rail.state;
    record.failures = rail.failures;
    rail.reason.copy(record.reason, sizeof record.reason - 1);
  }
  return records;
}

bool VerbsDoor::any_up() {
  const std::lock_guard lock(mutex_);
  return std::any_of(rails_.begin(), rails_.end(),
                     [](const Rail& rail) { return rail.state == KV_PORT_UP; });
}

void VerbsDoor::watch() {
  const uint32_t count = uint32_t(rails_.size());
  while (!stopping_.load()) {
    std::vector<pollfd> descriptors{{stop_descriptor_, POLLIN, 0}};
    bool away = false;
    for (uint32_t i = 0; i < count; ++i) {
      take_events(i);
      // Only this thread changes a rail. A negative descriptor is passed over.
      const kv_verbs_port* const port = rails_[i].port.get();
      descriptors.push_back({port == nullptr ? -1 : api_->event_descriptor(port), POLLIN, 0});
      // A device need not say that an address is there again.
      away |= rails_[i].state != KV_PORT_UP;
    }
    ::poll(descriptors.data(), descriptors.size(), away ? kServeAgainMs : -1);
    for (uint32_t i = 0; i < count && away && !stopping_.load(); ++i) {
      if (!rails_[i].port) serve_again(i);
    }
  }
}

void VerbsDoor::take_events(uint32_t number) {
  Rail& rail = rails_[number];
  if (!rail.port) return;
  while (const uint32_t event = api_->next_event(rail.port.get())) {
    if (event == KV_VERBS_DEVICE_LOST) return lose(number);
  }
  const std::lock_guard lock(mutex_);
  const bool active = api_->serves(rail.port.get()) != 0;
  if (!active && rail.state == KV_PORT_UP) ++rail.failures;
  rail.state = active ? KV_PORT_UP : KV_PORT_DOWN;
}

void VerbsDoor::lose(uint32_t number) {
  Rail& rail = rails_[number];
  const std::lock_guard lock(mutex_);
  for (auto at = peers_.begin(); at != peers_.end();) {
    if (at->second.rail != number) {
      ++at;
      continue;
    }
    api_->dismiss(at->second.end);
    registrations_.release(at->first.first);
    at = peers_.erase(at);
  }
  api_->withdraw(rail.target);
  rail.target = nullptr;
  rail.port.reset();
  if (rail.state == KV_PORT_UP) ++rail.failures;
  rail.state = KV_DEVICE_LOST;
}

void VerbsDoor::serve_again(uint32_t number) {
  Rail& rail = rails_[number];
  std::string error;
  VerbsPort port = open_verbs_port(rail.name, &addresses_[number], error);
  // Registering takes its time, in which clients of other rails are served.
  kv_verbs_target* const target = port ? expose(port.get(), error) : nullptr;
  const std::lock_guard lock(mutex_);
  rail.reason = error;
  if (target == nullptr) return;
  rail.port = std::move(port);
  rail.target = target;
  rail.state = KV_PORT_UP;
}

}  // namespace kvstore
