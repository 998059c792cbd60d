// A compute node: one client of the store whose lanes run a random workload, and write down what
// they asked and what they were told.

#pragma once

#include <memory>
#include <string>
#include <vector>

#include "sim/driven_client.hpp"
#include "sim/values.hpp"
#include "sim/world.hpp"

namespace kvstore::sim {

// What the compute nodes of a world share.
struct Workload {
  const WorldOptions& options;
  std::vector<Operation> history;
  uint64_t begun = 0;
  uint64_t under_way = 0;
  uint64_t next_value = 1;
  std::vector<uint64_t> last_version;  // that anybody saw, by key
  std::string violation;
  bool cut_off = false;  // some client is

  std::vector<uint8_t> value_of(uint64_t number) const {
    return sim::value_of(number, options.value_bytes_min, options.value_bytes_max);
  }
  uint64_t number_of(const void* data, uint64_t bytes) const {
    return sim::number_of(data, bytes, options.value_bytes_min, options.value_bytes_max);
  }
  bool over() const { return begun >= options.operations && under_way == 0; }
};

class ComputeNode {
 public:
  ComputeNode(Schedule& schedule, const std::vector<MemoryNode*>& nodes, Workload& workload,
              uint32_t number, int64_t drift_per_million);
  ~ComputeNode();
  ComputeNode(const ComputeNode&) = delete;
  ComputeNode& operator=(const ComputeNode&) = delete;

  // Dies where it stands. What it had under way is without outcome.
  void crash();
  void pause_until(uint64_t instant_ns);
  uint32_t registration(uint32_t member) const { return client_->registration(member); }
  uint32_t number() const { return number_; }
  // It has lost a node, which may have given it up: another one has to take its place.
  bool cut_off() const { return cut_off_; }

 private:
  class CallDriver;

  Schedule& schedule_;
  Workload& workload_;
  const uint32_t number_;
  HostClock clock_;
  std::unique_ptr<DrivenClient> client_;
  std::vector<std::unique_ptr<CallDriver>> drivers_;
  bool crashed_ = false;
  bool cut_off_ = false;
};

}  // namespace kvstore::sim
