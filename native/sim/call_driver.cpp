#include "sim/call_driver.hpp"

#include <algorithm>
#include <cstring>

namespace kvstore::sim {
namespace {

// After a call that its node could not serve.
constexpr uint64_t kRestNsMin = kMillisecond;
constexpr uint64_t kRestNsSpread = 10 * kMillisecond;
// How much later than its deadline a call may return: lanes step when their host does.
constexpr uint64_t kLateNs = 5 * kMillisecond;
// Values beyond are read in two, at a price of its own.
constexpr uint64_t kCostedBytesMax = 3900;

OperationOutcome outcome_of(Status status) {
  switch (status) {
    case Status::kOk:
      return OperationOutcome::kOk;
    case Status::kAbsent:
      return OperationOutcome::kAbsent;
    case Status::kConditionFailed:
      return OperationOutcome::kConditionFailed;
    case Status::kFencedWrite:
      return OperationOutcome::kFenced;
    case Status::kOutcomeUnknown:
      return OperationOutcome::kUnknown;
    default:
      return OperationOutcome::kNoEffect;  // each of them says that nothing was applied
  }
}

bool unserved(Status status) {
  return status == Status::kNodeUnreachable || status == Status::kFenced ||
         status == Status::kNoAttachment || status == Status::kRefused;
}

}  // namespace

ComputeNode::CallDriver::CallDriver(ComputeNode& host, Lane& lane)
    : Driver(host.schedule_, host.clock_, "a call"),
      host_(host),
      workload_(host.workload_),
      lane_(lane) {
  host_.client_->set_listener(lane.index(), this);
  host_.client_->order_ready(lane);
  lane_.executor().set_waker(this);
}

void ComputeNode::CallDriver::abandon() {
  stop();
  activity_ns_ = 0;
  if (!lane_.running()) return;
  host_.client_->wind_down([this] { return lane_.step() == KV_OK; });
  --workload_.under_way;
  --workload_.under_way_at[key_number_];
}

uint64_t ComputeNode::CallDriver::step() {
  const uint64_t next_ns = go_on();
  note_activity();
  host_.client_->notice();
  return next_ns;
}

// An operation that waits without addresses begins to hold them anew, as a later one.
void ComputeNode::CallDriver::note_activity() {
  const uint64_t tick = lane_.active_since.load();
  if (tick == 0) {
    activity_ns_ = 0;
  } else if (tick != activity_tick_ || activity_ns_ == 0) {
    activity_ns_ = schedule_.now_ns();
  }
  activity_tick_ = tick;
}

uint64_t ComputeNode::CallDriver::go_on() {
  int state = KV_PENDING;
  if (lane_.running()) {
    state = lane_.step();
  } else if (!workload_.may_begin() || host_.leaving_ || !host_.client_->begun()) {
    return UINT64_MAX;
  } else if (monotonic_ns() < rest_until_ns_) {
    return rest_until_ns_;
  } else {
    // Between calls the lane is nobody's, as in a real client.
    KV_ASSERT(!lane_.taken.exchange(true));
    begin();
    activity_ns_ = schedule_.now_ns();
    state = lane_.run(&call_, 1, workload_.options.timeout_ns, true);
  }
  if (state != KV_OK) return std::min(lane_.executor().next_timer_ns(), lane_.deadline_ns());
  note_outcome();
  lane_.client().release_lane(lane_);
  Random& random = schedule_.random();
  const uint64_t rest_ns = unserved(Status(call_.status))
                               ? kRestNsMin + random.below(kRestNsSpread + 1)
                               : random.below(workload_.options.think_ns_max + 1);
  rest_until_ns_ = monotonic_ns() + rest_ns;
  return rest_until_ns_;
}

void ComputeNode::CallDriver::begin() {
  Operation operation;
  operation.client = host_.number_;
  operation.called_ns = schedule_.now_ns();
  draw(operation);
  fill_call(operation);
  place_ = workload_.history.size();
  schedule_.tell(operation.key, [&] {
    purpose = {operation.key, what()};
    const std::string line = describe(operation);
    return purpose.text + " begins: " + line.substr(0, line.find(" ["));
  });
  called_host_ns_ = monotonic_ns();
  workload_.history.push_back(operation);
  ++workload_.under_way;
  round_trips_before_ = cost_so_far().round_trips;
  note_cost_begins(operation);
}

void ComputeNode::CallDriver::draw(Operation& operation) {
  const WorldOptions& options = workload_.options;
  if (workload_.resting) {
    const uint64_t number = workload_.last_reads_begun++;
    operation.key = number % options.keys;
    uncached_ = number / options.keys % 2 == 1;
    return;
  }
  if (options.preload && workload_.begun < options.keys) {
    operation.key = workload_.begun;
    operation.kind = OperationKind::kPut;
  } else {
    operation.key = schedule_.random().below(options.keys);
    draw_kind(operation);
  }
  ++workload_.begun;
  if (operation.kind != OperationKind::kPut) return;
  operation.value = workload_.next_value++;
  if (options.mortal_percent == 0) return;
  operation.mortal = schedule_.random().below(100) < options.mortal_percent;
  if (!operation.mortal) return;
  const uint64_t lives_ms_max = std::max<uint64_t>(options.lives_ns_max / kMillisecond, 1);
  operation.lives_ns = (1 + schedule_.random().below(lives_ms_max)) * kMillisecond;
}

void ComputeNode::CallDriver::draw_kind(Operation& operation) {
  const WorldOptions& options = workload_.options;
  Random& random = schedule_.random();
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
  const bool may_carry = writes && options.fenced_percent > 0;
  if (may_carry && random.below(100) < options.fenced_percent) operation.fence = draw_fence();
  if (!writes || !options.conditions) return;
  if (operation.kind == OperationKind::kPut && random.below(3) == 0) {
    operation.condition = OperationCondition::kIfAbsent;
  } else if (random.below(4) == 0) {
    operation.condition = OperationCondition::kIfVersion;
    operation.if_version = workload_.last_version[operation.key];
  }
}

// As of holders of a lock: most write with the newest token, some have held it before.
uint64_t ComputeNode::CallDriver::draw_fence() {
  constexpr uint64_t kOldest = 6;
  Random& random = schedule_.random();
  if (random.below(2) == 0) return ++workload_.last_fence;
  return std::max<uint64_t>(workload_.last_fence, kOldest) - random.below(kOldest);
}

void ComputeNode::CallDriver::fill_call(const Operation& operation) {
  static constexpr uint32_t kKinds[] = {KV_GET, KV_CONTAINS, KV_PUT, KV_DELETE};
  static constexpr uint32_t kFlags[] = {0, KV_IF_ABSENT, KV_IF_VERSION};
  key_number_ = operation.key;
  key_ = key_name(workload_.options, operation.key);
  call_ = kv_call{};
  call_.kind = kKinds[size_t(operation.kind)];
  call_.flags = kFlags[size_t(operation.condition)];
  call_.if_version = operation.if_version;
  if (operation.fence != 0) call_.flags |= KV_WITH_FENCE;
  if (uncached_) call_.flags |= KV_UNCACHED;
  call_.fence = {1, operation.fence};
  call_.ttl_ms = operation.lives_ns / kMillisecond;
  call_.key = key_.data();
  call_.key_bytes = key_.size();
  if (operation.kind != OperationKind::kPut) return;
  value_ = workload_.value_of(operation.value);
  call_.value = value_.data();
  call_.value_bytes = value_.size();
}

void ComputeNode::CallDriver::note_outcome() {
  Operation& operation = workload_.history[place_];
  --workload_.under_way;
  --workload_.under_way_at[operation.key];
  const Status status = Status(call_.status);
  operation.outcome = outcome_of(status);
  if (status == Status::kCorrupt && workload_.options.damages_per_million == 0) {
    workload_.report("corrupt: " + describe(operation));
  }
  // A put with a version meets nothing: its condition has failed.
  if (operation.kind == OperationKind::kPut && status == Status::kAbsent) {
    operation.outcome = OperationOutcome::kConditionFailed;
  }
  judge_time(operation);
  const bool reads =
      operation.kind == OperationKind::kGet || operation.kind == OperationKind::kContains;
  operation.copied = reads && cost_so_far().round_trips == round_trips_before_;
  if (operation.outcome != OperationOutcome::kUnknown) {
    operation.returned_ns = schedule_.now_ns();
    operation.version = call_.version;
    if (operation.version != 0) workload_.last_version[operation.key] = operation.version;
    if (operation.kind == OperationKind::kGet && operation.outcome == OperationOutcome::kOk) {
      operation.value = workload_.number_of(call_.data, call_.data_bytes);
      if (operation.value == kGarbage) workload_.report("garbage: " + describe(operation));
    }
    judge_cost(operation);
  }
  schedule_.tell(operation.key, [&] {
    return what() + " ends: " + describe(operation) + ", status " + std::to_string(call_.status);
  });
  purpose = {};
}

// ---- Progress -------------------------------------------------------------------------------

void ComputeNode::CallDriver::judge_time(const Operation& operation) {
  if (paused_until_ns() >= operation.called_ns) return;  // its host stood still meanwhile
  const uint64_t took_ns = monotonic_ns() - called_host_ns_;
  if (took_ns <= workload_.options.timeout_ns + kLateNs) return;
  workload_.report("returned " + std::to_string(took_ns / kMillisecond) +
                   " ms after its call, past its deadline: " + describe(operation));
}

// ---- Cost -----------------------------------------------------------------------------------

OperationCost ComputeNode::CallDriver::cost_so_far() const {
  OperationCost cost;
  for (uint32_t m = 0; m < lane_.members(); ++m) {
    const VerbCounts& counts = lane_.channel(m).remote.counts();
    cost.reads += counts.reads.get();
    cost.writes += counts.writes.get();
    cost.atomics += counts.cas.get() + counts.faa.get();
    cost.round_trips += counts.round_trips.get();
  }
  return cost;
}

// What makes an operation cost more than the table says.
uint64_t ComputeNode::CallDriver::obstacles() const {
  const LaneCounts& counts = lane_.counts();
  return counts.cas_conflicts.get() + counts.verify_retries.get() + counts.splits.get() +
         counts.evictions.get() + counts.address_stale.get() + counts.reconnects.get();
}

// The client's directory is the node's, and nobody splits.
bool ComputeNode::CallDriver::index_at_rest() const {
  const Key key = make_key(key_.data(), key_.size());
  const uint32_t member = lane_.client().member_of(key.hash);
  const std::shared_ptr<Attachment> attachment = lane_.client().attachment(member);
  const MemoryNode& node = *host_.nodes_[member];
  if (!attachment || !node.up() || !lane_.channel(member).attachment) return false;
  const auto word_at = [&](uint64_t offset) {
    uint64_t word = 0;
    std::memcpy(&word, node.region() + offset, 8);
    return word;
  };
  const layout::Geometry& geometry = node.geometry();
  if (layout::DirectoryLock{word_at(layout::kSplitRecordOffset)}.holder() != 0) return false;
  if (word_at(layout::kGlobalDepthOffset) != attachment->directory.depth()) return false;
  for (uint64_t i = 0; i < attachment->directory.size(); ++i) {
    const uint64_t there = word_at(geometry.directory_offset + i * 8);
    if (attachment->directory.entry_at(i).word != there) return false;
  }
  const unsigned size_class = layout::object_class(key.bytes, call_.value_bytes);
  const bool has_block = attachment->allocator.free_blocks(size_class) > 0;
  const bool full = attachment->full.load();
  return call_.kind != KV_PUT || (has_block && !full);
}

void ComputeNode::CallDriver::note_cost_begins(const Operation& operation) {
  const WorldOptions& options = workload_.options;
  const uint32_t others = workload_.under_way_at[operation.key]++;
  use_ = ++workload_.uses[operation.key];
  costed_ = options.check_cost && options.fenced_percent == 0 && options.cache_bytes == 0 &&
            workload_.faults == 0 && others == 0 && options.node.timing.breaks_per_million == 0 &&
            options.value_bytes_max <= kCostedBytesMax && workload_.is_lone_key(operation.key) &&
            index_at_rest();
  if (!costed_) return;
  cost_before_ = cost_so_far();
  obstacles_before_ = obstacles();
}

void ComputeNode::CallDriver::judge_cost(const Operation& operation) {
  const bool alone = workload_.uses[operation.key] == use_;
  if (!costed_ || !alone || workload_.faults > 0 || obstacles() != obstacles_before_) return;
  const bool told = operation.outcome == OperationOutcome::kOk ||
                    operation.outcome == OperationOutcome::kAbsent ||
                    operation.outcome == OperationOutcome::kConditionFailed;
  if (!told || !index_at_rest()) return;
  OperationCost cost = cost_so_far();
  cost.kind = operation.kind;
  cost.outcome = operation.outcome;
  cost.reads -= cost_before_.reads;
  cost.writes -= cost_before_.writes;
  cost.atomics -= cost_before_.atomics;
  cost.round_trips -= cost_before_.round_trips;
  cost.inserted = operation.kind == OperationKind::kPut && cost.atomics != 1;
  ++workload_.costed;
  const std::string wrong = check_cost(cost);
  if (!wrong.empty()) workload_.report(wrong + ": " + describe(operation));
}

}  // namespace kvstore::sim
