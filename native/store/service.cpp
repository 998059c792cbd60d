#include "store/service.hpp"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>

#include "base/assert.hpp"
#include "base/time_scale.hpp"
#include "index/split.hpp"
#include "store/client.hpp"
#include "store/touch_writer.hpp"

namespace kvstore {
namespace {

constexpr uint64_t kBusyPeriodNs = 10 * kMillisecond;
constexpr uint64_t kIdlePeriodNs = 50 * kMillisecond;
constexpr uint64_t kPressedPeriodNs = kMillisecond;
// Memory that others wait for comes back two beats after the slowest client's. Who beats for them
// goes on for a while, or each of their waves would find everybody asleep.
constexpr uint64_t kHelpingPeriodNs = 2 * kMillisecond;
constexpr uint64_t kHelpingNs = 250 * kMillisecond;
constexpr uint64_t kBeatDeadlineNs = kSecond;
constexpr uint64_t kFarewellNs = 200 * kMillisecond;
constexpr uint64_t kConnectLeastNs = 50 * kMillisecond;
// What is retired beyond this should come back sooner: fresh memory is slower than used memory.
constexpr uint64_t kLargeLimboBytes = 32 << 20;
// Longer than a scrub takes.
constexpr uint64_t kWaryNs = 2 * kSecond;
constexpr unsigned kTouchBatchesPerBeat = 16;
constexpr unsigned kHarvestEvery = 16;
constexpr unsigned kHarvestExtents = 32;

}  // namespace

Service::Service(Client& client, Lane& lane, bool own_thread)
    : client_(client),
      lane_(lane),
      members_(client.members()),
      wake_descriptor_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  KV_ASSERT(wake_descriptor_ >= 0);
  lane_.executor().never_spin();
  if (own_thread) thread_ = std::thread([this] { loop(); });
}

Service::~Service() {
  stopping_.store(true);
  hurry();
  if (thread_.joinable()) thread_.join();
  ::close(wake_descriptor_);
}

void Service::wake() noexcept {
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = ::write(wake_descriptor_, &one, sizeof one);
}

void Service::hurry() noexcept {
  if (!hurried_.exchange(true, std::memory_order_relaxed)) wake();
}

void Service::alarm(uint64_t due_ns) noexcept {
  if (due_ns < asleep_until_ns_.load(std::memory_order_seq_cst)) wake();
}

// Of what may still execute at this member: operations under way, and lost ones until their
// connection is known to be closed at the node.
uint64_t Service::oldest_tick(uint32_t index) const {
  uint64_t oldest = UINT64_MAX;
  for (const auto& lane : client_.lanes_) {
    const uint64_t since = lane->active_since.load(std::memory_order_seq_cst);
    if (since != 0) oldest = std::min(oldest, since);
    const uint64_t lost = lane->channel(index).lost_since();
    if (lost != 0) oldest = std::min(oldest, lost);
  }
  return oldest;
}

// What is read from copies is in use as well.
Task<Status> Service::tell_copies_used(Channel& channel) {
  const Attachment& attachment = *channel.attachment;
  ClientCache* const cache = attachment.coherence.cache();
  if (cache == nullptr || !attachment.evicts()) co_return Status::kOk;
  std::vector<RecentUse> uses;
  cache->take_uses(uses);
  const uint32_t now_ms = time_of_use(attachment.node_clock_at_ms(monotonic_ns()));
  std::vector<kv_op> ops;
  for (const RecentUse& use : uses) {
    const uint64_t offset = Channel::metadata_of(use.subtable, use.slot_offset);
    if (offset != 0) ops.push_back(write_op(offset, &now_ms, sizeof now_ms));
  }
  if (ops.empty()) co_return Status::kOk;
  co_return from_fabric(co_await channel.remote.batch(ops));
}

void Service::count_copies(const Attachment& attachment, const PerMember& member,
                           layout::ClientLine& line) {
  const ClientCache* const cache = attachment.coherence.cache();
  if (cache == nullptr) return;
  const CacheCounts& counts = cache->counts();
  line.cache_hits = cache->hits() - member.hits_before;
  line.cache_invalidated = uint32_t(counts.invalidated.load() - member.invalidated_before);
  line.cache_bypassed = uint32_t(counts.bypassed.load() - member.bypassed_before);
}

