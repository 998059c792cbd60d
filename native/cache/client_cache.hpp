// The copies that a client has of one node's values, and its right to believe them.
//
// A copy may be read while three things hold: it is in the storage, from where a writer's message
// takes it; its stamp is current, which a writer on this host renews; and the cache lease has not
// ended. Whoever makes a copy says so before it reads the value from the node (`begin_fill`), so
// that a writer's word in the meantime spoils the copy before it is there.
//
// One cache lasts as long as its client. Attachments take turns with it: each binds it anew, which
// empties it, and what an earlier one still has under way comes to nothing (`term`).
//
// Any thread. Reads take no lock.

#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "api/kvstore.h"
#include "base/variant.hpp"
#include "cache/absence.hpp"
#include "cache/host_stamps.hpp"
#include "cache/interest.hpp"
#include "cache/key_figures.hpp"
#include "cache/storage.hpp"
#include "coro/clock.hpp"

namespace kvstore {

struct CacheCounts {
  std::atomic<uint64_t> fills{0};
  std::atomic<uint64_t> spoiled{0};   // fills that a writer, or another registration, came before
  std::atomic<uint64_t> bypassed{0};  // reads whose keys are not worth a copy now
  std::atomic<uint64_t> invalidated{0};  // copies that other clients' writes took away
  std::atomic<uint64_t> overwritten{0};  // copies that this client's did
  std::atomic<uint64_t> handed{0};       // reads that began with a value handed over on this host
  std::atomic<uint64_t> revoked{0};      // times that all copies were dropped for an answer missing
};

// A slot whose copy was read lately.
struct RecentUse {
  uint64_t slot_offset = 0;
  uint64_t subtable = 0;
};

class ClientCache {
 public:
  explicit ClientCache(uint64_t bytes) : storage_(bytes) {}

  // ---- reading ----

  // Serves a get from a copy. `place_for(call, bytes)` gives memory for a value where the call has
  // no buffer, or nullptr. False: nothing is known about it here.
  template <class PlaceFor>
  bool get(const Key& key, kv_call& call, PlaceFor&& place_for) {
    // Where there is none a read should not cost a look at the clock.
    if (!storage_.may_have(key.hash)) return false;
    // The lease is looked at first: what is found afterwards was right at this moment, or has been
    // read from the node since.
    if (!is_current()) return false;
    CacheStorage::View view;
    if (!find(key, view)) return false;
    if (view.facts.absent) return tell_absent(key, view, call);
    call.codec = view.facts.codec;
    call.version = view.facts.version;
    call.data = nullptr;
    call.data_bytes = view.facts.value_bytes;
    if (call.buffer != nullptr && call.buffer_bytes < view.facts.value_bytes) {
      call.status = KV_BUFFER_TOO_SMALL;
      return true;
    }
    void* const place =
        call.buffer != nullptr ? call.buffer : place_for(call, view.facts.value_bytes);
    if (place == nullptr || !storage_.take(view, place)) return false;
    call.data = place;
    call.status = KV_OK;
    note_hit(key, view);
    return true;
  }
  // The same for whether the key is there.
  bool contains(const Key& key, kv_call& call) {
    CacheStorage::View view;
    if (!storage_.may_have(key.hash) || !is_current() || !find(key, view)) return false;
    if (view.facts.absent) return tell_absent(key, view, call);
    call.version = view.facts.version;
    call.data_bytes = view.facts.value_bytes;
    call.codec = view.facts.codec;
    call.status = KV_OK;
    note_hit(key, view);
    return true;
  }
  bool is_current() const {
    return boottime_ns() < lease_until_ns_.load(std::memory_order_acquire) ||
           KV_VARIANT(cache_without_lease);
  }

  // ---- filling ----

