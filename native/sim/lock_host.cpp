#include "sim/lock_host.hpp"

#include <algorithm>
#include <cstring>
#include <string>

#include "base/crc32c.hpp"

namespace kvstore::sim {

using Turn = LocalLock::Turn;

// ---- the service ----------------------------------------------------------------------------

class LockHost::ServiceDriver final : public Driver {
 public:
  explicit ServiceDriver(LockHost& host)
      : Driver(host.schedule_, host.clock_, "the service of a client with locks"), host_(host) {}

  // Returns whether nothing is under way.
  bool step_once(uint64_t& next_ns) {
    const uint64_t pause_ns = host_.client_->service()->step();
    Lane& lane = host_.client_->service_lane();
    next_ns = pause_ns != 0 ? monotonic_ns() + pause_ns
                            : std::min(lane.executor().next_timer_ns(), lane.deadline_ns());
    return pause_ns != 0;
  }

 private:
  uint64_t step() override {
    uint64_t next_ns = UINT64_MAX;
    if (host_.client_->service() != nullptr) step_once(next_ns);
    return next_ns;
  }

  LockHost& host_;
};

// ---- a worker -------------------------------------------------------------------------------

// Does what LockHold does, but goes on elsewhere wherever that would wait.
class LockHost::Worker final : public Driver, public LockWaiter {
 public:
  Worker(LockHost& host, Lane& lane)
      : Driver(host.schedule_, host.clock_, "a thread that uses locks"), host_(host), lane_(lane) {
    lane_.executor().set_ready_order(&host.order_);
  }

  void woken() override { poke(); }
  void let_go() { lane_.taken.store(false); }

  // Once the client has crashed.
  void abandon() {
    stop();
    if (stage_ != Stage::kThink) --host_.workload_.under_way;
    if (!lane_.running()) return;
    const OnHost scope(host_.clock_);
    for (unsigned steps = 0; !lane_.step_task(); ++steps) KV_ASSERT(steps < 1000);
    lane_.end_task();
  }

  std::string describe() const { return std::string(1, "toewhl"[size_t(stage_)]); }

 private:
  enum class Stage { kThink, kOpen, kEnter, kWait, kHold, kLeave };
  static constexpr uint64_t kStepsOfCancelled = 12;

  uint64_t step() override {
    const bool wishes = stage_ == Stage::kOpen || stage_ == Stage::kEnter || stage_ == Stage::kWait;
    if (wishes && steps_left_ > 0) --steps_left_;
    const uint64_t next_ns = go_on();
    host_.notice();
    return next_ns;
  }

  LockSpace& locks() { return host_.attachment_->locks; }
  LocalLock& lock() { return locks().lock_of(request_.name); }

  uint64_t go_on() {
    for (;;) {
      if (lane_.running()) {
        if (!lane_.step_task()) {
          return std::min(lane_.executor().next_timer_ns(), lane_.deadline_ns());
        }
        task_ended(lane_.end_task());
        continue;
      }
      const uint64_t now_ns = monotonic_ns();
      switch (stage_) {
        case Stage::kThink:
          if (host_.workload_.begun >= host_.workload_.options.operations) return UINT64_MAX;
          if (now_ns < until_ns_) return until_ns_;
          begin();
          break;
        case Stage::kWait: {
          if (steps_left_ == 0) {
            ++host_.workload_.cancelled;
            follow(lock().cancel(request_));
            break;
          }
          const Turn turn = lock().look(request_);
          if (turn != Turn::kWait) {
            follow(turn);
          } else if (now_ns < until_ns_) {
            return until_ns_;
          } else {
            follow(lock().cancel(request_));
          }
          break;
        }
        case Stage::kHold:
          // Right before the end of its lease it counts as a holder no more.
          if (now_ns + 1 >= request_.expiry_ns) stop_holding();
          if (now_ns < until_ns_) return std::min(until_ns_, next_end_ns());
          release();
          break;
        default:
          KV_ASSERT(false);
      }
    }
  }

  // Starts a task on the lane, or returns why it can't.
  template <class Start>
  Status start(Stage stage, Start&& start) {
    Channel& channel = lane_.channel(0);
    // A lane is held while something is done on it; in between the service may connect it anew.
    lane_.taken.store(true);
    const Status status = channel.ready(monotonic_ns() + kSecond);
    if (status != Status::kOk) lane_.taken.store(false);
    if (status != Status::kOk) return status;
    stage_ = stage;
    lane_.begin_task([&] { return start(channel.remote); }, monotonic_ns() + 2 * kSecond);
    return Status::kOk;
  }

