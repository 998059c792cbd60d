// Which of some entries goes first: what the policies of a node compare, as pure functions of an
// entry's metadata. Sampling compares entries of one moment with one another and nothing else.

#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <tuple>

#include "api/kvstore.h"
#include "layout/layout.hpp"
#include "layout/size_class.hpp"
#include "store/elapsed.hpp"
#include "store/reuse_model.hpp"

namespace kvstore {

// Pins are lost where they are more than this share of what was sampled: that bounds the memory
// that can be pinned, without anybody counting it.
inline constexpr unsigned kPinnedShare = 2;

// The time of a use as metadata keeps it, where 0 says that none is known: as the clock says in a
// node's first millisecond, and once in 49 days.
inline uint32_t time_of_use(uint64_t node_clock_ms) {
  return std::max(uint32_t{1}, uint32_t(node_clock_ms));
}

// The metadata of a key that is put at `now_ms`, `reuse` as in the call.
inline layout::EvictionMetadata told_metadata(uint32_t reuse, uint32_t now_ms) {
  const uint32_t category = reuse >> KV_REUSE_CATEGORY_SHIFT & (KV_REUSE_CATEGORIES - 1);
  return {now_ms, uint16_t(category), uint16_t(reuse), now_ms, 0, 0};
}

inline bool pinned(const layout::EvictionMetadata& metadata, uint64_t now_ms) {
  const uint16_t left_s = uint16_t(metadata.pinned_until_s - uint16_t(now_ms / 1000));
  return metadata.pinned_until_s != 0 && left_s > 0 && left_s <= layout::kPinSecondsMax;
}

// The entry with the least goes first; of several, that which stands later in its chain, then that
// which was used longer ago.
struct EntryWorth {
  float worth;
  uint16_t place;
  uint32_t idle_ms;

  bool operator<(const EntryWorth& other) const {
    return std::tuple(worth, other.place, other.idle_ms) < std::tuple(other.worth, place, idle_ms);
  }
};

// To within a thirtieth: the blocks of one prompt are used within moments of one another, in
// whatever order, and should leave from the end of their chain.
inline uint32_t about(uint32_t idle_ms) {
  const unsigned bits = unsigned(std::bit_width(idle_ms));
  return bits <= 6 ? idle_ms : idle_ms >> (bits - 6) << (bits - 6);
}

inline EntryWorth entry_worth(uint32_t policy, const layout::EvictionMetadata& metadata,
                              unsigned size_class, uint32_t now_ms, const ReuseModel& model) {
  // 0: nothing has been told of it yet, see `date_unknown`.
  const uint32_t last_ms = metadata.last_access_ms != 0 ? metadata.last_access_ms : now_ms;
  const uint32_t idle_ms = elapsed_ms(last_ms, now_ms);
  const uint32_t age_ms = elapsed_ms(metadata.insert_ms, now_ms);
  const float uses = float(metadata.frequency) + 1;
  switch (policy) {
    case KV_EVICTION_FIFO:
      return {0, 0, age_ms};
    case KV_EVICTION_LFU:
      return {uses, 0, idle_ms};
    case KV_EVICTION_GDSF: {
      // The clock of GreedyDual would be a word that everybody writes; uses an age and byte, as
      // hyperbolic caching has it (ATC'17, section 3), let old favourites go as well.
      const float bytes = float(layout::class_bytes(size_class));
      return {uses / bytes / (float(age_ms) + 1), 0, idle_ms};
    }
    case KV_EVICTION_ADAPTIVE:
      return {model.worth(metadata.category, idle_ms), metadata.place, idle_ms};
    default:
      return {-float(about(idle_ms)), metadata.place, idle_ms};
  }
}

}  // namespace kvstore