  // Whether a value of this size should be copied now that it is read.
  bool wants(const Key& key, uint64_t value_bytes);
  // Whether it should be remembered that a key is absent, now that a read has not found it.
  bool wants_absence(const Key& key);
  // A read from the node that has been asked about: the key was as seen before.
  void unchanged(uint64_t hash) { interest_.unchanged(hash, uses_that_pay()); }
  // The key was found without anything known of it.
  void met(uint64_t hash) { interest_.met(hash); }
  // The key was found changed at the node, or this client has written it.
  void changed(uint64_t hash) { interest_.changed(hash, uses_that_pay()); }
  // A read from the node found the slot frozen.
  void met_writer(uint64_t hash) { interest_.met_writer(hash, uses_that_pay()); }
  // Whether a get from the node should be measured: one in seven, once some have been.
  bool measures_get() {
    const uint32_t number = gets_.load(std::memory_order_relaxed);
    gets_.store(number + 1, std::memory_order_relaxed);
    return number < kMeasuredAtFirst || number % kMeasuredGets == 0;
  }
  // A key is about to be read from the node, and asked about.
  void prefetch(uint64_t hash) const {
    interest_.prefetch(hash);
    figures_.prefetch(hash);
  }
  // What a get from the node took, one that made a copy, and what a write took to end copies.
  void note_get(uint64_t took_ns) { get_ns_.note(std::min(took_ns, kLongestNs)); }
  void note_making(uint64_t took_ns) { making_ns_.note(std::min(took_ns, kLongestNs)); }
  void note_ending(uint64_t took_ns) { ending_ns_.note(std::min(took_ns, kLongestNs)); }
  // How often a copy must be read to pay.
  uint32_t uses_that_pay() const;

  // The making of one copy, from before the node is asked until its end.
  class Fill {
   public:
    Fill() = default;
    ~Fill() { abandon(); }
    Fill(const Fill&) = delete;
    Fill& operator=(const Fill&) = delete;
    bool begun() const { return cache_ != nullptr; }
    void abandon();
    // The copy will be of what is written after this stamp was renewed.
    void follow(const Stamp& stamp) { stamp_ = stamp; }
    // What was read has a time to live.
    void found_mortal(uint64_t hash) { cache_->figures_.note(hash, KeyFigures::Obstacle::kMortal); }
    // What was to be copied is there no more.
    void found_changed();
    // Puts the copy in unless something has spoiled it. `value_crc`: of the object at the node.
    void finish(const Key& key, const CopyFacts& facts, const void* value, uint32_t value_crc);
    // Only of a broken variant.
    void hand_early(const Key& key, CopyFacts facts, const void* value, uint32_t value_crc) {
      facts.stamp = stamp_;
      cache_->hand_over(key.hash, facts, value, value_crc);
    }

   private:
    friend class ClientCache;
    ClientCache* cache_ = nullptr;
    unsigned shard_ = 0;
    uint64_t number_ = 0;
    Stamp stamp_;
  };
  // False if it was bound anew, or somebody is at it already. `stamp` is the key's as of now.
  bool begin_fill(uint64_t hash, uint32_t record, uint64_t term, const Stamp& stamp, Fill& fill);
  // Before this client's own write of a key: takes the copy of the old value away, and if it was
  // worth having begins one of the new value. False: nothing was begun.
  bool begin_rewrite(uint64_t hash, uint32_t record, uint64_t term, Fill& fill);
  // Whether there is a copy that may be read of what a hosted slot of this host leads to. As long
  // as the operation lasts that asks, the slot leads there if it says the same.
  struct HostedCopy {
    uint64_t slot_offset = 0;
    layout::Slot slot;
    uint64_t subtable = 0;
  };
  bool find_hosted(const Key& key, uint64_t term, HostedCopy& copy) const;
  bool takes(uint64_t value_bytes) const { return value_bytes <= storage_.value_bytes_max(); }

  // ---- coherence ----