// The node reads them when it hears that the client has gone. Nothing else of the line changes: for
// the epochs the client has stopped already.
Task<Status> Service::tell_last_copies() {
  constexpr uint64_t kAt = offsetof(layout::ClientLine, cache_hits);
  for (uint32_t index = 0; index < client_.members(); ++index) {
    Channel& channel = lane_.channel(index);
    const Attachment* const attachment = channel.attachment.get();
    if (attachment == nullptr || attachment != client_.attachment(index).get()) continue;
    if (attachment->coherence.cache() == nullptr || channel.remote.broken()) continue;
    if (attachment->state.load() != Attachment::State::kUp) continue;
    if (members_[index].registration != attachment->registration) continue;
    layout::ClientLine line{};
    count_copies(*attachment, members_[index], line);
    kv_op op[1] = {
        write_op(attachment->client_line_offset() + kAt, &line.cache_hits, sizeof line - kAt)};
    co_await channel.remote.batch(op);
  }
  co_return Status::kOk;
}

Task<Status> Service::write_line(Channel& channel, PerMember& member, uint64_t published) {
  Attachment& attachment = *channel.attachment;
  member.class_wanted = attachment.class_wanted.exchange(0);
  const bool large = attachment.limbo.bytes() > kLargeLimboBytes;
  const uint64_t wanted =
      member.class_wanted == 0 && large ? layout::kWantsReclamation : member.class_wanted;
  layout::ClientLine line{attachment.registration,
                          ++member.heartbeat,
                          published,
                          wanted,
                          member.operations_seen,
                          attachment.limbo.bytes(),
                          0,
                          0,
                          0};
  count_copies(attachment, member, line);
  TouchWriter touches(attachment);
  std::vector<kv_op> ops{write_op(attachment.client_line_offset(), &line, sizeof line)};
  // What came while a batch was on its way goes with the next one; the line goes with the first.
  for (unsigned batch = 0; batch < kTouchBatchesPerBeat; ++batch) {
    bool left = false;
    for (const auto& lane : client_.lanes_) {
      left |= touches.take(lane->channel(channel.member()).touches, ops);
    }
    if (ops.empty()) break;
    if (const uint32_t posted = co_await channel.remote.batch(ops); posted != KV_FABRIC_OK) {
      co_return from_fabric(posted);
    }
    if (!left) break;
    ops.clear();
    touches.clear();
  }
  if (const Status s = co_await tell_copies_used(channel); s != Status::kOk) co_return s;
  if (attachment.reuse.wants_to_learn()) {
    attachment.reuse.learn(uint32_t(attachment.node_clock_at_ms(monotonic_ns())));
  }
  co_return Status::kOk;
}

// Returns what this client does not need, and under pressure what it can do without.
Task<Status> Service::share_memory(Channel& channel, PerMember& member) {
  Attachment& attachment = *channel.attachment;
  const bool pressed = member.pressure > 0 && member.pressure < layout::kSizeClasses;
  if (pressed || attachment.full.load(std::memory_order_relaxed) ||
      ++member.rounds % kHarvestEvery == 0) {
    const Status s = co_await attachment.allocator.harvest(channel.remote, kHarvestExtents);
    if (s != Status::kOk) co_return s;
  }
  Status released = Status::kOk;
  if (pressed) {
    released = co_await attachment.allocator.release_empty(channel.remote, member.class_wanted);
  } else {
    released = co_await attachment.allocator.release_unneeded(channel.remote);
  }
  if (released != Status::kOk) co_return released;
  // Who waits for the class itself keeps what it has.
  if (!pressed || member.pressure == member.class_wanted) co_return Status::kOk;
  // What a lost operation has left in an extent is found only by its owner's search.
  const bool searching = attachment.scrub_wanted.load(std::memory_order_acquire) ||
                         member.scrub_due || member.scrub.running();
  if (searching) co_return Status::kOk;
  co_return co_await attachment.allocator.yield(channel.remote, unsigned(member.pressure));
}

