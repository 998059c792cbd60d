// A memory node in virtual time: a region, and the node's own registry, upkeep and sweeper around
// it. It can lose its power and come back, empty, in another incarnation.

#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "node/region.hpp"
#include "node/registry.hpp"
#include "node/sweeper.hpp"
#include "node/upkeep.hpp"
#include "sim/block_watch.hpp"
#include "sim/driven_client.hpp"

namespace kvstore::sim {

struct MemoryNodeOptions {
  uint64_t region_bytes = layout::kRegionBytesMin;
  uint32_t eviction = KV_EVICTION_NONE;
  uint32_t consistency = KV_LINEARIZABLE;
  uint64_t lease_ns = 500 * kMillisecond;
  // Segments that are left for index and objects, 0: all. The rest counts as taken by something
  // else, so that small values fill the node.
  uint64_t segments_max = 0;
  SimTiming timing;
};

class MemoryNode {
 public:
  // `watched` is told of blocks that are used against the rules; nullptr if nobody watches.
  MemoryNode(Schedule& schedule, uint32_t index, const MemoryNodeOptions& options,
             int64_t drift_per_million, BlockUsers* watched);
  ~MemoryNode();
  MemoryNode(const MemoryNode&) = delete;
  MemoryNode& operator=(const MemoryNode&) = delete;

  // What the node is from the start to the loss of its power.
  class Life;

  // The node's answers to messages that arrive now.
  Grant admit();
  void dismiss(const Grant& grant);

  // All that it holds is gone at once.
  void lose_power();
  void restart();

  bool up() const { return life_ != nullptr; }
  const std::string& name() const { return name_; }
  // The rest only while it is up.
  SimNode& fabric();
  Registry& registry();
  uint8_t* region() const;
  const layout::Geometry& geometry() const;
  // Nobody but its own client is registered, and nobody is to be swept.
  bool deserted();
  // Nobody is to be swept.
  bool is_swept() const;
  bool is_live(uint32_t registration);

  // Of all lives together.
  struct Counts {
    SimCounts fabric;
    uint64_t fenced = 0;
    uint64_t swept = 0;
    uint64_t blocks_swept = 0;
    uint64_t restarts = 0;
  };
  Counts counts() const;

 private:
  Schedule& schedule_;
  const uint32_t index_;
  const std::string name_;
  const MemoryNodeOptions options_;
  const int64_t drift_per_million_;
  BlockUsers* const watched_;
  std::unique_ptr<Life> life_;
  std::vector<std::unique_ptr<Life>> past_;  // events that name them may still come
};

}  // namespace kvstore::sim
