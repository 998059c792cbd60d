// What a lane has used of late, by the place of its eviction metadata: the node is told by the
// heartbeat, and until then this is all that evictors of the lane know of it.
//
// Best effort: a use makes room for later ones, and then its key looks as idle as it was before.
// One thread, as its channel.

#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "layout/layout.hpp"
#include "store/elapsed.hpp"
#include "store/eviction_policy.hpp"

namespace kvstore {

class RecentUses {
 public:
  // `reuse` as in the call; a read that says nothing of it leaves what was said before.
  void note(uint64_t metadata_offset, uint32_t now_ms, uint32_t reuse, bool written) {
    // Most stores never evict, and have no table.
    if (sets_.empty()) sets_.resize(kSets);
    Set& set = set_of(metadata_offset);
    Use* const known = find(set, metadata_offset);
    Use* const last = known != nullptr ? known : &set.uses.back();
    std::move_backward(set.uses.data(), last, last + 1);
    set.uses.front() = {metadata_offset | (written ? kWritten : 0), now_ms, reuse};
  }
  // Brings metadata that was read up to date.
  void apply(uint64_t metadata_offset, layout::EvictionMetadata& metadata) {
    if (sets_.empty()) return;
    const Use* const use = find(set_of(metadata_offset), metadata_offset);
    if (use == nullptr) return;
    // What the node knows is younger, or of another entry in the same slot.
    const bool told =
        metadata.last_access_ms != 0 && elapsed_ms(use->now_ms, metadata.last_access_ms) > 0;
    if (told) return;
    const layout::EvictionMetadata said = told_metadata(use->reuse, use->now_ms);
    if ((use->place & kWritten) != 0 || metadata.last_access_ms == 0) {
      metadata = said;
      return;
    }
    metadata.last_access_ms = use->now_ms;
    if (use->reuse == 0) return;
    metadata.category = said.category;
    metadata.place = said.place;
  }
  // Its entry is gone.
  void forget(uint64_t metadata_offset) {
    if (sets_.empty()) return;
    if (Use* const use = find(set_of(metadata_offset), metadata_offset)) *use = {};
  }
  void clear() { sets_.clear(); }

 private:
  // Room for several times the blocks of a long prompt: which of them were used must not be
  // forgotten while the rest is stored.
  static constexpr unsigned kWays = 4;
  static constexpr unsigned kSetBits = 12;
  static constexpr unsigned kSets = 1 << kSetBits;
  static constexpr uint64_t kWritten = 1;  // in the alignment of an offset
  struct Use {
    uint64_t place;  // the metadata's offset and `kWritten`; 0: none
    uint32_t now_ms;
    uint32_t reuse;
  };
  // One cache line, the latest use first.
  struct alignas(layout::kLineBytes) Set {
    std::array<Use, kWays> uses{};
  };
  static_assert(sizeof(Set) == layout::kLineBytes);

  // Subtables begin at multiples of a segment, so the low bits are the same in each of them.
  Set& set_of(uint64_t metadata_offset) {
    const uint64_t number = metadata_offset / sizeof(layout::EvictionMetadata);
    return sets_[number * 0x9e3779b97f4a7c15ull >> (64 - kSetBits)];
  }
  static Use* find(Set& set, uint64_t metadata_offset) {
    for (Use& use : set.uses) {
      if ((use.place & ~kWritten) == metadata_offset) return &use;
    }
    return nullptr;
  }
  std::vector<Set> sets_;
};

}  // namespace kvstore