// A client that died, or lost a connection, may have left blocks behind in anybody's extents: all
// scrub. Own operations that were lost must have ended before.
Task<Status> Service::note_losses(Channel& channel, PerMember& member,
                                  const layout::NodeLine& node) {
  Attachment& attachment = *channel.attachment;
  const bool changed = node.deaths != member.deaths_seen || node.losses != member.losses_seen;
  member.scrub_due |= changed && !member.first;
  // An extent that changes hands just then may not have been scrubbed by the one who gave it up.
  const uint64_t adoptions = attachment.allocator.adoptions();
  if (changed) member.wary_until_ns = monotonic_ns() + kWaryNs;
  member.scrub_due |= adoptions != member.adoptions_seen && monotonic_ns() < member.wary_until_ns;
  member.adoptions_seen = adoptions;
  member.first = false;
  member.deaths_seen = node.deaths;
  member.losses_seen = node.losses;
  const bool wanted = attachment.scrub_wanted.load(std::memory_order_acquire);
  if ((!wanted && !member.scrub_due) || !lanes_fenced(channel.member())) co_return Status::kOk;
  if (member.scrub_due) {
    member.scrub_due = false;
    member.scrub.request();
  }
  if (!wanted) co_return Status::kOk;
  attachment.scrub_wanted.store(false, std::memory_order_release);
  kv_op op[1] = {faa_op(layout::kNodeLineOffset + offsetof(layout::NodeLine, losses), 1)};
  const uint32_t posted = co_await channel.remote.batch(op);
  if (posted != KV_FABRIC_OK) attachment.scrub_wanted.store(true, std::memory_order_release);
  co_return from_fabric(posted);
}

// Its reads are under the epoch that this beat has published, as those of the scrub are.
Task<Status> Service::finish_split(Channel& channel) {
  Attachment& attachment = *channel.attachment;
  if (!attachment.split_left.load(std::memory_order_acquire)) co_return Status::kOk;
  if (!lanes_fenced(channel.member())) co_return Status::kOk;
  if (attachment.split_running.exchange(true)) co_return Status::kOk;
  attachment.split_left.store(false, std::memory_order_release);
  const SplitEnvironment environment{attachment.segments, attachment.directory,
                                     attachment.registration, attachment.split_running,
                                     lane_.deadline_ns()};
  const Status s = co_await resume_split(channel.remote, environment, attachment.registration);
  attachment.split_running.store(false);
  if (s != Status::kOk) attachment.split_left.store(true, std::memory_order_release);
  co_return channel.remote.broken() ? s : Status::kOk;
}

// Copies may be made only while others can reach this client.
Task<Status> Service::open_for_copies(Channel& channel) {
  Coherence& coherence = channel.attachment->coherence;
  if (coherence.is_reachable()) co_return Status::kOk;
  const Status s = co_await channel.attachment->locks.open_postbox(channel.remote);
  if (s == Status::kOk) coherence.set_reachable();
  co_return channel.remote.broken() ? s : Status::kOk;
}

// Not before what was lost can't be executed any more. What is owed is looked at first: whoever
// owes has noted before that something was lost. The attachment is looked at last: lanes that take
// another one forget what they lost.
Task<Status> Service::pay_debts(Channel& channel) {
  Coherence& coherence = channel.attachment->coherence;
  const uint64_t owed = coherence.begin_payment();
  const std::vector<Coherence::OpenStamp> open = coherence.take_open();
  const bool may_pay = !client_.any_unfenced(channel.member()) &&
                       client_.attachment(channel.member()) == channel.attachment;
  may_pay ? coherence.end_writes(open) : coherence.put_back(open);
  const Status s = co_await coherence.pay(channel.remote, may_pay ? owed : 0);
  coherence.end_payment(may_pay && s == Status::kOk ? 0 : owed);
  if (s != Status::kOk) co_return s;
  co_return co_await coherence.clear(channel.remote);
}

