// The store's own client on a simulated host: its lanes and its service run in virtual time,
// stepped by drivers instead of threads.

#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "sim/host.hpp"
#include "store/client.hpp"
#include "store/service.hpp"

namespace kvstore::sim {

class MemoryNode;

// Of one client at one node. Once it is cut it connects no more.
struct Admission {
  MemoryNode* node = nullptr;
  uint32_t registration = 0;
  std::shared_ptr<bool> cut = std::make_shared<bool>(false);
};

class DrivenClient {
 public:
  // Attaches to every node at once: how a client is admitted is not simulated.
  DrivenClient(Schedule& schedule, HostClock& clock, const std::vector<MemoryNode*>& nodes,
               uint32_t lanes);
  ~DrivenClient();
  DrivenClient(const DrivenClient&) = delete;
  DrivenClient& operator=(const DrivenClient&) = delete;

  Client& client() { return *client_; }
  // To be called by whoever drives lane `index`, before it steps it.
  void set_listener(uint32_t lane, Driver* driver);
  void order_ready(Lane& lane) { lane.executor().set_ready_order(&order_); }
  // Whether an attachment has ended: by a fence, or because the node did not answer.
  bool cut_off();
  // The service may have been asked to hurry by what a lane did.
  void notice_hurry();
  uint32_t registration(uint32_t member) const { return admissions_[member].registration; }
  // The service does not step before then.
  void pause_until(uint64_t instant_ns);

  // As if the process was killed: nothing more is sent, and nobody says good-bye. What was sent may
  // still execute. The tasks of lanes other than the service's are wound down by `wind_down`.
  void crash();
  // Steps the lane past its deadline until nothing of it is under way.
  void wind_down(const std::function<bool()>& step);

 private:
  class ServiceDriver;

  void attach(uint32_t member);
  // Lane numbers of the transport to whoever waits for their completions.
  std::shared_ptr<std::vector<Driver*>> listeners_;

  Schedule& schedule_;
  HostClock& clock_;
  SeededOrder order_;
  std::vector<Admission> admissions_;
  std::unique_ptr<Client> client_;
  std::unique_ptr<ServiceDriver> service_driver_;
};

}  // namespace kvstore::sim
