// Entries that were sampled and not evicted, the worst ones: the next sample competes with them.
// Remembering the best of earlier samples makes a small sample nearly as good as looking at
// everything (Psounis and Prabhakar, INFOCOM'01).
//
// One thread, as its channel. An entry may be long gone: evicting it is a CAS that fails then.

#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "index/places.hpp"
#include "layout/layout.hpp"
#include "store/eviction_policy.hpp"

namespace kvstore {

struct EvictionEntry {
  SlotRef ref;
  uint64_t metadata_offset;
  layout::EvictionMetadata metadata;
  bool owned;  // by this client, when it was sampled
};

class EvictionPool {
 public:
  static constexpr unsigned kEntries = 48;
  static constexpr uint64_t kHoldsNs = 500'000'000;

  // The entries, of this incarnation and not too old, without those whose slots are from `begin` to
  // `end`, which have just been read again. Empties the pool.
  template <class Take>
  void take(uint64_t incarnation, uint64_t now_ns, uint64_t begin, uint64_t end, Take&& take) {
    if (incarnation == incarnation_ && now_ns - filled_ns_ < kHoldsNs) {
      for (unsigned i = 0; i < count_; ++i) {
        const uint64_t offset = entries_[i].ref.offset;
        if (offset < begin || offset >= end) take(entries_[i]);
      }
    } else {
      filled_ns_ = now_ns;
    }
    incarnation_ = incarnation;
    count_ = 0;
  }
  // A sample of so many groups had so many slots in use.
  void saw(unsigned groups, unsigned used) { used_per_group_ = (used + groups - 1) / groups; }
  unsigned used_per_group() const { return used_per_group_; }
  bool full() const { return count_ == kEntries; }
  void keep(const EvictionEntry& entry) { entries_[count_++] = entry; }

 private:
  uint64_t incarnation_ = 0;
  uint64_t filled_ns_ = 0;
  unsigned count_ = 0;
  unsigned used_per_group_ = layout::kSlotsPerGroup;
  std::array<EvictionEntry, kEntries> entries_;  // not initialised
};

// What this lane has used of late, by the place of its metadata: the node is told by the heartbeat,
// and until then evictors of other clients know nothing of it. One thread, as its channel.
class RecentUses {
 public:
  // `reuse` as in the call; a read that says nothing of it leaves what was said before.
  void note(uint64_t metadata_offset, uint32_t now_ms, uint32_t reuse, bool written) {
    // Most stores never evict, and have no table.
    if (uses_.empty()) uses_.resize(kUses);
    uses_[index_of(metadata_offset)] = {metadata_offset, now_ms, reuse, written};
  }
  // Brings metadata that was read up to date.
  void apply(uint64_t metadata_offset, layout::EvictionMetadata& metadata) const {
    if (uses_.empty()) return;
    const Use& use = uses_[index_of(metadata_offset)];
    if (use.metadata_offset != metadata_offset) return;
    // What the node knows is younger, or of another entry in the same slot.
    const bool told =
        metadata.last_access_ms != 0 && elapsed_ms(use.now_ms, metadata.last_access_ms) > 0;
    if (told) return;
    const layout::EvictionMetadata said = told_metadata(use.reuse, use.now_ms);
    if (use.written || metadata.last_access_ms == 0) {
      metadata = said;
      return;
    }
    metadata.last_access_ms = use.now_ms;
    if (use.reuse == 0) return;
    metadata.category = said.category;
    metadata.place = said.place;
  }
  // Its entry is gone.
  void forget(uint64_t metadata_offset) {
    if (uses_.empty()) return;
    Use& use = uses_[index_of(metadata_offset)];
    if (use.metadata_offset == metadata_offset) use = {};
  }
  void clear() { uses_.clear(); }

 private:
  // More than the blocks of a long prompt: which of them were used must not be forgotten while the
  // rest is stored.
  static constexpr unsigned kUses = 16384;
  struct Use {
    uint64_t metadata_offset;
    uint32_t now_ms;
    uint32_t reuse;
    bool written;
  };
  static size_t index_of(uint64_t metadata_offset) {
    return size_t(metadata_offset / sizeof(layout::EvictionMetadata) % kUses);
  }
  std::vector<Use> uses_;
};

}  // namespace kvstore