Task<Status> Service::beat(Channel& channel, PerMember& member) {
  Attachment& attachment = *channel.attachment;
  const std::vector<Block> fresh = attachment.limbo.take_fresh();
  layout::NodeLine node;
  layout::RegistryLine registry;
  uint64_t revoke_word = 0;
  const bool caches = attachment.coherence.cache() != nullptr;
  const uint64_t begun_ns = boottime_ns();
  kv_op ops[3] = {read_op(layout::kNodeLineOffset, &node, sizeof node),
                  read_op(attachment.registry_line_offset(), &registry, sizeof registry),
                  read_op(attachment.coherence.revoke_offset(), &revoke_word, 8)};
  const uint32_t posted = co_await channel.remote.batch({ops, caches ? 3u : 2u});
  if (posted != KV_FABRIC_OK) {
    attachment.limbo.put_back(fresh);
    co_return from_fabric(posted);
  }
  if (registry.registration != attachment.registration ||
      registry.state != uint64_t(layout::ClientState::kLive)) {
    attachment.state.store(Attachment::State::kFenced, std::memory_order_release);
    co_return Status::kFenced;
  }
  attachment.heard(monotonic_ns());
  attachment.saw_clock(node.clock_ms, boottime_ns());
  // Whoever begins an operation from here on records at least this tick, and begins after the epoch
  // was seen.
  const uint64_t tick = client_.tick().fetch_add(1, std::memory_order_seq_cst) + 1;
  member.seen.saw(tick, node.global_epoch);

  attachment.limbo.tag(fresh, node.global_epoch);
  if (const Status s = co_await attachment.allocator.give_back(
          channel.remote, attachment.limbo.take_safe(node.safe_epoch));
      channel.remote.broken()) {
    co_return s;
  }
  // The epoch is published only after everything that may go back has: the scrub relies on it.
  const uint64_t renewal_ns = monotonic_ns();
  if (client_.any_unfenced(channel.member())) lanes_fenced(channel.member());
  const uint64_t oldest = oldest_tick(channel.member());
  const Status written = co_await write_line(channel, member, member.seen.publishable(oldest));
  if (written != Status::kOk) co_return written;
  attachment.locks.renewed(renewal_ns);
  if (caches) {
    if (const Status s = co_await open_for_copies(channel); s != Status::kOk) co_return s;
    attachment.coherence.renewed(begun_ns, revoke_word, node);
  }
  if (const Status s = co_await pay_debts(channel); s != Status::kOk) co_return s;

  member.pressure = node.pressure;
  attachment.locks.note_deaths(node.deaths);
  if (const Status s = co_await share_memory(channel, member); s != Status::kOk) co_return s;
  if (const Status s = co_await note_losses(channel, member, node); s != Status::kOk) co_return s;
  if (const Status s = co_await finish_split(channel); s != Status::kOk) co_return s;
  co_return co_await member.scrub.advance(channel, node.global_epoch, node.safe_epoch);
}

bool Service::prepare(uint32_t index) {
  Channel& channel = lane_.channel(index);
  // Members that do not answer must not keep the others from their heartbeat.
  const uint64_t connect_ns =
      patient(std::max(kBeatDeadlineNs / client_.members(), kConnectLeastNs));
  if (channel.ready(monotonic_ns() + connect_ns) != Status::kOk) return false;
  PerMember& member = members_[index];
  const Attachment& attachment = *channel.attachment;
  if (member.incarnation != attachment.superblock.incarnation ||
      member.registration != attachment.registration) {
    member = PerMember{};
    member.incarnation = attachment.superblock.incarnation;
    member.registration = attachment.registration;
    if (const ClientCache* const cache = attachment.coherence.cache()) {
      member.hits_before = cache->hits();
      member.invalidated_before = cache->counts().invalidated.load();
      member.bypassed_before = cache->counts().bypassed.load();
    }
    drop_idle(index);
  }
  return true;
}

Task<Status> Service::beat_ready(const std::vector<uint32_t>& ready) {
  std::vector<Task<Status>> beats;
  for (const uint32_t index : ready) {
    beats.push_back(beat(lane_.channel(index), members_[index]));
  }
  for (Task<Status>& one : beats) co_await one;
  co_return Status::kOk;
}

