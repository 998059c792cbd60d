#include "sim/driven_client.hpp"

#include <algorithm>

namespace kvstore::sim {
namespace {

constexpr uint64_t kAttachNs = kSecond;  // of one attempt
constexpr uint64_t kRetryNsMin = 5 * kMillisecond;
constexpr uint64_t kRetryNsSpread = 40 * kMillisecond;
// Of a request for admission, one way.
constexpr uint64_t kMessageNsMin = 20'000;
constexpr uint64_t kMessageNsSpread = 200'000;

class SimTransport final : public Transport {
 public:
  SimTransport(const Grant& grant, std::shared_ptr<std::vector<Driver*>> listeners,
               Driver& attacher, const Reach& reach, std::shared_ptr<bool> cut,
               std::function<PortPtr()> open)
      : grant_(grant),
        open_(std::move(open)),
        listeners_(std::move(listeners)),
        attacher_(attacher),
        reach_(reach),
        cut_(std::move(cut)) {}

  kv_connection* connect(uint32_t lane, uint64_t, std::string& error) override {
    Driver* const listener = lane == kSetupLane ? &attacher_ : listeners_->at(lane);
    kv_connection* connection = nullptr;
    if (!*cut_) connection = grant_.fabric->connect(grant_.registration, lane, listener, &reach_);
    if (connection == nullptr) error = "the node does not answer";
    return connection;
  }
  uint32_t fabric() const override { return KV_FABRIC_TCP; }
  PortPtr open_port(std::string& error) override {
    PortPtr port = *cut_ ? nullptr : open_();
    if (port == nullptr) error = "there are no messages in this world";
    return port;
  }

 private:
  const Grant grant_;
  const std::function<PortPtr()> open_;
  const std::shared_ptr<std::vector<Driver*>> listeners_;
  Driver& attacher_;
  const Reach& reach_;
  const std::shared_ptr<bool> cut_;
};

}  // namespace

class DrivenClient::ServiceDriver final : public Driver {
 public:
  ServiceDriver(Schedule& schedule, HostClock& clock, DrivenClient& host)
      : Driver(schedule, clock, "a client's service"), host_(host) {}

  // Returns whether nothing is under way.
  bool step_once(uint64_t& next_ns) {
    Client& client = host_.client();
    const uint64_t period_ns = client.service()->step();
    Lane& lane = client.service_lane();
    next_ns = period_ns != 0 ? monotonic_ns() + period_ns
                             : std::min(lane.executor().next_timer_ns(), lane.deadline_ns());
    return period_ns != 0;
  }

 private:
  uint64_t step() override {
    uint64_t next_ns = UINT64_MAX;
    if (host_.client().service() == nullptr) return next_ns;
    // While a beat is under way, that another one is wanted is nothing to do.
    if (step_once(next_ns)) host_.notice();
    return next_ns;
  }

  DrivenClient& host_;
};

// Keeps one member attached. It is poked when the attachment is not what it should be.
class DrivenClient::Attacher final : public Driver {
 public:
  Attacher(DrivenClient& host, uint32_t member, const Home& home)
      : Driver(host.schedule_, host.clock_, "an attachment"),
        host_(host),
        member_(member),
        home_(home) {}

  const Grant& grant() const { return grant_; }
  uint32_t registration() const { return grant_.registration; }
  uint64_t attached_ns() const { return attached_ns_; }
  SimNode* fabric() const { return grant_.fabric; }
  bool is_up() const { return given_ != nullptr && given_->state.load() == Attachment::State::kUp; }

  // Once the client has crashed.
  void abandon() {
    stop();
    if (grant_.fabric != nullptr) grant_.fabric->cut(grant_.registration);
    if (asked_.fabric != nullptr) asked_.fabric->cut(asked_.registration);
    if (stage_ == Stage::kRead) end_reading();
  }

 private:
  enum class Stage { kRest, kAsk, kAnswer, kRead };

