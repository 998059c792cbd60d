#include "sim/memory_node.hpp"

#include <algorithm>

#include "node/sweep.hpp"

namespace kvstore::sim {
namespace {

constexpr uint64_t kIdleTickNs = 40 * kMillisecond;
constexpr uint64_t kBusyTickNs = 5 * kMillisecond;
constexpr uint64_t kPressedTickNs = kMillisecond;
constexpr uint64_t kSweepNs = 60 * kSecond;
constexpr uint64_t kRoundPollNs = 5 * kMillisecond;
constexpr unsigned kRounds = 4;

}  // namespace

// Epochs and leases. It never waits for anything but time.
class MemoryNode::Upkeep final : public Driver {
 public:
  explicit Upkeep(MemoryNode& node) : Driver(node.schedule_, node.clock_), node_(node) {}

 private:
  uint64_t step() override {
    const Registry::Tick tick = node_.registry_->tick(node_.options_.lease_ns);
    for (const uint32_t registration : tick.silent) node_.fence(registration);
    const uint64_t period_ns = tick.pressure != 0 ? kPressedTickNs
                               : tick.busy        ? kBusyTickNs
                                                  : kIdleTickNs;
    return monotonic_ns() + period_ns;
  }

  MemoryNode& node_;
};

// Sweeps one set of dead clients after another: begin, look, wait for four rounds of the safe
// epoch, give back. Between slices, and while it waits, it finishes the splits of all that wait.
class MemoryNode::Janitor final : public Driver {
 public:
  explicit Janitor(MemoryNode& node)
      : Driver(node.schedule_, node.clock_),
        node_(node),
        lane_(*acquire(node.janitor_client_->client())) {
    node.janitor_client_->set_listener(lane_.index(), this);
    node.janitor_client_->order_ready(lane_);
  }

  // Once the client has crashed.
  void abandon() {
    stop();
    if (!lane_.running()) return;
    node_.janitor_client_->wind_down([this] { return lane_.step_task(); });
    lane_.end_task();
  }

 private:
  enum class Stage { kIdle, kBegin, kLook, kWait, kGiveBack };

  static Lane* acquire(Client& client) {
    Status status = Status::kOk;
    Lane* lane = client.acquire_lane(0, status);
    KV_ASSERT(lane != nullptr);
    return lane;
  }

  uint64_t step() override {
    node_.janitor_client_->notice_hurry();
    while (true) {
      if (lane_.running() && !lane_.step_task()) {
        return std::min(lane_.executor().next_timer_ns(), lane_.deadline_ns());
      }
      if (lane_.running()) finished(lane_.end_task());
      if (stage_ == Stage::kIdle && !take_work()) return UINT64_MAX;
      const uint64_t wait_ns = proceed();
      if (wait_ns != 0) return monotonic_ns() + wait_ns;
    }
  }

  bool take_work() {
    if (node_.to_sweep_.empty()) return false;
    registrations_.assign(node_.to_sweep_.begin(), node_.to_sweep_.end());
    node_.to_sweep_.clear();
    sweep_ = std::make_unique<Sweep>(registrations_);
    stage_ = Stage::kBegin;
    return true;
  }

  // Begins the next task; returns how long to wait before that otherwise.
  uint64_t proceed() {
    Channel& channel = lane_.channel(0);
    if (channel.ready(monotonic_ns() + kSecond) != Status::kOk) return kRoundPollNs;
    const uint64_t deadline_ns = monotonic_ns() + kSweepNs;
    switch (stage_) {
      case Stage::kBegin:
        lane_.begin_task([&] { return sweep_->begin(channel); }, deadline_ns);
        return 0;
      case Stage::kLook:
        lane_.begin_task([&] { return sweep_->look(channel); }, deadline_ns);
        return 0;
      case Stage::kGiveBack:
        lane_.begin_task([&] { return sweep_->give_back(channel); }, deadline_ns);
        return 0;
      default:
        return wait_for_round(channel, deadline_ns);
    }
  }

