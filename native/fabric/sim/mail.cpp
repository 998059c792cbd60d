#include "fabric/sim/mail.hpp"

#include <cstring>

namespace kvstore::sim {

const kv_port_ops SimMail::kOps = {
    KV_DATAGRAM_ABI_VERSION,
    [](kv_port* port, const kv_datagram_address* to, const void* data, uint32_t bytes) {
      const Port& self = *static_cast<Port*>(port);
      uint64_t number = 0;
      std::memcpy(&number, to->bytes, sizeof number);
      return self.mail->send(self, number, data, bytes);
    },
    [](kv_port* port, void* into) -> uint32_t {
      Port& self = *static_cast<Port*>(port);
      if (self.arrived.empty()) return 0;
      const Datagram datagram = self.arrived.front();
      self.arrived.pop_front();
      std::memcpy(into, datagram.data.data(), datagram.bytes);
      return datagram.bytes;
    },
    [](kv_port*) { return -1; },
    [](kv_port* port) {
      Port* self = static_cast<Port*>(port);
      self->mail->ports_.erase(self->number);
      delete self;
    }};

PortPtr SimMail::open(SimListener* listener) {
  auto* port = new Port{};
  port->ops = &kOps;
  port->mail = this;
  port->number = next_port_++;
  port->listener = listener;
  std::memcpy(port->address.bytes, &port->number, sizeof port->number);
  ports_[port->number] = port;
  return PortPtr(port);
}

uint64_t SimMail::number_of(const kv_port& port) {
  return static_cast<const Port&>(port).number;
}

void SimMail::cut(uint64_t number) {
  ports_.erase(number);
}

uint32_t SimMail::send(const Port& from, uint64_t to, const void* data, uint32_t bytes) {
  KV_ASSERT(bytes > 0 && bytes <= KV_DATAGRAM_BYTES_MAX);
  if (!ports_.contains(from.number)) return 0;
  ++counts_.sent;
  const bool lost =
      schedule_.random().chance(timing_.lost_per_million) || (route_ && !route_(from.number, to));
  if (lost) {
    ++counts_.lost;
    return 1;
  }
  Datagram datagram{to, bytes, {}};
  std::memcpy(datagram.data.data(), data, bytes);
  dispatch(datagram);
  if (schedule_.random().chance(timing_.doubled_per_million)) {
    ++counts_.doubled;
    dispatch(datagram);
  }
  return 1;
}

void SimMail::dispatch(const Datagram& datagram) {
  Random& random = schedule_.random();
  uint64_t delay_ns = timing_.delay_ns_min + random.below(timing_.delay_ns_spread + 1);
  if (random.chance(timing_.late_per_million)) delay_ns += random.below(timing_.late_ns_max + 1);
  const uint64_t number = next_datagram_++;
  under_way_.emplace(number, datagram);
  schedule_.after(delay_ns, *this, number);
}

void SimMail::fire(uint64_t number) {
  const auto found = under_way_.find(number);
  KV_ASSERT(found != under_way_.end());
  const Datagram datagram = found->second;
  under_way_.erase(found);
  const auto port = ports_.find(datagram.to);
  if (port == ports_.end() || port->second->arrived.size() >= kArrivedMax) {
    ++counts_.lost;
    return;
  }
  ++counts_.delivered;
  port->second->arrived.push_back(datagram);
  if (port->second->listener != nullptr) port->second->listener->arrived();
}

}  // namespace kvstore::sim
