// Runs one call after another on a lane of a compute node, and writes down what came of each.

#pragma once

#include <string>
#include <vector>

#include "sim/compute_node.hpp"
#include "sim/history_checks.hpp"

namespace kvstore::sim {

class ComputeNode::CallDriver final : public Driver, private Waker {
 public:
  CallDriver(ComputeNode& host, Lane& lane);

  // Once the client has crashed.
  void abandon();

  void release_lane() { lane_.client().release_lane(lane_); }
  uint32_t lane() const { return lane_.index(); }
  bool running() const { return lane_.running(); }
  // One that waited without addresses is another one afterwards: what it wrote before is given up.
  uint64_t operation() const { return lane_.running() ? activity_ns_ : 0; }
  // When it began to hold addresses; 0: it holds none.
  uint64_t activity_ns() const { return activity_ns_; }
  std::string what() const { return "operation " + std::to_string(place_); }

 private:
  uint64_t step() override;
  void woken() override { poke(); }
  uint64_t go_on();
  void begin();
  void draw(Operation& operation);
  void draw_kind(Operation& operation);
  uint64_t draw_fence();
  void fill_call(const Operation& operation);
  void note_activity();
  void note_outcome();
  void judge_time(const Operation& operation);
  void judge_cost(const Operation& operation);
  void note_cost_begins(const Operation& operation);
  OperationCost cost_so_far() const;
  uint64_t obstacles() const;
  bool index_at_rest() const;

  ComputeNode& host_;
  Workload& workload_;
  Lane& lane_;
  kv_call call_{};
  uint64_t key_number_ = 0;
  std::string key_;
  std::vector<uint8_t> value_;
  size_t place_ = 0;
  uint64_t rest_until_ns_ = 0;
  uint64_t called_host_ns_ = 0;
  uint64_t activity_ns_ = 0;
  uint64_t activity_tick_ = 0;
  // Of the operation under way, whether its cost is to be judged, and what had been spent before.
  bool costed_ = false;
  uint64_t use_ = 0;
  uint64_t obstacles_before_ = 0;
  bool uncached_ = false;  // from the node, copy or not
  uint64_t round_trips_before_ = 0;
  OperationCost cost_before_;
};

}  // namespace kvstore::sim
