// The faults of a world: drawn from its seed with every operation that begins, and undone when it
// comes to rest.

#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "sim/compute_node.hpp"

namespace kvstore::sim {

enum class Fault : unsigned {
  kCrash,
  kLeave,
  kBreak,
  kPause,
  kPartition,
  kPowerLoss,
  kDamage,
  kCount
};

// The clients of a world, and how they are replaced.
class Clients {
 public:
  virtual std::vector<std::unique_ptr<ComputeNode>>& present() = 0;
  // Another one takes its place; the old one stays, for events that name it may still come.
  virtual void replace(size_t index) = 0;

 protected:
  ~Clients() = default;
};

class Faults final : public Timed {
 public:
  Faults(Schedule& schedule, const std::vector<MemoryNode*>& nodes, Clients& clients,
         Workload& workload)
      : schedule_(schedule), nodes_(nodes), clients_(clients), workload_(workload) {}

  // With the operation `number`, from 0.
  void draw(uint64_t number);
  // Ends partitions, brings nodes back, and no connection breaks any more.
  void heal();
  uint64_t count(Fault fault) const { return counts_[size_t(fault)]; }

  void fire(uint64_t event) override;

 private:
  void begin(Fault fault);
  void crash();
  void leave();
  void break_connections();
  void pause();
  void part();
  void lose_power();
  void damage();

  size_t any_client();
  uint32_t any_node() { return uint32_t(schedule_.random().below(nodes_.size())); }
  void wipe(uint32_t node, uint64_t at_latest_ns);
  template <class Line>
  void tell(Line&& line) {
    schedule_.tell(kEveryKey, line);
  }

  Schedule& schedule_;
  const std::vector<MemoryNode*>& nodes_;
  Clients& clients_;
  Workload& workload_;
  std::array<uint64_t, size_t(Fault::kCount)> counts_{};
};

}  // namespace kvstore::sim
