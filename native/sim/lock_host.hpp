// A client that uses locks on a simulated host: its workers take and release them as threads would,
// its service runs in virtual time.

#pragma once

#include <memory>
#include <string>
#include <vector>

#include "node/region.hpp"
#include "node/registry.hpp"
#include "sim/host.hpp"
#include "sim/lock_ledger.hpp"
#include "sim/lock_world.hpp"
#include "store/client.hpp"
#include "store/service.hpp"

namespace kvstore::sim {

// What the hosts of a world share.
struct LockWorkload {
  const LockWorldOptions& options;
  LockLedger ledger;
  std::vector<LockName> names;
  SimNode& node;
  SimMail& mail;
  HostClock& node_clock;
  Registry& registry;
  uint64_t begun = 0;
  uint64_t under_way = 0;
  uint64_t granted = 0;
  uint64_t gave_up = 0;
  uint64_t cancelled = 0;
  uint64_t cancelled_too_late = 0;
  uint64_t expired = 0;
  uint64_t longest_wait_ns = 0;
  uint32_t digest = 0;

  bool over() const { return begun >= options.operations && under_way == 0; }
};

class LockHost {
 public:
  LockHost(Schedule& schedule, LockWorkload& workload, uint32_t number, int64_t drift_per_million);
  ~LockHost();
  LockHost(const LockHost&) = delete;
  LockHost& operator=(const LockHost&) = delete;

  // Dies where it stands.
  void crash();
  void pause_until(uint64_t instant_ns);
  uint32_t registration() const { return registration_; }
  uint32_t number() const { return number_; }
  const LockCounts& counts() const { return attachment_->locks.counts(); }
  // Where its threads and its places stand, for who wonders why nothing happens.
  std::string describe() const;
  // It has lost the node, which may have given it up.
  bool cut_off() const { return attachment_->state.load() != Attachment::State::kUp; }

 private:
  class Worker;
  class ServiceDriver;
  class HostTransport;

  void notice();

  Schedule& schedule_;
  LockWorkload& workload_;
  const uint32_t number_;
  HostClock clock_;
  SeededOrder order_;
  uint32_t registration_ = 0;
  bool cut_ = false;
  uint64_t port_ = 0;
  std::unique_ptr<Client> client_;
  std::shared_ptr<Attachment> attachment_;
  std::unique_ptr<ServiceDriver> service_driver_;
  std::vector<std::unique_ptr<Worker>> workers_;
  uint64_t due_seen_ns_ = UINT64_MAX;
};

}  // namespace kvstore::sim