  void begin() {
    Random& random = schedule_.random();
    LockWorkload& workload = host_.workload_;
    const LockWorldOptions& options = workload.options;
    lock_number_ = unsigned(random.below(workload.names.size()));
    request_.name = workload.names[lock_number_];
    request_.owner = lane_.index() + 1;
    request_.exclusive = random.below(100) >= options.readers_percent;
    request_.only_if_free = random.below(100) < options.tries_percent;
    request_.lease_ns = 0;
    if (options.leased_percent > 0 && random.below(100) < options.leased_percent) {
      request_.lease_ns = 1'000 + random.below(options.leased_ns_max);
    }
    steps_left_ = UINT64_MAX;
    if (options.cancelled_percent > 0 && random.below(100) < options.cancelled_percent) {
      steps_left_ = random.below(kStepsOfCancelled);
    }
    request_.waiter = this;
    const bool hurried = random.below(100) < options.hurried_percent;
    asked_ns_ = schedule_.now_ns();
    until_ns_ =
        monotonic_ns() + (hurried ? random.below(options.hurried_ns_max + 1) : options.timeout_ns);
    ++workload.begun;
    ++workload.under_way;
    if (locks().is_open()) {
      follow(lock().request(request_));
      return;
    }
    locks().table().want(options.shape);
    const Status status = start(Stage::kOpen, [this](Remote& remote) {
      return locks().open(remote, host_.attachment_->segments);
    });
    if (status != Status::kOk) rest();
  }

  void task_ended(Status status) {
    if (status == Status::kOutcomeUnknown) lane_.channel(0).note_lost();
    lane_.taken.store(false);
    switch (stage_) {
      case Stage::kOpen:
        if (status != Status::kOk) {
          rest();
        } else {
          follow(lock().request(request_));
        }
        return;
      case Stage::kEnter:
        if (status == Status::kOutcomeUnknown) lock().entry_unknown(request_.exclusive);
        follow(lock().look(request_));
        return;
      default:
        if (status == Status::kOutcomeUnknown) lock().leave_unknown(request_.place_exclusive);
        rest();
    }
  }

  void follow(Turn turn) {
    LockWorkload& workload = host_.workload_;
    switch (turn) {
      case Turn::kEnter: {
        const Status status = start(Stage::kEnter, [this](Remote& remote) {
          return locks().enter(remote, lock(), request_.exclusive);
        });
        if (status == Status::kOk) return;
        lock().not_entered(request_.exclusive, status);
        rest();
        return;
      }
      case Turn::kWait:
        stage_ = Stage::kWait;
        return;
      case Turn::kGranted: {
        stage_ = Stage::kHold;
        holds_ = true;
        const uint64_t waited_ns = schedule_.now_ns() - asked_ns_;
        workload.longest_wait_ns = std::max(workload.longest_wait_ns, waited_ns);
        ++workload.granted;
        workload.ledger.granted(lock_number_, {host_.number_, lane_.index(), request_.exclusive},
                                request_.token);
        const uint64_t story[3] = {schedule_.now_ns(), request_.token, host_.number_};
        workload.digest = crc32c(workload.digest, story, sizeof story);
        until_ns_ = monotonic_ns() + schedule_.random().below(workload.options.hold_ns_max + 1);
        if (steps_left_ > 0) return;
        ++workload.cancelled_too_late;
        until_ns_ = monotonic_ns();
        return;
      }
      default:
        ++workload.gave_up;
        rest();
    }
  }

  uint64_t next_end_ns() const {
    return holds_ && request_.expiry_ns != UINT64_MAX ? request_.expiry_ns - 1 : UINT64_MAX;
  }
  void stop_holding() {
    if (holds_) host_.workload_.ledger.released(lock_number_, host_.number_, lane_.index());
    holds_ = false;
  }

  void release() {
    stop_holding();
    const Turn turn = lock().release(request_);
    if (turn == Turn::kFailed) ++host_.workload_.expired;
    if (turn != Turn::kLeave) {
      rest();
      return;
    }
    const Status status = start(Stage::kLeave, [this](Remote& remote) {
      return locks().leave(remote, lock(), request_.place_exclusive);
    });
    if (status == Status::kOk) return;
    lock().leave_later(request_.place_exclusive);
    rest();
  }

  void rest() {
    --host_.workload_.under_way;
    stage_ = Stage::kThink;
    until_ns_ = monotonic_ns() + schedule_.random().below(host_.workload_.options.think_ns_max + 1);
  }

  LockHost& host_;
  Lane& lane_;
  Stage stage_ = Stage::kThink;
  LockRequest request_;
  uint64_t steps_left_ = UINT64_MAX;  // of a wish, until it is cancelled
  unsigned lock_number_ = 0;
  bool holds_ = false;
  uint64_t asked_ns_ = 0;
  uint64_t until_ns_ = 0;
};

// ---- the host -------------------------------------------------------------------------------

class LockHost::HostTransport final : public Transport {
 public:
  explicit HostTransport(LockHost& host) : host_(host) {}

