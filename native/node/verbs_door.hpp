// The node's end of verbs attachments: the region on an RDMA device, and a queue pair for each lane
// of each client. Once a pair is connected, the node's processor takes no part.

#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "fabric/cpu/tcp_registrations.hpp"
#include "fabric/verbs_library.hpp"
#include "node/region.hpp"

namespace kvstore {

class VerbsDoor {
 public:
  // On `device`, if it is not empty, and with the IP address `address`, if that is not empty;
  // nullptr and one line in `error` if there is none, or it can't take the region as a whole.
  static std::unique_ptr<VerbsDoor> open(const std::string& device, const std::string& address,
                                         const Region& region, std::string& error);
  ~VerbsDoor();

  // Connects a queue pair. It takes the place of the lane's earlier one, which is destroyed first:
  // what was still on its way there does not execute after what comes here. The caller has
  // authenticated the client. Any thread.
  bool connect(uint32_t registration, uint32_t lane, const kv_verbs_endpoint& client,
               kv_verbs_grant& grant, std::string& error);

  // After it returns no operation of that registration can execute, ever. Any thread.
  void fence(uint32_t registration);

  const RdmaAddress& address() const { return address_; }
  const std::string& device() const { return device_; }

 private:
  using Lane = std::pair<uint32_t, uint32_t>;  // registration, lane

  VerbsDoor() = default;

  const kv_verbs_api* api_ = nullptr;
  VerbsPort port_;
  kv_verbs_target* target_ = nullptr;
  RdmaAddress address_{};
  std::string device_;
  std::mutex mutex_;
  TcpRegistrations registrations_;
  std::map<Lane, kv_verbs_peer*> peers_;
};

}  // namespace kvstore