uint64_t Service::period_after(uint32_t index, bool hurried) {
  PerMember& member = members_[index];
  const Attachment& attachment = *lane_.channel(index).attachment;
  uint64_t operations = 0;
  for (const auto& lane : client_.lanes_) operations += lane->counts().operations.get();
  const uint64_t limbo_bytes = attachment.limbo.bytes();
  const bool busy = operations != member.operations_seen || limbo_bytes > 0 ||
                    member.scrub.running() ||
                    attachment.split_left.load(std::memory_order_relaxed) ||
                    attachment.locks.due_ns() != UINT64_MAX;
  member.operations_seen = operations;
  const uint64_t now_ns = monotonic_ns();
  if (member.pressure != 0) member.helping_until_ns = now_ns + kHelpingNs;
  if (hurried || limbo_bytes > kLargeLimboBytes || member.pressure != 0) return kPressedPeriodNs;
  if (now_ns < member.helping_until_ns) return kHelpingPeriodNs;
  return busy ? kBusyPeriodNs : kIdlePeriodNs;
}

void Service::begin_beat() {
  hurried_round_ = hurried_.exchange(false, std::memory_order_relaxed);
  ready_.clear();
  for (uint32_t index = 0; index < client_.members(); ++index) {
    if (prepare(index)) ready_.push_back(index);
  }
}

uint64_t Service::end_beat() {
  uint64_t period_ns = kIdlePeriodNs;
  for (const uint32_t index : ready_) {
    if (lane_.channel(index).remote.broken()) lane_.channel(index).want_scrub();
    period_ns = std::min(period_ns, period_after(index, hurried_round_));
  }
  return period_ns;
}

void Service::beat_all() {
  begin_beat();
  if (!ready_.empty()) {
    lane_.run_task([&] { return beat_ready(ready_); }, monotonic_ns() + patient(kBeatDeadlineNs));
  }
  beat_due_ns_ = monotonic_ns() + end_beat();
  fail_locks();
}

uint64_t Service::step() {
  receive_messages();
  for (;;) {
    if (work_ == Work::kNone) {
      const uint64_t now_ns = monotonic_ns();
      if (now_ns >= beat_due_ns_ || hurried()) {
        begin_beat();
        if (ready_.empty()) {
          beat_due_ns_ = now_ns + end_beat();
          fail_locks();
          continue;
        }
        lane_.begin_task([&] { return beat_ready(ready_); }, now_ns + patient(kBeatDeadlineNs));
        work_ = Work::kBeat;
      } else if (begin_locks()) {
        lane_.begin_task([&] { return tend_locks(tended_); }, now_ns + patient(kBeatDeadlineNs));
        work_ = Work::kLocks;
      } else {
        const uint64_t due_ns = std::min(beat_due_ns_, locks_due_ns());
        return std::max<uint64_t>(due_ns, now_ns + 1) - now_ns;
      }
    }
    if (!lane_.step_task()) return 0;
    lane_.end_task();
    if (work_ == Work::kBeat) {
      beat_due_ns_ = monotonic_ns() + end_beat();
      fail_locks();
    }
    work_ = Work::kNone;
  }
}

// ---- locks ----------------------------------------------------------------------------------

void Service::receive_messages() {
  for (uint32_t m = 0; m < client_.members(); ++m) {
    if (const std::shared_ptr<Attachment> current = client_.attachment(m)) current->locks.receive();
  }
}

uint64_t Service::locks_due_ns() const {
  uint64_t due_ns = UINT64_MAX;
  for (uint32_t m = 0; m < client_.members(); ++m) {
    const std::shared_ptr<Attachment> current = client_.attachment(m);
    if (!current || current->state.load() != Attachment::State::kUp) continue;
    due_ns = std::min(due_ns, current->locks.due_ns());
  }
  return due_ns;
}

bool Service::begin_locks() {
  tended_.clear();
  const uint64_t now_ns = monotonic_ns();
  for (uint32_t m = 0; m < client_.members(); ++m) {
    const std::shared_ptr<Attachment> current = client_.attachment(m);
    if (!current || current->locks.due_ns() > now_ns) continue;
    if (current->state.load() == Attachment::State::kUp && prepare(m)) tended_.push_back(m);
  }
  return !tended_.empty();
}

