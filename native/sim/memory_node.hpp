// A memory node in virtual time: the region, the registry and its epochs, leases and fencing as the
// real node keeps them, and a janitor that sweeps after the dead with the store's own code.

#pragma once

#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "node/region.hpp"
#include "node/registry.hpp"
#include "sim/driven_client.hpp"

namespace kvstore::sim {

struct MemoryNodeOptions {
  uint64_t region_bytes = layout::kRegionBytesMin;
  uint32_t eviction = KV_EVICTION_NONE;
  uint64_t lease_ns = 500 * kMillisecond;
  SimTiming timing;
};

class MemoryNode {
 public:
  MemoryNode(Schedule& schedule, std::string name, const MemoryNodeOptions& options,
             int64_t drift_per_million);
  ~MemoryNode();
  MemoryNode(const MemoryNode&) = delete;
  MemoryNode& operator=(const MemoryNode&) = delete;

  // A registration, 0 if there is no room for one more.
  uint32_t admit();

  const std::string& name() const { return name_; }
  SimNode& fabric() { return *fabric_; }
  uint8_t* region() const { return region_->data(); }
  uint64_t region_bytes() const { return region_->bytes(); }
  const layout::Geometry& geometry() const { return geometry_; }
  uint64_t clients_fenced() const { return clients_fenced_; }
  uint64_t clients_swept() const { return clients_swept_; }
  uint64_t blocks_swept() const { return blocks_swept_; }

 private:
  class Upkeep;
  class Janitor;

  void fence(uint32_t registration);

  Schedule& schedule_;
  const std::string name_;
  const MemoryNodeOptions options_;
  HostClock clock_;
  std::unique_ptr<Region> region_;
  layout::Geometry geometry_;
  std::unique_ptr<SimNode> fabric_;
  std::unique_ptr<Registry> registry_;
  std::unique_ptr<DrivenClient> janitor_client_;
  std::unique_ptr<Upkeep> upkeep_;
  std::unique_ptr<Janitor> janitor_;
  std::deque<uint32_t> to_sweep_;
  uint64_t clients_fenced_ = 0;
  uint64_t clients_swept_ = 0;
  uint64_t blocks_swept_ = 0;
};

}  // namespace kvstore::sim