  enum class By { kOther, kOwnWrite };
  // Takes the copy of a key away, and spoils those that are being made. Returns whether there was
  // and is nothing under its record: who is still reading its keys stays registered.
  bool drop(uint64_t hash, uint32_t record, By by);
  // A writer that inserts some key has asked after copies of absence.
  void note_absence_asked() { absence_.note_asked(); }
  // Whether a read has lately met a copy that a writer of this host has ended: it is still there.
  bool met_ended() const { return met_ended_.load(std::memory_order_relaxed); }
  // Takes away a copy that a writer of this host has ended. Whether it said where the key is now.
  bool drop_ended(const Key& key, Successor& successor);
  // Puts in its place the value that another client of this host has handed over since, if there is
  // one and copies of the key pay. The registration of the one goes on for the other.
  bool take_handed(const Key& key, Successor& successor);
  void note_handed() { counts_.handed.fetch_add(1, std::memory_order_relaxed); }
  void flush();
  // What its copies of this incarnation have shared so far; null: nothing.
  std::shared_ptr<HostStamps> stamps_of(uint64_t incarnation);
  // Empties it for an attachment that takes it over, whose copies have these stamps, if any;
  // returns its term.
  uint64_t bind(std::shared_ptr<HostStamps> stamps = nullptr);
  // Extends the lease, if `term` is still on.
  void renew(uint64_t term, uint64_t until_ns, uint64_t node_ms);
  // A writer waited for this client in vain: all copies are dropped, and none is made for a while,
  // longer each time, until a message has shown that they do arrive.
  void revoke(uint64_t term);
  void heard() { pauses_.store(0, std::memory_order_relaxed); }

  void take_uses(std::vector<RecentUse>& uses);

  const CacheCounts& counts() const { return counts_; }
  const CacheStorage& storage() const { return storage_; }
  uint64_t hits() const;
  void read_state(const Key& key, kv_copy_state& state) const;

 private:
  struct Pending {
    uint64_t number;
    uint64_t hash;
    uint32_t record;
    bool spoiled;
  };
  struct alignas(64) Stripe {
    std::atomic<uint64_t> hits{0};
  };
  static constexpr unsigned kStripes = 16;
  static constexpr unsigned kShardsMax = 16;
  // Of a thread's reads from copies, one in so many counts for its key.
  static constexpr uint32_t kHitSample = 64;
  static constexpr uint32_t kUseAgainMs = 250;
  static constexpr size_t kUsesMax = 512;
  static constexpr uint64_t kLongestNs = kMillisecond;
  static constexpr uint32_t kMeasuredAtFirst = 256;
  static constexpr uint32_t kMeasuredGets = 7;

  // A copy that no writer of this host has ended.
  bool find(const Key& key, CacheStorage::View& view) {
    if (!storage_.find(key, view)) return false;
    if (view.facts.stamp.is_current() || KV_VARIANT(cache_ignores_stamps)) return true;
    met_ended_.store(true, std::memory_order_relaxed);
    return false;
  }
  void note_hit(const Key& key, const CacheStorage::View& view);
  bool tell_absent(const Key& key, const CacheStorage::View& view, kv_call& call);
  void add_pending_locked(unsigned shard, uint64_t hash, uint32_t record, Fill& fill);
  bool drop_copy_locked(uint64_t hash, By by, uint32_t& uses);
  // Whether there is a copy that a writer of this host has ended.
  bool find_ended(const Key& key, CacheStorage::View& view) const {
    return storage_.find(key, view) && !view.facts.stamp.is_current();
  }
  void hand_over(uint64_t hash, const CopyFacts& facts, const void* value, uint32_t value_crc);

  CacheStorage storage_;
  Interest interest_;
  AbsenceBalance absence_;
  KeyFigures figures_;
  RecentMean get_ns_;
  RecentMean making_ns_;
  RecentMean ending_ns_;
  std::atomic<uint32_t> gets_{0};  // that might have been measured
  CacheCounts counts_;
  std::array<Stripe, kStripes> stripes_;
  // By shard, under its lock.
  std::array<std::vector<Pending>, kShardsMax> pending_;
  std::atomic<uint64_t> next_fill_{1};
  std::mutex lease_mutex_;
  // All that copies ever had: a reader may still look at a stamp of an earlier attachment.
  std::vector<std::shared_ptr<HostStamps>> stamps_;
  std::atomic<HostStamps*> host_{nullptr};  // of this term, if any
  std::atomic<uint64_t> term_{0};
  std::atomic<uint64_t> lease_until_ns_{0};
  std::atomic<uint32_t> node_ms_{0};
  std::atomic<bool> met_ended_{false};
  std::atomic<uint32_t> pauses_{0};  // in a row
  std::atomic<uint64_t> paused_until_ns_{0};
  std::mutex uses_mutex_;
  std::vector<RecentUse> uses_;
};

}  // namespace kvstore
