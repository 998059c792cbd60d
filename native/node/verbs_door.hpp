// The node's end of verbs attachments: the region on the ports of RDMA devices, its rails, and a
// queue pair for each lane of each client. Once a pair is connected, the node's processor takes no
// part.
//
// A thread listens to the devices. A port that is down, or without its address, connects nobody
// until it is up again; queue pairs over it live on. A device that is lost takes all of its queue
// pairs with it; when a port of the same name with the same address is there again, the region is
// registered on it anew.

#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
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
  std::vector<kv_port_record> ports();
  bool any_up();

 private:
  using Lane = std::pair<uint32_t, uint32_t>;  // registration, lane
  struct Rail {
    std::string name;  // by which the port is found again
    VerbsPort port;    // null while its device is lost
    kv_verbs_target* target = nullptr;
    kv_port_state state = KV_PORT_UP;
    uint32_t failures = 0;
    std::string reason;  // why a lost one is not served again
  };
  struct Peer {
    kv_verbs_peer* end = nullptr;
    uint32_t rail = 0;
  };

  explicit VerbsDoor(const Region& region) : region_(region) {}
  bool open_ports(const std::string& devices, const RdmaAddress* address, std::string& error);
  kv_verbs_target* expose(kv_verbs_port* port, std::string& error);
  void watch();
  void take_events(uint32_t number);
  void lose(uint32_t number);
  void serve_again(uint32_t number);

  const Region& region_;
  const kv_verbs_api* api_ = nullptr;
  std::vector<RdmaAddress> addresses_;
  std::string devices_;
  std::mutex mutex_;
  std::vector<Rail> rails_;
  TcpRegistrations registrations_;
  std::map<Lane, Peer> peers_;
  int stop_descriptor_ = -1;
  std::atomic<bool> stopping_{false};
  std::thread watcher_;
};

}  // namespace kvstore
