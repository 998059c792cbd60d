#include "sim/compute_node.hpp"

#include <algorithm>

namespace kvstore::sim {
namespace {

OperationOutcome outcome_of(Status status) {
  switch (status) {
    case Status::kOk:
      return OperationOutcome::kOk;
    case Status::kAbsent:
      return OperationOutcome::kAbsent;
    case Status::kConditionFailed:
      return OperationOutcome::kConditionFailed;
    case Status::kOutOfMemory:
    case Status::kBusy:
      return OperationOutcome::kNoEffect;
    default:
      return OperationOutcome::kUnknown;
  }
}

}  // namespace

// Runs one call after another on a lane.
class ComputeNode::CallDriver final : public Driver {
 public:
  CallDriver(ComputeNode& host, Lane& lane)
      : Driver(host.schedule_, host.clock_), host_(host), lane_(lane) {
    host_.client_->set_listener(lane.index(), this);
    host_.client_->order_ready(lane);
  }

  // Once the client has crashed.
  void abandon() {
    stop();
    if (!lane_.running()) return;
    host_.client_->wind_down([this] { return lane_.step() == KV_OK; });
    --host_.workload_.under_way;
  }

 private:
  uint64_t step() override {
    const uint64_t next_ns = go_on();
    host_.client_->notice_hurry();
    return next_ns;
  }

  uint64_t go_on() {
    Workload& workload = host_.workload_;
    Random& random = schedule_.random();
    int state = KV_PENDING;
    if (lane_.running()) {
      state = lane_.step();
    } else if (workload.begun >= workload.options.operations) {
      return UINT64_MAX;
    } else if (monotonic_ns() < rest_until_ns_) {
      return rest_until_ns_;
    } else {
      draw(random);
      state = lane_.run(&call_, 1, workload.options.timeout_ns, true);
    }
    if (state != KV_OK) {
      return std::min(lane_.executor().next_timer_ns(), lane_.deadline_ns());
    }
    note_outcome();
    lane_.arena().reset();
    rest_until_ns_ = monotonic_ns() + random.below(workload.options.think_ns_max + 1);
    return rest_until_ns_;
  }

  void draw(Random& random) {
    Workload& workload = host_.workload_;
    Operation operation;
    operation.client = host_.number_;
    operation.called_ns = schedule_.now_ns();
    if (workload.options.preload && workload.begun < workload.options.keys) {
      operation.key = workload.begun;
      operation.kind = OperationKind::kPut;
    } else {
      operation.key = random.below(workload.options.keys);
      draw_kind(random, operation);
    }
    if (operation.kind == OperationKind::kPut) operation.value = workload.next_value++;
    fill_call(operation);
    place_ = workload.history.size();
    schedule_.tell(operation.key, [&] {
      purpose = {operation.key, "operation " + std::to_string(place_)};
      const std::string line = describe(operation);
      return purpose.text + " begins: " + line.substr(0, line.find(" ["));
    });
    workload.history.push_back(operation);
    ++workload.begun;
    ++workload.under_way;
  }

  void draw_kind(Random& random, Operation& operation) {
    const WorldOptions& options = host_.workload_.options;
    uint64_t dice = random.below(100);
    const auto falls_to = [&dice](unsigned percent) {
      const bool falls = dice < percent;
      dice -= falls ? 0 : percent;
      return falls;
    };
    operation.kind = falls_to(options.get_percent)        ? OperationKind::kGet
                     : falls_to(options.contains_percent) ? OperationKind::kContains
                     : falls_to(options.put_percent)      ? OperationKind::kPut
                                                          : OperationKind::kDelete;
    const bool writes = operation.kind >= OperationKind::kPut;
    if (!writes || !options.conditions) return;
    if (operation.kind == OperationKind::kPut && random.below(3) == 0) {
      operation.condition = OperationCondition::kIfAbsent;
    } else if (random.below(4) == 0) {
      operation.condition = OperationCondition::kIfVersion;
      operation.if_version = host_.workload_.last_version[operation.key];
    }
  }

  void fill_call(const Operation& operation) {
    static constexpr uint32_t kKinds[] = {KV_GET, KV_CONTAINS, KV_PUT, KV_DELETE};
    static constexpr uint32_t kFlags[] = {0, KV_IF_ABSENT, KV_IF_VERSION};
    key_ = "key " + std::to_string(operation.key);
    call_ = kv_call{};
    call_.kind = kKinds[size_t(operation.kind)];
    call_.flags = kFlags[size_t(operation.condition)];
    call_.if_version = operation.if_version;
    call_.key = key_.data();
    call_.key_bytes = key_.size();
    if (operation.kind != OperationKind::kPut) return;
    value_ = host_.workload_.value_of(operation.value);
    call_.value = value_.data();
    call_.value_bytes = value_.size();
  }

  void note_outcome() {
    Workload& workload = host_.workload_;
    Operation& operation = workload.history[place_];
    --workload.under_way;
    const Status status = Status(call_.status);
    operation.outcome = outcome_of(status);
    if (host_.client_->cut_off()) host_.cut_off_ = workload.cut_off = true;
    if (status == Status::kCorrupt)
      workload.violation = std::string("corrupt: ").append(describe(operation));
    // A put with a version meets nothing: its condition has failed.
    if (operation.kind == OperationKind::kPut && status == Status::kAbsent) {
      operation.outcome = OperationOutcome::kConditionFailed;
    }
    if (operation.outcome == OperationOutcome::kUnknown) {
      tell_outcome(operation);
      return;
    }
    operation.returned_ns = schedule_.now_ns();
    operation.version = call_.version;
    if (operation.version != 0) workload.last_version[operation.key] = operation.version;
    if (operation.kind == OperationKind::kGet && operation.outcome == OperationOutcome::kOk) {
      operation.value = workload.number_of(call_.data, call_.data_bytes);
      if (operation.value == kGarbage)
        workload.violation = std::string("garbage: ").append(describe(operation));
    }
    tell_outcome(operation);
  }

  void tell_outcome(const Operation& operation) {
    schedule_.tell(operation.key, [&] { return purpose.text + " ends: " + describe(operation); });
    purpose = {};
  }

  ComputeNode& host_;
  Lane& lane_;
  kv_call call_{};
  std::string key_;
  std::vector<uint8_t> value_;
  size_t place_ = 0;
  uint64_t rest_until_ns_ = 0;
};

ComputeNode::ComputeNode(Schedule& schedule, const std::vector<MemoryNode*>& nodes,
                         Workload& workload, uint32_t number, int64_t drift_per_million)
    : schedule_(schedule),
      workload_(workload),
      number_(number),
      clock_(schedule, drift_per_million, schedule.random().below(3600 * kSecond)),
      client_(std::make_unique<DrivenClient>(schedule, clock_, nodes, workload.options.lanes)) {
  for (unsigned i = 0; i < workload.options.lanes; ++i) {
    Status status = Status::kOk;
    Lane* lane = client_->client().acquire_lane(0, status);
    KV_ASSERT(lane != nullptr);
    drivers_.push_back(std::make_unique<CallDriver>(*this, *lane));
    drivers_.back()->poke();
  }
}

ComputeNode::~ComputeNode() {
  if (!crashed_) crash();
}

void ComputeNode::crash() {
  crashed_ = true;
  client_->crash();
  for (const auto& driver : drivers_) driver->abandon();
  const OnHost scope(clock_);
  client_->client().close();
}

void ComputeNode::pause_until(uint64_t instant_ns) {
  client_->pause_until(instant_ns);
  for (const auto& driver : drivers_) driver->pause_until(instant_ns);
}

}  // namespace kvstore::sim
