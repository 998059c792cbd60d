// A compute node: one client of the store whose lanes run a random workload, and write down what
// they asked and what they were told.

#pragma once

#include <memory>
#include <string>
#include <vector>

#include "sim/driven_client.hpp"
#include "sim/memory_node.hpp"
#include "sim/workload.hpp"

namespace kvstore::sim {

class ComputeNode {
 public:
  ComputeNode(Schedule& schedule, const std::vector<MemoryNode*>& nodes, Workload& workload,
              uint32_t number, int64_t drift_per_million);
  ~ComputeNode();
  ComputeNode(const ComputeNode&) = delete;
  ComputeNode& operator=(const ComputeNode&) = delete;

  // Dies where it stands. What it had under way is without outcome.
  void crash();
  // Ends what it has under way, gives back what it can, says farewell, and is gone.
  void leave();
  void pause_until(uint64_t instant_ns);
  // There may be something to do again.
  void go_on();

  uint32_t number() const { return number_; }
  bool gone() const { return gone_; }
  bool paused() const { return schedule_.now_ns() < paused_until_ns_; }
  DrivenClient& client() { return *client_; }
  bool idle() const;
  // For which the processors of its lanes were busy so far.
  uint64_t processor_ns() const;

  // Of the operation that is under way on a lane; 0: none is.
  uint64_t operation_of(uint32_t lane) const;
  // What is under way and holds addresses that were read before `instant_ns`, of this
  // registration's time at the node; empty if nothing is.
  std::string holder_since(uint32_t member, uint64_t instant_ns) const;

 private:
  class CallDriver;
  class Departure;

  Schedule& schedule_;
  Workload& workload_;
  const std::vector<MemoryNode*>& nodes_;
  const uint32_t number_;
  HostClock clock_;
  std::unique_ptr<DrivenClient> client_;
  std::vector<std::unique_ptr<CallDriver>> drivers_;
  std::unique_ptr<Departure> departure_;
  uint64_t paused_until_ns_ = 0;
  bool leaving_ = false;
  bool gone_ = false;
};

}  // namespace kvstore::sim
