// The node's end of verbs attachments: the region on the ports of RDMA devices, its rails, and a
// queue pair for each lane of each client. Once a pair is connected, the node's processor takes no
// part.

#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "fabric/cpu/tcp_registrations.hpp"
#include "fabric/verbs_library.hpp"
#include "node/region.hpp"

namespace kvstore {

// Whether one region may be served over all of these ports: their atomics must exclude each other.
// Those of most devices exclude no other device's. Otherwise one line says so, and what to do.
bool one_atomic_domain(const std::vector<kv_verbs_port_description>& ports, std::string& error);

class VerbsDoor {
 public:
  // On all of the list `devices`, if it is not empty; else on the device with the IP address
  // `address`, if that is not empty; else on the nearest. nullptr and one line in `error` if one is
  // not there, they are not of one atomic domain, or one can't take the region as a whole.
  static std::unique_ptr<VerbsDoor> open(const std::string& devices, const std::string& address,
                                         const Region& region, std::string& error);
  ~VerbsDoor();

  // Connects a queue pair on the rail that the client wants. It takes the place of the lane's
  // earlier one, on whichever rail, which is destroyed first: what was still on its way there does
  // not execute after what comes here. The caller has authenticated the client. Any thread.
  bool connect(uint32_t registration, uint32_t lane, const kv_verbs_endpoint& client,
               kv_verbs_grant& grant, std::string& error);

  // After it returns no operation of that registration can execute, ever. Any thread.
  void fence(uint32_t registration);

  const std::vector<RdmaAddress>& addresses() const { return addresses_; }  // one a rail
  const std::string& devices() const { return devices_; }

 private:
  using Lane = std::pair<uint32_t, uint32_t>;  // registration, lane
  struct Rail {
    VerbsPort port;
    kv_verbs_target* target;
  };

  VerbsDoor() = default;
  bool open_ports(const std::string& devices, const RdmaAddress* address, std::string& error);

  const kv_verbs_api* api_ = nullptr;
  std::vector<Rail> rails_;
  std::vector<RdmaAddress> addresses_;
  std::string devices_;
  std::mutex mutex_;
  TcpRegistrations registrations_;
  std::map<Lane, kv_verbs_peer*> peers_;
};

}  // namespace kvstore