  uint64_t wait_for_round(Channel& channel, uint64_t deadline_ns) {
    if (line().safe_epoch > round_until_) {
      if (++rounds_ == kRounds) {
        stage_ = Stage::kGiveBack;
        return proceed();
      }
      round_until_ = line().global_epoch + 1;
    }
    if (splits_finished_ < node_.to_sweep_.size()) {
      const uint32_t registration = node_.to_sweep_[splits_finished_++];
      lane_.begin_task([&channel, registration] { return finish_split_of(channel, registration); },
                       deadline_ns);
      return 0;
    }
    splits_finished_ = 0;
    return kRoundPollNs;
  }

  void finished(Status status) {
    if (stage_ == Stage::kWait || status == Status::kPending) return;
    if (status != Status::kOk) {
      stage_ = Stage::kBegin;  // the connection broke: once more from the start
      return;
    }
    switch (stage_) {
      case Stage::kBegin:
        stage_ = Stage::kLook;
        return;
      case Stage::kLook:
        stage_ = Stage::kWait;
        rounds_ = 0;
        splits_finished_ = 0;
        round_until_ = line().global_epoch + 1;
        return;
      default:
        for (const uint32_t registration : registrations_) {
          node_.registry_->mark_swept(registration);
        }
        node_.clients_swept_ += registrations_.size();
        node_.blocks_swept_ += sweep_->blocks_freed();
        stage_ = Stage::kIdle;
    }
  }

  const layout::NodeLine& line() const {
    return *reinterpret_cast<const layout::NodeLine*>(node_.region() + layout::kNodeLineOffset);
  }

  MemoryNode& node_;
  Lane& lane_;
  Stage stage_ = Stage::kIdle;
  std::vector<uint32_t> registrations_;
  std::unique_ptr<Sweep> sweep_;
  unsigned rounds_ = 0;
  uint64_t round_until_ = 0;
  size_t splits_finished_ = 0;
};

MemoryNode::MemoryNode(Schedule& schedule, std::string name, const MemoryNodeOptions& options,
                       int64_t drift_per_million)
    : schedule_(schedule),
      name_(std::move(name)),
      options_(options),
      clock_(schedule, drift_per_million, schedule.random().below(3600 * kSecond)) {
  std::string error;
  region_ = Region::create(options.region_bytes, false, error);
  KV_ASSERT(region_ != nullptr);
  const OnHost scope(clock_);
  const uint64_t incarnation = schedule.random().next() | 1;
  const uint32_t lease_ms = uint32_t(options.lease_ns / kMillisecond);
  geometry_ = format_region(region_->data(), region_->bytes(),
                            {1, incarnation, options.eviction, 0, lease_ms});
  fabric_ = std::make_unique<SimNode>(schedule, region_->data(), region_->bytes(), options.timing);
  fabric_->set_name(name_);
  registry_ = std::make_unique<Registry>(region_->data(), geometry_);
  janitor_client_ =
      std::make_unique<DrivenClient>(schedule, clock_, std::vector<MemoryNode*>{this}, 1);
  upkeep_ = std::make_unique<Upkeep>(*this);
  janitor_ = std::make_unique<Janitor>(*this);
  upkeep_->poke();
}

MemoryNode::~MemoryNode() {
  janitor_client_->crash();
  janitor_->abandon();
}

uint32_t MemoryNode::admit() {
  const OnHost scope(clock_);
  Token token;
  const uint32_t registration = registry_->admit("simulated", KV_FABRIC_TCP, token);
  if (registration != 0) registry_->connected(registration, KV_FABRIC_TCP, 0, -1);
  return registration;
}

void MemoryNode::fence(uint32_t registration) {
  fabric_->fence(registration);
  if (!registry_->mark_fenced(registration, false)) return;
  ++clients_fenced_;
  schedule_.tell(kEveryKey, [&] {
    return name_ + " fences the client of line " + std::to_string(registration);
  });
  to_sweep_.push_back(registration);
  if (janitor_) janitor_->poke();
}

}  // namespace kvstore::sim