  uint64_t message_ns() {
    return monotonic_ns() + kMessageNsMin + schedule_.random().below(kMessageNsSpread + 1);
  }

  uint64_t retry() {
    stage_ = Stage::kRest;
    asked_ = {};
    due_ns_ = monotonic_ns() + kRetryNsMin + schedule_.random().below(kRetryNsSpread + 1);
    return due_ns_;
  }

  uint64_t step() override {
    if (stage_ == Stage::kRead) return read_on();
    if (monotonic_ns() < due_ns_) return due_ns_;
    const uint64_t now_ns = schedule_.now_ns();
    const Reach& reach = *host_.reaches_[member_];
    switch (stage_) {
      case Stage::kRest:
        if (is_up()) return UINT64_MAX;
        stage_ = Stage::kAsk;
        return due_ns_ = message_ns();
      case Stage::kAsk:
        if (now_ns < reach.requests_from_ns) return retry();
        asked_ = home_.admit();
        if (asked_.registration == 0) return retry();
        stage_ = Stage::kAnswer;
        return due_ns_ = message_ns();
      default:
        // A grant that does not arrive is given up by the node after a lease.
        return now_ns < reach.answers_from_ns ? retry() : begin_reading();
    }
  }

  uint64_t begin_reading() {
    auto transport =
        std::make_unique<SimTransport>(asked_, host_.listeners_, *this, *host_.reaches_[member_],
                                       host_.cut_, [this] { return host_.open_port(member_); });
    std::string error;
    connection_ = transport->connect(kSetupLane, 0, error);
    if (connection_ == nullptr) return retry();
    executor_.add_connection(connection_);
    remote_.bind(connection_, &executor_);
    stage_ = Stage::kRead;
    deadline_ns_ = monotonic_ns() + kAttachNs;
    const Executor::Scope scope(executor_);
    task_ = read_attachment(remote_, std::move(transport), asked_.registration,
                            host_.address_entries_, attachment_, error_);
    return read_on();
  }

  uint64_t read_on() {
    const auto done = [this] { return task_.done(); };
    if (monotonic_ns() >= deadline_ns_) connection_->ops->close(connection_);
    if (executor_.run(done, UINT64_MAX, false) != Executor::Outcome::kDone) return deadline_ns_;
    std::shared_ptr<Attachment> attachment = attachment_;
    const bool read = end_reading() == Status::kOk;
    if (!read) return retry();
    stage_ = Stage::kRest;
    grant_ = asked_;
    asked_ = {};
    attached_ns_ = schedule_.now_ns();
    ++host_.attachments_;
    given_ = attachment.get();
    host_.client_->attach(member_, std::move(attachment));
    host_.service_driver_->poke();
    for (Driver* listener : *host_.listeners_) {
      if (listener != nullptr) listener->poke();
    }
    return UINT64_MAX;
  }

  Status end_reading() {
    const OnHost scope(clock_);
    connection_->ops->close(connection_);
    const auto done = [this] { return task_.done(); };
    KV_ASSERT(executor_.run(done, UINT64_MAX, false) == Executor::Outcome::kDone);
    const Status status = task_.take();
    task_ = Task<Status>();
    remote_.bind(nullptr, nullptr);
    executor_.remove_connection(connection_);
    connection_->ops->destroy(connection_);
    attachment_.reset();
    return status;
  }

