// Entries that were sampled and not evicted, the worst ones: the next sample competes with them.
// Remembering the best of earlier samples makes a small sample nearly as good as looking at
// everything (Psounis and Prabhakar, INFOCOM'01).
//
// One thread, as its channel. An entry may be long gone: evicting it is a CAS that fails then.

#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

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
  // The first is kept first, for it should go first.
  void keep(const EvictionEntry& entry) { entries_[count_++] = entry; }
  // It was taken, should have gone before all that were kept since, and did not: if there is no
  // room the last makes it.
  void put_back(const EvictionEntry& entry) {
    count_ = std::min(count_ + 1, kEntries);
    std::copy_backward(entries_.data(), entries_.data() + count_ - 1, entries_.data() + count_);
    entries_.front() = entry;
  }

 private:
  uint64_t incarnation_ = 0;
  uint64_t filled_ns_ = 0;
  unsigned count_ = 0;
  unsigned used_per_group_ = layout::kSlotsPerGroup;
  std::array<EvictionEntry, kEntries> entries_;  // not initialised
};

}  // namespace kvstore
