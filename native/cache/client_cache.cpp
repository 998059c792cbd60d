#include "cache/client_cache.hpp"

#include <algorithm>

#include "base/assert.hpp"
#include "base/random.hpp"

namespace kvstore {
namespace {

// A read from a copy.
constexpr uint64_t kHitNs = 150;
constexpr uint64_t kGainNsMin = 50;
// As long as nothing is known: a get over a network, and what a message and its answer take.
constexpr uint64_t kGuessedGetNs = 20'000;
constexpr uint64_t kGuessedGetsPerEnding = 5;
constexpr uint64_t kUsesThatPayMin = 4;
// Where ending copies takes next to no time beside a get: nobody has to be asked, over a network.
constexpr uint64_t kUsesThatPayUnasked = 2;
constexpr uint64_t kGetsOverEnding = 4;
constexpr uint64_t kUsesThatPayMax = 200;
constexpr uint64_t kPauseNsMin = kSecond;
constexpr uint32_t kPausesMax = 6;  // the last is of 64 s

unsigned stripe_of_thread() {
  static std::atomic<unsigned> next{0};
  static thread_local const unsigned mine = next.fetch_add(1, std::memory_order_relaxed);
  return mine;
}

}  // namespace

// ---- reading --------------------------------------------------------------------------------

void ClientCache::note_hit(const Key& key, const CacheStorage::View& view) {
  std::atomic<uint64_t>& hits = stripes_[stripe_of_thread() % kStripes].hits;
  hits.fetch_add(1, std::memory_order_relaxed);
  // By chance, or of keys that are read in turn one would get what all have.
  static thread_local uint32_t until_sample = 0;
  if (until_sample-- == 0) {
    until_sample = uint32_t(thread_random() % (2 * kHitSample - 1));
    figures_.note(key.hash, KeyFigures::kHits, kHitSample);
    if (view.facts.absent) absence_.note_saved(kHitSample);
  }
  const uint32_t now_ms = node_ms_.load(std::memory_order_relaxed);
  // No slot of the node's is used by reading that a key is absent.
  if (!CacheStorage::note_use(view, now_ms, kUseAgainMs) || view.facts.absent) return;
  const std::unique_lock lock(uses_mutex_, std::try_to_lock);
  if (!lock.owns_lock() || uses_.size() >= kUsesMax) return;
  uses_.push_back({view.facts.slot_offset, view.facts.subtable});
}

bool ClientCache::tell_absent(const Key& key, const CacheStorage::View& view, kv_call& call) {
  call.status = KV_ABSENT;
  call.data = nullptr;
  call.data_bytes = 0;
  call.version = 0;
  note_hit(key, view);
  return true;
}

void ClientCache::take_uses(std::vector<RecentUse>& uses) {
  const std::lock_guard lock(uses_mutex_);
  uses.swap(uses_);
}

uint64_t ClientCache::hits() const {
  uint64_t sum = 0;
  for (const Stripe& stripe : stripes_) sum += stripe.hits.load(std::memory_order_relaxed);
  return sum;
}

void ClientCache::read_state(const Key& key, kv_copy_state& state) const {
  state = kv_copy_state{};
  KeyFigures::Counts counts;
  const KeyFigures::Obstacle obstacle = figures_.read(key.hash, counts);
  state.hits = counts[KeyFigures::kHits];
  state.fills = counts[KeyFigures::kFills];
  state.spoiled = counts[KeyFigures::kSpoiled];
  state.invalidated = counts[KeyFigures::kInvalidated];
  state.overwritten = counts[KeyFigures::kOverwritten];
  state.bypassed = counts[KeyFigures::kBypassed];
  state.uses_that_pay = uses_that_pay();
  CacheStorage::View view;
  const bool held = storage_.find(key, view) && view.facts.stamp.is_current();
  if (held) state.uses = CacheStorage::uses_of(view);
  state.reads_to_wait = interest_.reads_to_wait(key.hash, state.uses_that_pay);
  const auto kind = [&] {
    if (!is_current()) return KV_COPY_NO_LEASE;
    if (held) return KV_COPY_HELD;
    if (boottime_ns() < paused_until_ns_.load(std::memory_order_relaxed)) return KV_COPY_PAUSED;
    if (obstacle == KeyFigures::Obstacle::kTooLarge) return KV_COPY_TOO_LARGE;
    if (obstacle == KeyFigures::Obstacle::kMortal) return KV_COPY_MORTAL;
    return state.reads_to_wait == 0 ? KV_COPY_NEXT : KV_COPY_WAITS;
  };
  state.kind = kind();
  if (state.kind != KV_COPY_WAITS) state.reads_to_wait = 0;
}

// ---- filling --------------------------------------------------------------------------------

bool ClientCache::wants(const Key& key, uint64_t value_bytes) {
  if (key.hash == 0) return false;
  if (value_bytes > storage_.value_bytes_max()) {
    figures_.note(key.hash, KeyFigures::Obstacle::kTooLarge);
    return false;
  }
  figures_.forget(key.hash, KeyFigures::Obstacle::kTooLarge);
  if (!interest_.read(key.hash, uses_that_pay()) && !KV_BUGGIFY(cache_everything)) {
    counts_.bypassed.fetch_add(1, std::memory_order_relaxed);
    figures_.note(key.hash, KeyFigures::kBypassed);
    return false;
  }
  const uint64_t now_ns = boottime_ns();
  return now_ns < lease_until_ns_.load(std::memory_order_acquire) &&
         now_ns >= paused_until_ns_.load(std::memory_order_relaxed);
}

bool ClientCache::wants_absence(const Key& key) {
  if (interest_.knows(key.hash)) absence_.note_saved(1);
  unchanged(key.hash);
  return (absence_.pays(uses_that_pay()) || KV_BUGGIFY(cache_everything)) && wants(key, 0);
}

uint32_t ClientCache::uses_that_pay() const {
  const uint64_t get_ns = get_ns_.get(kGuessedGetNs);
  const uint64_t gain_ns = std::max(get_ns - std::min(get_ns, kHitNs), kGainNsMin);
  const uint64_t making_ns = std::max(making_ns_.get(get_ns), get_ns) - get_ns;
  const uint64_t ending_ns = ending_ns_.get(get_ns * kGuessedGetsPerEnding);
  const bool unasked = ending_ns * kGetsOverEnding < get_ns;
  const uint64_t least = unasked ? kUsesThatPayUnasked : kUsesThatPayMin;
  return uint32_t(std::clamp((making_ns + ending_ns) / gain_ns, least, kUsesThatPayMax));
}

bool ClientCache::begin_fill(uint64_t hash, uint32_t record, uint64_t term, const Stamp& stamp,
                             Fill& fill) {
  KV_ASSERT(!fill.begun());
  const unsigned shard = storage_.shard_index(hash);
  const std::lock_guard lock(storage_.mutex_of(shard));
  if (term_.load(std::memory_order_relaxed) != term) return false;
  if (stamp.is_open() && !KV_VARIANT(hosted_fills_meanwhile)) return false;
  // One is enough, and each is in the way of others at the record.
  for (const Pending& one : pending_[shard]) {
    if (one.hash == hash) return false;
  }
  fill.stamp_ = stamp;
  add_pending_locked(shard, hash, record, fill);
  return true;
}

bool ClientCache::find_hosted(const Key& key, uint64_t term, HostedCopy& copy) const {
  if (!storage_.may_have(key.hash) || !is_current()) return false;
  CacheStorage::View view;
  if (!storage_.find(key, view) || view.facts.hosted.empty()) return false;
  if (!view.facts.stamp.is_current()) return false;
  copy = {view.facts.slot_offset, view.facts.hosted, view.facts.subtable};
  // Looked at last: another attachment's copies come after its term.
  return term_.load(std::memory_order_relaxed) == term;
}

bool ClientCache::begin_rewrite(uint64_t hash, uint32_t record, uint64_t term, Fill& fill) {
  KV_ASSERT(!fill.begun());
  const unsigned shard = storage_.shard_index(hash);
  const std::lock_guard lock(storage_.mutex_of(shard));
  if (!is_current() || term_.load(std::memory_order_relaxed) != term) return false;
  uint32_t uses = 0;
  if (!drop_copy_locked(hash, By::kOwnWrite, uses)) return false;
  for (Pending& one : pending_[shard]) {
    if (one.hash == hash) one.spoiled = true;
  }
  // What is written again and again without being read is left to be read first.
  const bool worth = uses > 0 && interest_.pays(hash, uses_that_pay());
  if (!worth && !KV_BUGGIFY(cache_everything)) return false;
  add_pending_locked(shard, hash, record, fill);
  return true;
}

void ClientCache::add_pending_locked(unsigned shard, uint64_t hash, uint32_t record, Fill& fill) {
  fill.cache_ = this;
  fill.shard_ = shard;
  fill.number_ = next_fill_.fetch_add(1, std::memory_order_relaxed);
  pending_[shard].push_back({fill.number_, hash, record, false});
}

void ClientCache::Fill::finish(const Key& key, const CopyFacts& facts, const void* value,
                               uint32_t value_crc) {
  KV_ASSERT(begun());
  const std::lock_guard lock(cache_->storage_.mutex_of(shard_));
  std::vector<Pending>& pending = cache_->pending_[shard_];
  const auto mine = std::find_if(pending.begin(), pending.end(),
                                 [this](const Pending& one) { return one.number == number_; });
  KV_ASSERT(mine != pending.end());
  const bool open = stamp_.is_open() && !KV_VARIANT(hosted_fills_meanwhile);
  const bool stands = stamp_.is_current() && !open;
  const bool spoiled = mine->spoiled || !(stands || KV_VARIANT(cache_stamps_late));
  pending.erase(mine);
  CopyFacts stamped = facts;
  stamped.stamp = stamp_;
  if (KV_VARIANT(cache_stamps_late) && stamp_.line != nullptr) stamped.stamp.value = stamp_.now();
  const bool may_stay = !spoiled || KV_VARIANT(cache_keeps_spoiled);
  if (may_stay && cache_->storage_.put_locked(key, stamped, value, value_crc)) {
    cache_->hand_over(key.hash, stamped, value, value_crc);
    cache_->counts_.fills.fetch_add(1, std::memory_order_relaxed);
    cache_->figures_.note(key.hash, KeyFigures::kFills);
  } else {
    cache_->counts_.spoiled.fetch_add(1, std::memory_order_relaxed);
    cache_->figures_.note(key.hash, KeyFigures::kSpoiled);
    if (spoiled) cache_->interest_.taken(key.hash, 0, cache_->uses_that_pay());
  }
  cache_->figures_.forget(key.hash, KeyFigures::Obstacle::kMortal);
  cache_ = nullptr;
}

void ClientCache::Fill::found_changed() {
  if (!begun()) return;
  const std::lock_guard lock(cache_->storage_.mutex_of(shard_));
  for (Pending& one : cache_->pending_[shard_]) {
    if (one.number == number_) one.spoiled = true;
  }
}

void ClientCache::Fill::abandon() {
  if (!begun()) return;
  const std::lock_guard lock(cache_->storage_.mutex_of(shard_));
  std::erase_if(cache_->pending_[shard_], [this](const Pending& one) {
    if (one.number != number_) return false;
    cache_->figures_.note(one.hash, KeyFigures::kSpoiled);
    if (one.spoiled) cache_->interest_.taken(one.hash, 0, cache_->uses_that_pay());
    return true;
  });
  cache_->counts_.spoiled.fetch_add(1, std::memory_order_relaxed);
  cache_ = nullptr;
}

// ---- coherence ------------------------------------------------------------------------------

// Under the lock of the key's shard.
bool ClientCache::drop_copy_locked(uint64_t hash, By by, uint32_t& uses) {
  // The next value may be short, or without an end.
  figures_.forget(hash, KeyFigures::Obstacle::kTooLarge);
  figures_.forget(hash, KeyFigures::Obstacle::kMortal);
  if (!storage_.drop_locked(hash, uses)) return false;
  const bool by_other = by == By::kOther;
  (by_other ? counts_.invalidated : counts_.overwritten).fetch_add(1, std::memory_order_relaxed);
  figures_.note(hash, by_other ? KeyFigures::kInvalidated : KeyFigures::kOverwritten);
  interest_.taken(hash, uses, uses_that_pay());
  return true;
}

bool ClientCache::drop(uint64_t hash, uint32_t record, By by) {
  const unsigned shard = storage_.shard_index(hash);
  const std::lock_guard lock(storage_.mutex_of(shard));
  uint32_t uses = 0;
  const bool had = drop_copy_locked(hash, by, uses);
  bool idle = !had && storage_.of_record_locked(hash, record) == 0;
  bool in_the_making = false;
  for (Pending& one : pending_[shard]) {
    if (one.record == record && !KV_VARIANT(cache_forgets_pending)) idle = false;
    if (one.hash != hash) continue;
    one.spoiled = true;
    in_the_making = true;
  }
  // Of what is in the making its end will tell.
  if (!had && !in_the_making && by == By::kOther) interest_.changed(hash, uses_that_pay());
  return idle;
}

bool ClientCache::drop_ended(const Key& key, Successor& successor) {
  // Of another copy that was met the next read of it tells again.
  met_ended_.store(false, std::memory_order_relaxed);
  CacheStorage::View view;
  if (!find_ended(key, view)) return false;
  const std::lock_guard lock(storage_.mutex_of(storage_.shard_index(key.hash)));
  // Another reader may have been here, and one may have made a copy since.
  if (!find_ended(key, view)) return false;
  uint32_t uses = 0;
  // The writer may have been one of another key with the same stamp, which says nothing of this
  // one.
  if (!view.facts.stamp.read_successor(key.hash, successor)) {
    storage_.drop_locked(key.hash, uses);
    return false;
  }
  drop_copy_locked(key.hash, By::kOther, uses);
  return true;
}

void ClientCache::hand_over(uint64_t hash, const CopyFacts& facts, const void* value,
                            uint32_t value_crc) {
  HostStamps* const host = host_.load(std::memory_order_acquire);
  if (host == nullptr || facts.absent || !host->may_hand(hash, facts.stamp)) return;
  host->handed().hand(hash, facts.stamp.value,
                      {facts.version, facts.value_bytes, facts.codec, value_crc, facts.slot_offset,
                       facts.hosted.word, value});
}

bool ClientCache::take_handed(const Key& key, Successor& successor) {
  HostStamps* const host = host_.load(std::memory_order_acquire);
  if (host == nullptr) return false;
  const Stamp now = host->stamp_of(key.hash);
  HandedValue handed;
  if (!host->handed().find(key.hash, now.value, handed)) return false;
  const std::lock_guard lock(storage_.mutex_of(storage_.shard_index(key.hash)));
  // Whoever was asked by a writer since the copy ended has none any more, and may have said that it
  // is not registered.
  CacheStorage::View view;
  if (!find_ended(key, view) || view.facts.absent || view.facts.stamp.line != now.line) {
    return false;
  }
  if (!interest_.pays(key.hash, uses_that_pay()) && !KV_BUGGIFY(cache_everything)) return false;
  CopyFacts facts = view.facts;
  facts.version = handed.version;
  facts.value_bytes = handed.value_bytes;
  facts.codec = handed.codec;
  // A split may have carried it elsewhere since.
  facts.hosted.word = handed.slot_offset == facts.slot_offset ? handed.hosted : 0;
  facts.stamp = now;
  const uint32_t uses = CacheStorage::uses_of(view);
  if (!storage_.put_locked(key, facts, handed.value, handed.value_crc)) return false;
  counts_.invalidated.fetch_add(1, std::memory_order_relaxed);
  figures_.note(key.hash, KeyFigures::kInvalidated);
  interest_.went_on(key.hash, uses);
  now.read_successor(key.hash, successor);
  if (!facts.hosted.empty()) successor.slot = facts.hosted.word;
  return true;
}

void ClientCache::flush() {
  for (unsigned shard = 0; shard < storage_.shards(); ++shard) {
    const std::lock_guard lock(storage_.mutex_of(shard));
    storage_.clear_locked(shard);
    for (Pending& one : pending_[shard]) one.spoiled = true;
  }
}

std::shared_ptr<HostStamps> ClientCache::stamps_of(uint64_t incarnation) {
  const std::lock_guard lock(lease_mutex_);
  const auto found = std::find_if(stamps_.begin(), stamps_.end(), [&](const auto& stamps) {
    return stamps->incarnation() == incarnation;
  });
  return found == stamps_.end() ? nullptr : *found;
}

uint64_t ClientCache::bind(std::shared_ptr<HostStamps> stamps) {
  const std::lock_guard lock(lease_mutex_);
  lease_until_ns_.store(0, std::memory_order_release);
  const uint64_t term = term_.load(std::memory_order_relaxed) + 1;
  term_.store(term, std::memory_order_relaxed);
  host_.store(stamps.get(), std::memory_order_release);
  const bool known = std::find(stamps_.begin(), stamps_.end(), stamps) != stamps_.end();
  if (stamps != nullptr && !known) stamps_.push_back(std::move(stamps));
  flush();
  return term;
}

void ClientCache::renew(uint64_t term, uint64_t until_ns, uint64_t node_ms) {
  const std::lock_guard lock(lease_mutex_);
  if (term_.load(std::memory_order_relaxed) != term) return;
  node_ms_.store(uint32_t(node_ms), std::memory_order_relaxed);
  if (until_ns > lease_until_ns_.load(std::memory_order_relaxed)) {
    lease_until_ns_.store(until_ns, std::memory_order_release);
  }
}

void ClientCache::revoke(uint64_t term) {
  const std::lock_guard lock(lease_mutex_);
  if (term_.load(std::memory_order_relaxed) != term) return;
  flush();
  counts_.revoked.fetch_add(1, std::memory_order_relaxed);
  const uint32_t pauses = pauses_.load(std::memory_order_relaxed);
  paused_until_ns_.store(boottime_ns() + (kPauseNsMin << pauses), std::memory_order_relaxed);
  if (pauses < kPausesMax) pauses_.store(pauses + 1, std::memory_order_relaxed);
}

}  // namespace kvstore