  DrivenClient& host_;
  const uint32_t member_;
  const Home home_;
  Stage stage_ = Stage::kRest;
  uint64_t due_ns_ = 0;
  uint64_t deadline_ns_ = 0;
  Grant asked_;
  Grant grant_;
  uint64_t attached_ns_ = 0;
  Executor executor_;
  Remote remote_;
  kv_connection* connection_ = nullptr;
  Task<Status> task_;
  std::shared_ptr<Attachment> attachment_;
  // The client's, which nobody else replaces; asked after every step.
  const Attachment* given_ = nullptr;
  std::string error_;
};

ClientMail::ClientMail(Schedule& schedule, const MailTiming& timing)
    : schedule_(schedule), mail_(schedule, timing) {
  mail_.set_route([this](uint64_t from, uint64_t to) {
    const uint64_t now_ns = schedule_.now_ns();
    const auto sender = reaches_.find(from);
    const auto receiver = reaches_.find(to);
    if (sender != reaches_.end() && now_ns < sender->second->requests_from_ns) return false;
    return receiver == reaches_.end() || now_ns >= receiver->second->answers_from_ns;
  });
}

PortPtr ClientMail::open(SimListener* listener, const Reach& reach) {
  PortPtr port = mail_.open(listener);
  reaches_[SimMail::number_of(*port)] = &reach;
  return port;
}

DrivenClient::DrivenClient(Schedule& schedule, HostClock& clock, const std::vector<Home>& homes,
                           uint32_t lanes, ClientMail* mail, uint64_t cache_bytes,
                           uint32_t address_entries)
    : schedule_(schedule),
      clock_(clock),
      mail_(mail),
      address_entries_(address_entries),
      order_(schedule.random()),
      listeners_(std::make_shared<std::vector<Driver*>>(lanes + 1, nullptr)) {
  const OnHost scope(clock_);
  std::vector<std::string> names;
  for (const Home& home : homes) names.push_back(home.name);
  client_ = std::make_unique<Client>(lanes, address_entries, names, false, cache_bytes);
  service_driver_ = std::make_unique<ServiceDriver>(schedule_, clock_, *this);
  listeners_->at(lanes) = service_driver_.get();
  order_ready(client_->service_lane());
  for (uint32_t member = 0; member < homes.size(); ++member) {
    reaches_.push_back(std::make_unique<Reach>());
    attachers_.push_back(std::make_unique<Attacher>(*this, member, homes[member]));
    attachers_.back()->poke();
  }
}

DrivenClient::~DrivenClient() {
  const OnHost scope(clock_);
  client_.reset();
}

void DrivenClient::set_listener(uint32_t lane, Driver* driver) {
  listeners_->at(lane) = driver;
}

void DrivenClient::notice() {
  if (client_->service() != nullptr && client_->service()->hurried()) service_driver_->poke();
  for (const auto& attacher : attachers_) {
    if (!attacher->is_up()) attacher->poke();
  }
}

bool DrivenClient::begun() const {
  return std::all_of(attachers_.begin(), attachers_.end(),
                     [](const auto& attacher) { return attacher->registration() != 0; });
}

bool DrivenClient::attached() const {
  return std::all_of(attachers_.begin(), attachers_.end(),
                     [](const auto& attacher) { return attacher->is_up(); });
}

const Grant& DrivenClient::grant(uint32_t member) const {
  return attachers_[member]->grant();
}

uint32_t DrivenClient::registration(uint32_t member) const {
  return attachers_[member]->registration();
}

uint64_t DrivenClient::attached_ns(uint32_t member) const {
  return attachers_[member]->attached_ns();
}

SimNode* DrivenClient::fabric(uint32_t member) const {
  return attachers_[member]->fabric();
}

PortPtr DrivenClient::open_port(uint32_t member) {
  if (mail_ == nullptr) return nullptr;
  PortPtr port = mail_->open(service_driver_.get(), *reaches_[member]);
  ports_.push_back(SimMail::number_of(*port));
  return port;
}

void DrivenClient::pause_until(uint64_t instant_ns) {
  service_driver_->pause_until(instant_ns);
  for (const auto& attacher : attachers_) attacher->pause_until(instant_ns);
}

void DrivenClient::crash() {
  service_driver_->stop();
  *cut_ = true;
  for (const auto& attacher : attachers_) attacher->abandon();
  for (const uint64_t port : ports_) mail_->cut(port);
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
