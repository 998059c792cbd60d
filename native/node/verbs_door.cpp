#include "node/verbs_door.hpp"

#include <algorithm>

namespace kvstore {
namespace {

// More lanes than a client can have, with its heartbeat and its set-up: whoever asks for more wants
// to use the device up.
constexpr size_t kLanesMax = 1032;

}  // namespace

std::unique_ptr<VerbsDoor> VerbsDoor::open(const std::string& device, const std::string& address,
                                           const Region& region, std::string& error) {
  std::unique_ptr<VerbsDoor> door(new VerbsDoor());
  door->api_ = verbs_library(error);
  if (door->api_ == nullptr) return nullptr;
  RdmaAddress wanted{};
  if (!address.empty() && !rdma_address(address, wanted)) {
    error = "'" + address + "' is no IP address";
    return nullptr;
  }
  door->port_ = open_verbs_port(device, address.empty() ? nullptr : &wanted, error);
  if (!door->port_) return nullptr;
  kv_verbs_port_description description;
  door->api_->describe_port(door->port_.get(), &description);
  door->device_ = description.device;
  std::copy_n(description.gid, door->address_.size(), door->address_.begin());
  char line[512] = "";
  door->target_ =
      door->api_->expose(door->port_.get(), region.data(), region.bytes(), line, sizeof line);
  if (door->target_ == nullptr) {
    error = line;
    return nullptr;
  }
  return door;
}

VerbsDoor::~VerbsDoor() {
  for (const auto& [lane, peer] : peers_) api_->dismiss(peer);
  if (target_ != nullptr) api_->withdraw(target_);
}

bool VerbsDoor::connect(uint32_t registration, uint32_t lane, const kv_verbs_endpoint& client,
                        kv_verbs_grant& grant, std::string& error) {
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
  peer = api_->accept(target_, &client, &grant, line, sizeof line);
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
