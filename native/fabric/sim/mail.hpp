// Datagrams of the sim fabric: each is lost, doubled, or on its way for a while, as the seed
// decides. One thread. The schedule outlives the mail, and the mail its ports.

#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <vector>

#include "fabric/port.hpp"
#include "fabric/sim/sim.hpp"

namespace kvstore::sim {

struct MailTiming {
  uint64_t delay_ns_min = 1'200;
  uint64_t delay_ns_spread = 800;
  uint64_t late_per_million = 2'000;
  uint64_t late_ns_max = 2'000'000;
  uint64_t lost_per_million = 0;
  uint64_t doubled_per_million = 0;
};

struct MailCounts {
  uint64_t sent = 0;
  uint64_t lost = 0;
  uint64_t doubled = 0;
  uint64_t delivered = 0;
};

class SimMail final : public Timed {
 public:
  // Of two ports, whether what the first sends reaches the second.
  using Route = std::function<bool(uint64_t from, uint64_t to)>;

  SimMail(Schedule& schedule, const MailTiming& timing) : schedule_(schedule), timing_(timing) {}

  // `listener` is told when something can be received.
  PortPtr open(SimListener* listener);
  // The number of a port, as routes name it.
  static uint64_t number_of(const kv_port& port);
  void set_route(Route route) { route_ = std::move(route); }
  // Its owner has died: it sends and receives nothing any more.
  void cut(uint64_t number);

  MailTiming& timing() { return timing_; }
  const MailCounts& counts() const { return counts_; }

  void fire(uint64_t datagram) override;

 private:
  struct Datagram {
    uint64_t to;
    uint32_t bytes;
    std::array<uint8_t, KV_DATAGRAM_BYTES_MAX> data;
  };
  struct Port : kv_port {
    SimMail* mail;
    uint64_t number;
    SimListener* listener;
    std::deque<Datagram> arrived;
  };
  static const kv_port_ops kOps;
  // What a full socket buffer would drop is dropped here.
  static constexpr size_t kArrivedMax = 1024;

  uint32_t send(const Port& from, uint64_t to, const void* data, uint32_t bytes);
  void dispatch(const Datagram& datagram);

  Schedule& schedule_;
  MailTiming timing_;
  MailCounts counts_;
  Route route_;
  uint64_t next_port_ = 1;
  uint64_t next_datagram_ = 1;
  std::map<uint64_t, Port*> ports_;
  std::map<uint64_t, Datagram> under_way_;
};

}  // namespace kvstore::sim
