#include "store/client.hpp"

#include <algorithm>
#include <chrono>

#include "base/assert.hpp"
#include "base/fork.hpp"
#include "store/service.hpp"

namespace kvstore {

Client::Client(uint32_t lanes, uint32_t address_entries, const std::vector<std::string>& members,
               bool own_thread, uint64_t cache_bytes)
    : address_entries_(address_entries),
      own_thread_(own_thread),
      fork_generation_(fork_generation()) {
  KV_ASSERT(lanes > 0 && !members.empty());
  for (const std::string& name : members) {
    auto member = std::make_unique<Member>();
    member->name = name;
    member->name_hash = make_key(name.data(), name.size()).hash;
    if (cache_bytes > 0) {
      member->cache = std::make_unique<ClientCache>(
          std::max(cache_bytes / members.size(), CacheStorage::kBytesMin));
    }
    members_.push_back(std::move(member));
  }
  const uint32_t count = uint32_t(members.size());
  for (uint32_t i = 0; i < lanes; ++i) lanes_.push_back(std::make_unique<Lane>(*this, i, count));
  service_lane_ = std::make_unique<Lane>(*this, lanes, count);
}

Client::~Client() {
  close();
}

bool Client::forked() const {
  return fork_generation() != fork_generation_;
}

uint32_t Client::member_of(uint64_t key_hash) const {
  if (members_.size() == 1) return 0;
  uint32_t best = 0;
  uint64_t best_score = 0;
  for (uint32_t m = 0; m < members_.size(); ++m) {
    uint64_t score = key_hash ^ members_[m]->name_hash;
    score = (score ^ (score >> 33)) * 0xff51afd7ed558ccdull;
    score = (score ^ (score >> 33)) * 0xc4ceb9fe1a85ec53ull;
    score ^= score >> 33;
    if (m == 0 || score > best_score) {
      best = m;
      best_score = score;
    }
  }
  return best;
}

std::shared_ptr<Attachment> Client::attachment(uint32_t member) {
  const std::lock_guard lock(members_[member]->mutex);
  return members_[member]->attachment;
}

void Client::attach(uint32_t index, std::shared_ptr<Attachment> attachment) {
  Member& member = *members_[index];
  attachment->locks.set_alarm([this](uint64_t due_ns) { alarm(due_ns); });
  std::shared_ptr<Attachment> before;
  {
    const std::lock_guard memory_lock(memory_mutex_);
    // Without a registration transfers are copied, which is slower and nothing else.
    std::string ignored;
    for (const auto& [memory, bytes] : memory_) {
      attachment->transport->register_memory(memory, bytes, ignored);
    }
    const std::lock_guard lock(member.mutex);
    const bool restarted = member.attachment && member.attachment->superblock.incarnation !=
                                                    attachment->superblock.incarnation;
    if (restarted) ++member.restarts;
    if (member.cache) {
      const uint64_t incarnation = attachment->superblock.incarnation;
      std::shared_ptr<HostStamps> stamps = member.cache->stamps_of(incarnation);
      if (!stamps && open_stamps_) stamps = open_stamps_(incarnation);
      HostStamps* const shared = stamps.get();
      const uint64_t term = member.cache->bind(std::move(stamps));
      attachment->coherence.set_cache(member.cache.get(), term, shared);
    }
    before = std::exchange(member.attachment, std::move(attachment));
    member.generation.fetch_add(1, std::memory_order_release);
  }
  if (before) before->locks.fail(Status::kNodeUnreachable);
  const std::lock_guard lock(lanes_mutex_);
  if (!service_ && !closing_.load()) {
    service_ = std::make_unique<Service>(*this, *service_lane_, own_thread_);
    alarmed_.store(service_.get(), std::memory_order_release);
  }
  if (service_) service_->hurry();
}

bool Client::accepts(uint32_t consistency, std::string& error) const {
  if (!consistency_ || *consistency_ == consistency) return true;
  const auto name = [](uint32_t one) {
    return one == KV_LINEARIZABLE ? "linearizable" : "regular";
  };
  error = std::string("the node's consistency is ") + name(consistency) + ", and this client asks" +
          " for " + name(*consistency_) + ": start the node with --consistency " +
          name(*consistency_) + ", or connect with another one";
  return false;
}

Status Client::register_memory(void* memory, uint64_t bytes, std::string& error) {
  const std::lock_guard lock(memory_mutex_);
  if (memory_.contains(memory)) {
    error = "this memory is registered already";
    return Status::kRefused;
  }
  for (uint32_t m = 0; m < members(); ++m) {
    const std::shared_ptr<Attachment> current = attachment(m);
    if (!current || current->transport->register_memory(memory, bytes, error)) continue;
    forget_memory_locked(memory);
    return Status::kRefused;
  }
  memory_[memory] = bytes;
  return Status::kOk;
}

void Client::unregister_memory(void* memory) {
  const std::lock_guard lock(memory_mutex_);
  if (memory_.erase(memory) > 0) forget_memory_locked(memory);
}

void Client::forget_memory_locked(void* memory) {
  for (uint32_t m = 0; m < members(); ++m) {
    if (const std::shared_ptr<Attachment> current = attachment(m)) {
      current->transport->unregister_memory(memory);
    }
  }
}

Lane* Client::acquire_lane(uint64_t timeout_ns, Status& status) {
  if (forked()) {
    status = Status::kForked;
    return nullptr;
  }
  if (closing_.load(std::memory_order_relaxed)) {
    status = Status::kClosed;
    return nullptr;
  }
  // A thread comes back to the lane that it used last, whose connections are warm.
  static thread_local uint32_t hint = 0;
  const auto try_lanes = [&]() -> Lane* {
    for (size_t n = 0; n < lanes_.size(); ++n) {
      const uint32_t i = uint32_t((hint + n) % lanes_.size());
      if (lanes_[i]->taken.load(std::memory_order_relaxed)) continue;
      if (lanes_[i]->taken.exchange(true, std::memory_order_acquire)) continue;
      hint = i;
      return lanes_[i].get();
    }
    return nullptr;
  };
  status = Status::kOk;
  if (Lane* lane = try_lanes()) return lane;
  if (timeout_ns > 0) {
    const auto until = std::chrono::steady_clock::now() +
                       std::chrono::nanoseconds(std::min(timeout_ns, 3600 * kSecond));
    std::unique_lock lock(lanes_mutex_);
    lane_waiters_.fetch_add(1);
    Lane* lane = nullptr;
    while ((lane = try_lanes()) == nullptr && !closing_.load()) {
      if (lane_freed_.wait_until(lock, until) == std::cv_status::timeout) {
        lane = try_lanes();
        break;
      }
    }
    lane_waiters_.fetch_sub(1);
    if (lane != nullptr) return lane;
  }
  status = closing_.load() ? Status::kClosed : Status::kBusy;
  return nullptr;
}

void Client::release_lane(Lane& lane) {
  lane.arena().reset();
  lane.taken.store(false, std::memory_order_seq_cst);
  if (lane_waiters_.load(std::memory_order_seq_cst) > 0) {
    const std::lock_guard lock(lanes_mutex_);
    lane_freed_.notify_one();
  }
}

void Client::alarm(uint64_t due_ns) {
  if (Service* service = alarmed_.load(std::memory_order_acquire)) service->alarm(due_ns);
}

void Client::want_memory(uint32_t member, unsigned size_class) {
  if (const std::shared_ptr<Attachment> current = attachment(member)) {
    current->class_wanted.store(size_class);
  }
  if (service_) service_->hurry();
}

void Client::tell_touches() {
  if (service_) service_->hurry();
}

bool Client::any_unfenced(uint32_t member) const {
  return std::any_of(lanes_.begin(), lanes_.end(),
                     [&](const auto& lane) { return lane->channel(member).unfenced(); });
}

bool Client::is_inline() {
  for (const auto& member : members_) {
    const std::lock_guard lock(member->mutex);
    if (!member->attachment) continue;
    const uint32_t fabric = member->attachment->transport->fabric();
    if (fabric != KV_FABRIC_LOCAL && fabric != KV_FABRIC_SHM) return false;
  }
  return true;
}

namespace {

void add_copies(const ClientCache& cache, kv_client_stats& stats) {
  const CacheCounts& counts = cache.counts();
  // Reads of what was handed over went by a lane, which has counted them.
  const uint64_t handed = counts.handed.load();
  stats.cache_hits += cache.hits();
  stats.cache_handed += handed;
  stats.operations += cache.hits() - handed;
  stats.cache_fills += counts.fills.load();
  stats.cache_spoiled += counts.spoiled.load();
  stats.cache_bypassed += counts.bypassed.load();
  stats.cache_invalidated += counts.invalidated.load();
  stats.cache_overwritten += counts.overwritten.load();
  stats.cache_revoked += counts.revoked.load();
  stats.cache_evictions += cache.storage().evictions();
  stats.cache_entries += cache.storage().entries();
  stats.cache_bytes += cache.storage().bytes_used();
}

}  // namespace

void Client::read_copy_state(const Key& key, kv_copy_state& state) {
  state = kv_copy_state{};
  const ClientCache* cache = member(member_of(key.hash)).cache.get();
  if (cache != nullptr) cache->read_state(key, state);
}

void Client::read_stats(kv_client_stats& stats) {
  stats = {};
  const auto add_lane = [&](Lane& lane, bool service) {
    for (uint32_t m = 0; m < lane.members(); ++m) {
      const VerbCounts& counts = lane.channel(m).remote.counts();
      const uint64_t verbs =
          counts.reads.get() + counts.writes.get() + counts.cas.get() + counts.faa.get();
      if (service) {
        stats.heartbeat_verbs += verbs;
        continue;
      }
      stats.reads += counts.reads.get();
      stats.writes += counts.writes.get();
      stats.cas += counts.cas.get();
      stats.faa += counts.faa.get();
      stats.round_trips += counts.round_trips.get();
      stats.bytes_read += counts.bytes_read.get();
      stats.bytes_written += counts.bytes_written.get();
      stats.uses_dropped += lane.channel(m).touches.dropped();
    }
    const LaneCounts& counts = lane.counts();
    if (!service) stats.operations += counts.operations.get();
    stats.cas_conflicts += counts.cas_conflicts.get();
    stats.verify_retries += counts.verify_retries.get();
    stats.splits += counts.splits.get();
    stats.evictions += counts.evictions.get();
    stats.address_hits += counts.address_hits.get();
    stats.address_stale += counts.address_stale.get();
    stats.reconnects += counts.reconnects.get();
  };
  for (const auto& lane : lanes_) add_lane(*lane, false);
  add_lane(*service_lane_, true);
  for (uint32_t m = 0; m < members(); ++m) {
    if (const std::shared_ptr<Attachment> current = attachment(m)) {
      stats.limbo_bytes += current->limbo.bytes();
      const CoherenceCounts& counts = current->coherence.counts();
      stats.invalidations_sent += counts.invalidations_sent.load();
      stats.invalidations_received += counts.invalidations_received.load();
      stats.invalidations_spared += counts.invalidations_spared.load();
      stats.writes_guarded += counts.writes_guarded.load();
      stats.writes_at_once += counts.writes_at_once.load();
      stats.leases_waited += counts.leases_waited.load();
    }
    if (const ClientCache* cache = member(m).cache.get()) add_copies(*cache, stats);
  }
}

void Client::close() {
  closing_.store(true);
  {
    const std::lock_guard lock(lanes_mutex_);
    lane_freed_.notify_all();
  }
  if (forked()) {
    // The service thread did not survive the fork; its handle must not be joined here.
    [[maybe_unused]] Service* leaked = service_.release();
    return;
  }
  if (own_thread_) drain_limbo();
  alarmed_.store(nullptr, std::memory_order_release);
  service_.reset();
}

uint64_t Client::hurry_limbo() {
  uint64_t waiting = 0;
  for (uint32_t m = 0; m < members(); ++m) {
    const std::shared_ptr<Attachment> current = attachment(m);
    if (!current || current->state.load() != Attachment::State::kUp) continue;
    waiting += current->limbo.bytes() + (current->coherence.owes() ? 1 : 0);
    if (current->limbo.bytes() > 0) current->class_wanted.store(layout::kWantsReclamation);
  }
  if (waiting > 0) service_->hurry();
  return waiting;
}

uint32_t Client::members_owed() {
  uint32_t count = 0;
  for (uint32_t m = 0; m < members(); ++m) {
    const std::shared_ptr<Attachment> current = attachment(m);
    if (current && current->coherence.owes()) ++count;
  }
  return count;
}

// Retired blocks of other clients' extents would be lost with this client's limbo.
void Client::drain_limbo() {
  constexpr unsigned kRoundsMax = 100;
  for (unsigned round = 0; service_ && round < kRoundsMax; ++round) {
    if (hurry_limbo() == 0) return;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
}

}  // namespace kvstore
