#include "fabric/sim/sim.hpp"

#include <algorithm>

#include "base/variant.hpp"
#include "fabric/sim/link.hpp"

namespace kvstore::sim {

SimNode::SimNode(Schedule& schedule, uint8_t* region, uint64_t region_bytes,
                 const SimTiming& timing)
    : schedule_(schedule),
      region_(region),
      region_bytes_(region_bytes),
      timing_(timing),
      nic_(timing.nic) {
  KV_ASSERT(timing.pieces_max >= 1 && timing.pieces_max <= kPiecesLimit);
}

SimNode::~SimNode() = default;

uint64_t SimNode::delay_ns() {
  Random& random = schedule_.random();
  uint64_t delay_ns = timing_.delay_ns_min + random.below(timing_.delay_ns_spread + 1);
  if (random.chance(timing_.late_per_million)) delay_ns += random.below(timing_.late_ns_max + 1);
  return delay_ns;
}

kv_connection* SimNode::connect(uint32_t registration, uint32_t lane, SimListener* listener,
                                const Reach* reach) {
  static constexpr Reach kOpen;
  if (reach == nullptr) reach = &kOpen;
  if (dead_ || fenced_.contains(registration)) return nullptr;
  if (!reach->whole(schedule_.now_ns())) return nullptr;
  for (const auto& link : links_) {
    if (link->registration() != registration || link->lane() != lane) continue;
    if (!KV_VARIANT(old_connection_survives)) link->end_node_side();
    link->end_client_side_later();
  }
  links_.push_back(std::make_unique<SimLink>(*this, registration, lane, listener, *reach));
  return links_.back()->connection();
}

void SimNode::fence(uint32_t registration) {
  fenced_.insert(registration);
  for (const auto& link : links_) {
    if (link->registration() != registration) continue;
    link->end_node_side();
    link->end_client_side_later();
  }
}

void SimNode::break_connections(uint32_t registration) {
  ++counts_.breaks;
  for (const auto& link : links_) {
    if (link->registration() != registration) continue;
    link->end_node_side_later();
    link->end_client_side_later();
  }
}

void SimNode::cut(uint32_t registration) {
  for (const auto& link : links_) {
    if (link->registration() != registration) continue;
    link->end_client_side();
    link->end_node_side_later();
  }
}

void SimNode::kill() {
  dead_ = true;
  for (const auto& link : links_) {
    link->end_node_side();
    link->end_client_side_later();
  }
}

void SimNode::collect(SimLink& link) {
  std::erase_if(links_, [&](const auto& one) { return one.get() == &link; });
}

}  // namespace kvstore::sim