  kv_connection* connect(uint32_t lane, uint64_t, std::string& error) override {
    Driver* const listener = lane < host_.workers_.size()
                                 ? static_cast<Driver*>(host_.workers_[lane].get())
                                 : host_.service_driver_.get();
    kv_connection* connection = nullptr;
    if (!host_.cut_) {
      connection = host_.workload_.node.connect(host_.registration_, lane, listener);
    }
    if (connection == nullptr) error = "the node does not answer";
    return connection;
  }
  uint32_t fabric() const override { return KV_FABRIC_TCP; }
  PortPtr open_port(std::string&) override {
    PortPtr port = host_.workload_.mail.open(host_.service_driver_.get());
    host_.port_ = SimMail::number_of(*port);
    return port;
  }

 private:
  LockHost& host_;
};

LockHost::LockHost(Schedule& schedule, LockWorkload& workload, uint32_t number,
                   int64_t drift_per_million)
    : schedule_(schedule),
      workload_(workload),
      number_(number),
      clock_(schedule, drift_per_million, schedule.random().below(3600 * kSecond)),
      order_(schedule.random()) {
  {
    const OnHost at_the_node(workload.node_clock);
    Token token;
    registration_ = workload.registry.admit("simulated", KV_FABRIC_TCP, token);
    KV_ASSERT(registration_ != 0);
    workload.registry.connected(registration_, KV_FABRIC_TCP, 0, -1);
  }
  const OnHost scope(clock_);
  client_ = std::make_unique<Client>(workload.options.workers, 1,
                                     std::vector<std::string>{"the node"}, false);
  service_driver_ = std::make_unique<ServiceDriver>(*this);
  client_->service_lane().executor().set_ready_order(&order_);
  for (unsigned i = 0; i < workload.options.workers; ++i) {
    Status status = Status::kOk;
    Lane* lane = client_->acquire_lane(0, status);
    KV_ASSERT(lane != nullptr);
    workers_.resize(workload.options.workers);
    workers_[lane->index()] = std::make_unique<Worker>(*this, *lane);
  }
  for (const auto& worker : workers_) worker->let_go();
  layout::Superblock superblock;
  std::memcpy(&superblock, workload.node.region(), sizeof superblock);
  layout::Geometry geometry;
  std::string error;
  KV_ASSERT(read_superblock(superblock, geometry, error));
  attachment_ = std::make_shared<Attachment>(std::make_unique<HostTransport>(*this), superblock,
                                             geometry, registration_, 1);
  client_->attach(0, attachment_);
  service_driver_->poke();
  for (const auto& worker : workers_) worker->poke();
}

LockHost::~LockHost() {
  if (!cut_) crash();
  const OnHost scope(clock_);
  client_.reset();
}

// A lane may have given the service something to do.
void LockHost::notice() {
  const Service* const service = client_->service();
  if (service == nullptr) return;
  const uint64_t due_ns = service->locks_due_ns();
  if (due_ns < due_seen_ns_ || service->hurried()) service_driver_->poke();
  due_seen_ns_ = due_ns;
}

void LockHost::crash() {
  cut_ = true;
  service_driver_->stop();
  workload_.node.cut(registration_);
  if (port_ != 0) workload_.mail.cut(port_);
  constexpr uint64_t kBeyondEveryDeadlineNs = 24 * 3600 * kSecond;
  clock_.leap(kBeyondEveryDeadlineNs);
  for (const auto& worker : workers_) worker->abandon();
  const OnHost scope(clock_);
  uint64_t ignored = 0;
  if (client_->service_lane().running()) {
    for (unsigned steps = 0; !service_driver_->step_once(ignored); ++steps) KV_ASSERT(steps < 1000);
  }
  client_->close();
}

std::string LockHost::describe() const {
  std::string text = "client " + std::to_string(number_) + ":";
  for (const auto& worker : workers_) text.append(" ").append(worker->describe());
  attachment_->locks.for_each([&](LocalLock& lock) {
    for (const bool exclusive : {true, false}) {
      const LocalLock::View view = lock.view(exclusive);
      text += " lock " + std::to_string(lock.number()) + (exclusive ? " writers" : " readers") +
              " place " + std::to_string(int(view.place)) + " index " + std::to_string(view.index) +
              " waiting " + std::to_string(view.waiting) + " holding " +
              std::to_string(view.holding);
    }
  });
  return text;
}

void LockHost::pause_until(uint64_t instant_ns) {
  service_driver_->pause_until(instant_ns);
  for (const auto& worker : workers_) worker->pause_until(instant_ns);
}

}  // namespace kvstore::sim
