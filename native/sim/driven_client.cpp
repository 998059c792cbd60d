#include "sim/driven_client.hpp"

#include <algorithm>
#include <cstring>

#include "fabric/cpu/shm.hpp"
#include "sim/memory_node.hpp"

namespace kvstore::sim {
namespace {

constexpr uint32_t kAddressEntries = 256;

class SimTransport final : public Transport {
 public:
  SimTransport(const Admission& admission, std::shared_ptr<std::vector<Driver*>> listeners)
      : admission_(admission), listeners_(std::move(listeners)) {}

  kv_connection* connect(uint32_t lane, uint64_t, std::string& error) override {
    kv_connection* connection = nullptr;
    if (!*admission_.cut) {
      connection =
          admission_.node->fabric().connect(admission_.registration, lane, listeners_->at(lane));
    }
    if (connection == nullptr) error = "the node does not answer";
    return connection;
  }
  uint32_t fabric() const override { return KV_FABRIC_TCP; }

 private:
  const Admission admission_;
  const std::shared_ptr<std::vector<Driver*>> listeners_;
};

// Set-up reads the directory directly: the first moment of a client is not simulated.
void read_directory(const MemoryNode& node, Attachment& attachment) {
  static const std::atomic<uint32_t> alive{0};
  Executor executor;
  const Executor::Scope scope(executor);
  kv_connection* connection = shm_connection(node.region(), node.region_bytes(), &alive);
  Remote remote;
  remote.bind(connection, &executor);
  Task<Status> task = attachment.directory.refresh(remote);
  KV_ASSERT(task.done() && task.take() == Status::kOk);
  layout::NodeLine line;
  std::memcpy(&line, node.region() + layout::kNodeLineOffset, sizeof line);
  attachment.saw_clock(line.clock_ms, boottime_ns());
  remote.bind(nullptr, nullptr);
  connection->ops->destroy(connection);
}

}  // namespace

class DrivenClient::ServiceDriver final : public Driver {
 public:
  ServiceDriver(Schedule& schedule, HostClock& clock, Client& client)
      : Driver(schedule, clock), client_(client) {}

  // Returns whether nothing is under way.
  bool step_once(uint64_t& next_ns) {
    const uint64_t period_ns = client_.service()->step();
    Lane& lane = client_.service_lane();
    next_ns = period_ns != 0 ? monotonic_ns() + period_ns
                             : std::min(lane.executor().next_timer_ns(), lane.deadline_ns());
    return period_ns != 0;
  }

 private:
  uint64_t step() override {
    uint64_t next_ns = UINT64_MAX;
    step_once(next_ns);
    return next_ns;
  }

  Client& client_;
};

DrivenClient::DrivenClient(Schedule& schedule, HostClock& clock,
                           const std::vector<MemoryNode*>& nodes, uint32_t lanes)
    : listeners_(std::make_shared<std::vector<Driver*>>(lanes + 1, nullptr)),
      schedule_(schedule),
      clock_(clock),
      order_(schedule.random()) {
  const OnHost scope(clock_);
  std::vector<std::string> names;
  for (MemoryNode* node : nodes) {
    names.push_back(node->name());
    admissions_.push_back({node, node->admit(), std::make_shared<bool>(false)});
    KV_ASSERT(admissions_.back().registration != 0);
  }
  client_ = std::make_unique<Client>(lanes, kAddressEntries, names, false);
  service_driver_ = std::make_unique<ServiceDriver>(schedule_, clock_, *client_);
  listeners_->at(lanes) = service_driver_.get();
  order_ready(client_->service_lane());
  for (uint32_t member = 0; member < nodes.size(); ++member) attach(member);
  service_driver_->poke();
}

DrivenClient::~DrivenClient() {
  const OnHost scope(clock_);
  client_.reset();
}

void DrivenClient::attach(uint32_t member) {
  const MemoryNode& node = *admissions_[member].node;
  layout::Superblock superblock;
  std::memcpy(&superblock, node.region() + layout::kSuperblockOffset, sizeof superblock);
  layout::Geometry geometry;
  std::string error;
  KV_ASSERT(read_superblock(superblock, geometry, error));
  auto attachment = std::make_shared<Attachment>(
      std::make_unique<SimTransport>(admissions_[member], listeners_), superblock, geometry,
      admissions_[member].registration, client_->address_entries());
  read_directory(node, *attachment);
  client_->attach(member, std::move(attachment));
}

void DrivenClient::set_listener(uint32_t lane, Driver* driver) {
  listeners_->at(lane) = driver;
}

void DrivenClient::notice_hurry() {
  if (client_->service()->hurried()) service_driver_->poke();
}

bool DrivenClient::cut_off() {
  for (uint32_t member = 0; member < client_->members(); ++member) {
    if (client_->attachment(member)->state.load() != Attachment::State::kUp) return true;
  }
  return false;
}

void DrivenClient::pause_until(uint64_t instant_ns) {
  service_driver_->pause_until(instant_ns);
}

void DrivenClient::crash() {
  service_driver_->stop();
  for (const Admission& admission : admissions_) {
    *admission.cut = true;
    admission.node->fabric().cut(admission.registration);
  }
  constexpr uint64_t kBeyondEveryDeadlineNs = 24 * 3600 * kSecond;
  clock_.leap(kBeyondEveryDeadlineNs);
  if (!client_->service_lane().running()) return;
  wind_down([this] {
    uint64_t ignored = 0;
    return service_driver_->step_once(ignored);
  });
}

void DrivenClient::wind_down(const std::function<bool()>& step) {
  const OnHost scope(clock_);
  constexpr unsigned kStepsMax = 1000;
  unsigned steps = 0;
  while (!step()) KV_ASSERT(++steps < kStepsMax);
}

}  // namespace kvstore::sim
