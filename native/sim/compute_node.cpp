#include "sim/compute_node.hpp"

#include <algorithm>

#include "sim/call_driver.hpp"

namespace kvstore::sim {

// The end of a client that leaves of its own will.
class ComputeNode::Departure final : public Driver {
 public:
  explicit Departure(ComputeNode& host)
      : Driver(host.schedule_, host.clock_, "a departure"), host_(host) {}

 private:
  static constexpr uint64_t kLookNs = 5 * kMillisecond;
  static constexpr unsigned kLooksMax = 100;  // once nothing is under way

  uint64_t step() override {
    Client& client = host_.client_->client();
    if (!host_.idle()) return monotonic_ns() + kLookNs;
    const uint64_t waiting = client.service() != nullptr ? client.hurry_limbo() : 0;
    host_.client_->notice();
    if (waiting > 0 && ++looks_ < kLooksMax) return monotonic_ns() + kLookNs;
    for (uint32_t member = 0; member < host_.nodes_.size(); ++member) {
      const Reach& reach = host_.client_->reach(member);
      // A farewell that is lost is followed by a fence.
      const bool heard = schedule_.now_ns() >= reach.requests_from_ns;
      if (heard) host_.nodes_[member]->dismiss(host_.client_->grant(member));
    }
    stop();
    host_.crash();
    return UINT64_MAX;
  }

  ComputeNode& host_;
  unsigned looks_ = 0;
};

ComputeNode::ComputeNode(Schedule& schedule, const std::vector<MemoryNode*>& nodes,
                         Workload& workload, uint32_t number, int64_t drift_per_million)
    : schedule_(schedule),
      workload_(workload),
      nodes_(nodes),
      number_(number),
      clock_(schedule, drift_per_million, schedule.random().below(3600 * kSecond)) {
  std::vector<Home> homes;
  for (MemoryNode* node : nodes) homes.push_back({node->name(), [node] { return node->admit(); }});
  client_ = std::make_unique<DrivenClient>(schedule, clock_, homes, workload.options.lanes,
                                           workload.mail, workload.options.cache_bytes);
  if (const unsigned hosts = workload.options.hosts; hosts > 0) {
    client_->client().share_stamps([&workload, host = number % hosts](uint64_t incarnation) {
      std::shared_ptr<HostStamps>& shared = workload.stamps[{host, incarnation}];
      if (shared == nullptr) shared = std::make_shared<HostStamps>();
      return shared;
    });
  }
  for (unsigned i = 0; i < workload.options.lanes; ++i) {
    Status status = Status::kOk;
    Lane* lane = client_->client().acquire_lane(0, status);
    KV_ASSERT(lane != nullptr);
    drivers_.push_back(std::make_unique<CallDriver>(*this, *lane));
  }
  for (const auto& driver : drivers_) driver->release_lane();
  departure_ = std::make_unique<Departure>(*this);
}

ComputeNode::~ComputeNode() {
  if (!gone_) crash();
}

void ComputeNode::crash() {
  gone_ = true;
  departure_->stop();
  client_->crash();
  for (const auto& driver : drivers_) driver->abandon();
  const OnHost scope(clock_);
  client_->client().close();
}

void ComputeNode::leave() {
  leaving_ = true;
  departure_->poke();
}

void ComputeNode::pause_until(uint64_t instant_ns) {
  paused_until_ns_ = instant_ns;
  client_->pause_until(instant_ns);
  departure_->pause_until(instant_ns);
  for (const auto& driver : drivers_) driver->pause_until(instant_ns);
}

void ComputeNode::go_on() {
  for (const auto& driver : drivers_) driver->poke();
}

bool ComputeNode::idle() const {
  return std::none_of(drivers_.begin(), drivers_.end(),
                      [](const auto& driver) { return driver->running(); });
}

uint64_t ComputeNode::operation_of(uint32_t lane) const {
  for (const auto& driver : drivers_) {
    if (driver->lane() == lane) return driver->operation();
  }
  return 0;
}

std::string ComputeNode::holder_since(uint32_t member, uint64_t instant_ns) const {
  if (gone_) return {};
  for (const auto& driver : drivers_) {
    const uint64_t since_ns = driver->activity_ns();
    if (since_ns == 0 || since_ns >= instant_ns) continue;
    // Addresses of an attachment that has ended are not used any more.
    if (since_ns < client_->attached_ns(member)) continue;
    return driver->what() + " of client " + std::to_string(number_);
  }
  return {};
}

uint64_t ComputeNode::processor_ns() const {
  uint64_t sum_ns = 0;
  for (const auto& driver : drivers_) sum_ns += driver->busy_ns();
  return sum_ns;
}

}  // namespace kvstore::sim