Task<Status> Service::tend_locks(const std::vector<uint32_t>& members) {
  for (const uint32_t index : members) {
    Channel& channel = lane_.channel(index);
    LockSpace& locks = channel.attachment->locks;
    const bool fenced = locks.has_unknown() && lanes_fenced(index);
    co_await locks.upkeep(channel.remote, fenced);
  }
  co_return Status::kOk;
}

// Whoever waits for a lock of a node that is gone, or has cut us off, waits in vain.
void Service::fail_locks() {
  for (uint32_t m = 0; m < client_.members(); ++m) {
    const std::shared_ptr<Attachment> current = client_.attachment(m);
    if (!current) continue;
    const Attachment::State state = current->state.load(std::memory_order_acquire);
    if (state == Attachment::State::kDown) current->locks.fail(Status::kNodeUnreachable);
    if (state == Attachment::State::kFenced) current->locks.fail(Status::kFenced);
  }
}

bool Service::lanes_fenced(uint32_t index) {
  for (const auto& lane : client_.lanes_) {
    if (!lane->channel(index).unfenced()) continue;
    // A lane in use makes its next connection itself.
    if (lane->taken.exchange(true, std::memory_order_acquire)) continue;
    lane->channel(index).ready(monotonic_ns() + patient(kConnectLeastNs));
    client_.release_lane(*lane);
  }
  return !client_.any_unfenced(index);
}

void Service::drop_idle(uint32_t index) {
  const std::shared_ptr<Attachment> current = client_.attachment(index);
  for (const auto& lane : client_.lanes_) {
    if (lane->taken.exchange(true, std::memory_order_acquire)) continue;
    Channel& channel = lane->channel(index);
    if (channel.attachment != current) channel.drop();
    client_.release_lane(*lane);
  }
}

void Service::sleep(uint64_t until_ns) {
  std::vector<pollfd> descriptors{{wake_descriptor_, POLLIN, 0}};
  std::vector<std::shared_ptr<Attachment>> watched;
  for (uint32_t m = 0; m < client_.members(); ++m) {
    std::shared_ptr<Attachment> attachment = client_.attachment(m);
    if (!attachment || attachment->state.load() != Attachment::State::kUp) continue;
    // An absent descriptor is negative, which poll passes over.
    descriptors.push_back({attachment->transport->hangup_descriptor(), POLLIN | POLLRDHUP, 0});
    descriptors.push_back({attachment->locks.wait_descriptor(), POLLIN, 0});
    watched.push_back(std::move(attachment));
  }
  asleep_until_ns_.store(until_ns, std::memory_order_seq_cst);
  // An alarm before the store has not woken us.
  until_ns = std::min(until_ns, locks_due_ns());
  const uint64_t now_ns = monotonic_ns();
  const uint64_t timeout_ns = until_ns > now_ns ? until_ns - now_ns : 0;
  const timespec timeout{time_t(timeout_ns / kSecond), long(timeout_ns % kSecond)};
  const int ready = ::ppoll(descriptors.data(), descriptors.size(), &timeout, nullptr);
  asleep_until_ns_.store(0, std::memory_order_seq_cst);
  if (ready <= 0) return;
  if (descriptors[0].revents != 0) {
    uint64_t ignored = 0;
    [[maybe_unused]] const ssize_t got = ::read(wake_descriptor_, &ignored, sizeof ignored);
  }
  for (size_t i = 0; i < watched.size(); ++i) {
    if (descriptors[2 * i + 1].revents == 0) continue;
    watched[i]->transport->node_died();
    watched[i]->state.store(Attachment::State::kDown, std::memory_order_release);
  }
}

void Service::loop() {
  while (!stopping_.load()) {
    if (monotonic_ns() >= beat_due_ns_ || hurried()) beat_all();
    receive_messages();
    if (begin_locks()) {
      lane_.run_task([&] { return tend_locks(tended_); },
                     monotonic_ns() + patient(kBeatDeadlineNs));
    }
    sleep(beat_due_ns_);
  }
  if (client_.makes_copies()) {
    lane_.run_task([&] { return tell_last_copies(); }, monotonic_ns() + patient(kFarewellNs));
  }
}

}  // namespace kvstore
