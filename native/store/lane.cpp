#include "store/lane.hpp"

#include <algorithm>
#include <new>
#include <utility>

#include "base/time_scale.hpp"
#include "store/client.hpp"
#include "store/operations.hpp"

namespace kvstore {

namespace {

// Calls of one run whose round trips overlap.
constexpr uint32_t kWorkersMax = 64;
static_assert(kWorkersMax + Remote::kFanOut <= KV_FABRIC_OUTSTANDING_LEAST);
// A node that answered no lane, nor the heartbeat, for this long is taken to be down; a deadline of
// a caller says nothing about the node.
constexpr uint64_t kSilenceNs = kSecond;
constexpr uint64_t kConnectNs = kSecond;

}  // namespace

// ---- Arena ----------------------------------------------------------------------------------

void* Arena::allocate(uint64_t bytes) {
  bytes = std::max<uint64_t>((bytes + 15) / 16 * 16, 16);
  if (bytes > kChunkBytes / 2) {
    // The length is the node's word for it: there may not be that much.
    std::unique_ptr<uint8_t[]> memory(new (std::nothrow) uint8_t[bytes]);
    if (!memory) return nullptr;
    large_.push_back(std::move(memory));
    return large_.back().get();
  }
  if (current_ < chunks_.size() && used_ + bytes > chunks_[current_].bytes) {
    ++current_;
    used_ = 0;
  }
  if (current_ == chunks_.size()) {
    chunks_.push_back({std::make_unique_for_overwrite<uint8_t[]>(kChunkBytes), kChunkBytes});
    used_ = 0;
  }
  void* memory = chunks_[current_].memory.get() + used_;
  used_ += bytes;
  return memory;
}

void Arena::reset() {
  large_.clear();
  // What one large batch needed is not kept for ever.
  constexpr size_t kChunksKept = 4;
  if (chunks_.size() > kChunksKept) chunks_.resize(kChunksKept);
  current_ = 0;
  used_ = 0;
}

// ---- Channel --------------------------------------------------------------------------------

void Channel::drop_connection() {
  if (connection_ != nullptr) {
    remote.executor().remove_connection(connection_);
    connection_->ops->destroy(connection_);
    connection_ = nullptr;
  }
  remote.bind(nullptr, nullptr);
}

void Channel::drop() {
  KV_ASSERT(uses_ == 0);
  drop_connection();
  attachment.reset();
  recent_uses.clear();
  lost_since_.store(0, std::memory_order_release);
}

// The lane's own thread, within a call: its activity ends after this.
void Channel::note_lost() {
  if (unfenced()) return;
  const uint64_t since = lane_->active_since.load(std::memory_order_relaxed);
  const uint64_t now = lane_->client().tick().load(std::memory_order_acquire);
  lost_since_.store(std::max<uint64_t>(since != 0 ? since : now, 1), std::memory_order_release);
}

void Channel::break_off() {
  if (connection_ != nullptr) connection_->ops->close(connection_);
}

Status Channel::ready(uint64_t deadline_ns) {
  Member& member = lane_->client().member(member_);
  const uint64_t generation = member.generation.load(std::memory_order_acquire);
  if (generation == 0) return Status::kNoAttachment;
  const bool usable = connection_ != nullptr && connection_->broken == 0;
  if (usable && (generation == generation_ || uses_ > 0)) {
    if (unfenced()) lost_since_.store(0, std::memory_order_release);  // a connection after it
    return attachment->state.load(std::memory_order_relaxed) == Attachment::State::kFenced
               ? Status::kFenced
               : Status::kOk;
  }
  // While other calls of this lane await the old connection it can't be replaced; it is broken, so
  // they end at once.
  if (remote.pending() > 0) return Status::kNodeUnreachable;
  std::shared_ptr<Attachment> current = lane_->client().attachment(member_);
  // Those under way refer to the attachment that they began with.
  if (uses_ > 0 && current != attachment) return Status::kNodeUnreachable;
  const Attachment::State state = current->state.load(std::memory_order_acquire);
  if (state == Attachment::State::kFenced) return Status::kFenced;
  if (state != Attachment::State::kUp) return Status::kNodeUnreachable;
  if (lane_->cancelled()) return Status::kNodeUnreachable;
  const bool again = connection_ != nullptr;
  if (current == attachment) {
    drop_connection();
  } else {
    drop();
  }
  std::string error;
  const uint64_t until_ns = std::min(deadline_ns, monotonic_ns() + patient(kConnectNs));
  kv_connection* connection = current->transport->connect(lane_->index(), until_ns, error);
  if (connection == nullptr) {
    current->state.store(Attachment::State::kDown, std::memory_order_release);
    return Status::kNodeUnreachable;
  }
  if (again) ++lane_->counts().reconnects;
  attachment = std::move(current);
  generation_ = generation;
  connection_ = connection;
  lost_since_.store(0, std::memory_order_release);
  remote.bind(connection, &lane_->executor());
  lane_->executor().add_connection(connection);
  return Status::kOk;
}

uint64_t Channel::metadata_of(uint64_t subtable, uint64_t slot_offset) {
  const uint64_t in_subtable = slot_offset - subtable;
  if (in_subtable >= layout::kSubtableBucketBytes) return 0;  // a torn entry of the address cache
  const uint64_t group = in_subtable / layout::kGroupBytes;
  const uint64_t bucket = in_subtable % layout::kGroupBytes / layout::kBucketBytes;
  const uint64_t slot = in_subtable % layout::kBucketBytes / 8;
  if (slot == 0) return 0;
  const uint64_t index =
      group * layout::kSlotsPerGroup + bucket * layout::kSlotsPerBucket + slot - 1;
  return subtable + layout::kSubtableBucketBytes + index * sizeof(layout::EvictionMetadata);
}

void Channel::touch(uint64_t subtable, uint64_t slot_offset, const Key& key, const kv_call& call,
                    bool written) {
  if (!attachment->evicts()) return;
  const uint64_t metadata_offset = metadata_of(subtable, slot_offset);
  if (metadata_offset == 0) return;
  const uint64_t began_ns = lane_->began_ns();
  const uint64_t used_ns = call.used_ns != 0 ? std::min(call.used_ns, began_ns) : began_ns;
  const uint32_t when_ms = time_of_use(attachment->node_clock_at_ms(used_ns));
  if (call.pin_s == 0) recent_uses.note(metadata_offset, when_ms, call.reuse, written);
  const Touch touch{attachment->superblock.incarnation,
                    metadata_offset,
                    key.hash,
                    when_ms,
                    call.reuse,
                    uint16_t(std::min(call.pin_s, layout::kPinSecondsMax)),
                    written};
  if (touches.push(touch)) lane_->client().tell_touches();
}

// ---- Lane -----------------------------------------------------------------------------------

Lane::Lane(Client& client, uint32_t index, uint32_t members)
    : client_(client),
      index_(index),
      members_(members),
      channels_(std::make_unique_for_overwrite<Channel[]>(members)) {
  for (uint32_t m = 0; m < members; ++m) {
    channels_[m].lane_ = this;
    channels_[m].member_ = m;
  }
}

Lane::~Lane() = default;

void Lane::begin_activity() {
  active_since.store(client_.tick().load(std::memory_order_acquire), std::memory_order_seq_cst);
}

Task<Status> Lane::wait_without_addresses(uint64_t until_ns) {
  ++run_.waiting;
  if (run_.waiting == run_.workers_left) begin_activity();
  co_await executor_.sleep_until(until_ns);
  if (run_.waiting == run_.workers_left) begin_activity();
  --run_.waiting;
  co_return Status::kOk;
}

void Lane::give_up(Status reason) {
  cancelled_ = true;
  cancel_reason_ = reason;
  for (uint32_t m = 0; m < members_; ++m) {
    Channel& channel = channels_[m];
    if (channel.remote.pending() == 0) continue;
    if (reason == Status::kDeadlineExceeded &&
        channel.attachment->silent_ns() >= patient(kSilenceNs)) {
      channel.attachment->state.store(Attachment::State::kDown, std::memory_order_release);
    }
    const Executor::Scope scope(executor_);
    channel.break_off();
  }
  executor_.expire_timers();
}

Task<Status> Lane::execute(Channel& channel, const Key& key, kv_call& call) {
  switch (call.kind) {
    case KV_GET:
      return get(channel, key, call);
    case KV_PUT:
      return put(channel, key, call);
    case KV_DELETE:
      return remove(channel, key, call);
    default:
      return kvstore::contains(channel, key, call);
  }
}

void Lane::look_ahead(uint32_t index) {
  for (; run_.hashed < run_.count && run_.hashed <= index + kHashAhead; ++run_.hashed) {
    const kv_call& call = call_at(run_.hashed);
    Destination& next = run_.ahead[run_.hashed % run_.ahead.size()];
    next = {};
    if (call.key_bytes == 0 || call.key_bytes > KV_KEY_BYTES_MAX) continue;  // refused in its turn
    next.key = make_key(call.key, call.key_bytes);
    next.member = client_.member_of(next.key.hash);
    if (run_.count == 1) return;
    const Channel& channel = channels_[next.member];
    if (channel.attachment) channel.attachment->addresses.prefetch(next.key.hash);
  }
  for (; run_.fetched < run_.hashed && run_.fetched <= index + kFetchAhead; ++run_.fetched) {
    fetch_ahead(run_.ahead[run_.fetched % run_.ahead.size()]);
  }
}

void Lane::fetch_ahead(const Destination& next) {
  const Channel& channel = channels_[next.member];
  if (!channel.attachment || !channel.remote.loads_from_memory()) return;
  KnownAddress known;
  if (channel.attachment->addresses.find(next.key.hash, known)) {
    channel.remote.prefetch(known.slot_offset, 8);
    channel.remote.prefetch(known.slot.offset(),
                            layout::kHeaderBytes + next.key.bytes + known.value_bytes);
    return;
  }
  const uint64_t subtable = channel.attachment->directory.entry_of(next.key.hash).offset();
  for (const Position& position : positions_of(next.key.hash).at) {
    channel.remote.prefetch(subtable + position.offset_in_subtable(), layout::kCombinedBytes);
  }
}

namespace {

// Clears the outcome. kNodeUnreachable: the call may be tried; otherwise it is refused.
Status begin_call(kv_call& call) {
  call.data = nullptr;
  call.data_bytes = 0;
  call.version = 0;
  if (call.key_bytes == 0 || call.key_bytes > KV_KEY_BYTES_MAX) return Status::kKeyInvalid;
  if (call.kind < KV_GET || call.kind > KV_CONTAINS) return Status::kInvalid;
  return Status::kNodeUnreachable;
}

bool is_lost(Status status) {
  return status == Status::kNodeUnreachable || status == Status::kRefused;
}

}  // namespace

bool Lane::serve_from_copy(const Destination& destination, kv_call& call) {
  ClientCache* const cache = client_.member(destination.member).cache.get();
  if (cache == nullptr || (call.flags & KV_UNCACHED) != 0) return false;
  const auto place_for = [this](kv_call& asking, uint64_t bytes) {
    const bool large = bytes > KV_ARENA_VALUE_BYTES || values_through_allocate_;
    return large && asking.allocate != nullptr ? asking.allocate(asking.context, &asking, bytes)
                                               : arena_.allocate(bytes);
  };
  if (call.kind == KV_GET) return cache->get(destination.key, call, place_for);
  return call.kind == KV_CONTAINS && cache->contains(destination.key, call);
}

// Executes calls until none is left. All steps of a call that need no coroutine of their own are in
// this one: at shm a frame costs as much as what it does.
Task<Status> Lane::work() {
  while (run_.next < run_.count) {
    const uint32_t index = run_.next++;
    look_ahead(index);
    kv_call& call = call_at(index);
    const Destination destination = run_.ahead[index % run_.ahead.size()];
    Channel& channel = channels_[destination.member];
    Status status = begin_call(call);
    if (is_lost(status) && serve_from_copy(destination, call)) continue;
    if (is_lost(status)) ++counts_.operations;
    // A connection that broke is replaced once; a node that can't be reached then is down, and
    // every further call is told so at once.
    constexpr unsigned kAttempts = 2;
    for (unsigned attempt = 0; is_lost(status) && attempt < kAttempts && !cancelled_; ++attempt) {
      status = channel.ready(run_.deadline_ns);
      if (status != Status::kOk) break;
      const Channel::Use use(channel);
      status = co_await execute(channel, destination.key, call);
    }
    if (cancelled_ && status == Status::kNodeUnreachable) status = cancel_reason_;
    call.status = int32_t(status);
  }
  --run_.workers_left;
  co_return Status::kOk;
}

void Lane::start(kv_call* calls, kv_call* const* list, uint32_t count, uint64_t timeout_ns) {
  KV_ASSERT(!run_.active);
  run_.calls = calls;
  run_.list = list;
  run_.count = count;
  run_.next = 0;
  run_.hashed = 0;
  run_.fetched = 0;
  run_.waiting = 0;
  run_.began_ns = monotonic_ns();
  run_.deadline_ns =
      timeout_ns > UINT64_MAX - run_.began_ns ? UINT64_MAX : run_.began_ns + timeout_ns;
  run_.active = true;
  cancelled_ = false;
  begin_activity();
  const uint32_t workers = std::min(count, kWorkersMax);
  run_.workers_left = workers;
  const Executor::Scope scope(executor_);
  for (uint32_t i = 0; i < workers; ++i) run_.workers.push_back(work());
}

int Lane::continue_run(bool inline_only) {
  const auto done = [this] { return run_.workers_left == 0; };
  if (inline_only) {
    const Executor::Outcome outcome = executor_.run(done, UINT64_MAX, false);
    if (outcome == Executor::Outcome::kWouldBlock) return KV_PENDING;
  } else {
    drive(done, run_.deadline_ns);
  }
  run_.workers.clear();
  end_activity();
  run_.active = false;
  // It was about these calls: whoever finds the lane idle may connect it again.
  cancelled_ = false;
  return KV_OK;
}

int Lane::run(kv_call* calls, uint32_t count, uint64_t timeout_ns, bool inline_only) {
  if (calls != nullptr) {
    if (run_.active) return KV_INVALID;
    start(calls, nullptr, count, timeout_ns);
  } else if (!run_.active) {
    return KV_INVALID;
  }
  return continue_run(inline_only);
}

int Lane::step() {
  if (!run_.active) return KV_INVALID;
  if (monotonic_ns() >= run_.deadline_ns) give_up(Status::kDeadlineExceeded);
  return continue_run(true);
}

bool Lane::step_task() {
  if (monotonic_ns() >= run_.deadline_ns) give_up(Status::kDeadlineExceeded);
  const auto done = [this] { return task_.done(); };
  return executor_.run(done, UINT64_MAX, false) == Executor::Outcome::kDone;
}

Status Lane::end_task() {
  const Status status = task_.take();
  task_ = Task<Status>();
  end_activity();
  run_.active = false;
  const bool given_up = std::exchange(cancelled_, false);
  return given_up && status == Status::kNodeUnreachable ? cancel_reason_ : status;
}

int Lane::run_list(kv_call* const* calls, uint32_t count, uint64_t timeout_ns) {
  if (run_.active) return KV_INVALID;
  start(nullptr, calls, count, timeout_ns);
  return continue_run(false);
}

}  // namespace kvstore
