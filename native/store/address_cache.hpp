// Where keys were found last: slot, slot word, value length. With it a get is one round trip, READ
// of the slot and READ of the object in one batch, accepted only if the slot word is unchanged.
//
// A table of sets of two entries, each one cache line, the newest entry first. (With one entry a
// set, keys that share a set would put each other out at every get, and a batch is as slow as its
// slowest key.) All words are relaxed atomics. Entries may be torn by concurrent writers: what is
// read through them is verified like everything else, so a torn entry costs a second look-up.

#pragma once

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstdint>

#include "base/table.hpp"
#include "base/variant.hpp"
#include "layout/layout.hpp"

namespace kvstore {

struct KnownAddress {
  uint64_t slot_offset = 0;
  layout::Slot slot;
  uint64_t subtable = 0;
  uint64_t value_bytes = 0;
};

class AddressCache {
 public:
  // Remembers about this many keys; with one entry none.
  explicit AddressCache(uint32_t entries)
      : enabled_(entries > 1),
        mask_(std::bit_ceil(std::max(uint64_t{entries} / kWays, uint64_t{1})) - 1),
        sets_(mask_ + 1) {}

  bool find(uint64_t hash, KnownAddress& known) const {
    if (KV_BUGGIFY(addresses_forgotten)) return false;
    for (const Entry& entry : sets_[hash & mask_].ways) {
      if (entry.hash.load(std::memory_order_relaxed) != hash) continue;
      known.slot_offset = entry.slot_offset.load(std::memory_order_relaxed);
      known.slot.word = entry.slot.load(std::memory_order_relaxed);
      const uint64_t place = entry.page_and_length.load(std::memory_order_relaxed);
      known.subtable = (place >> 32) * layout::kPageBytes;
      known.value_bytes = uint32_t(place);
      if (known.slot_offset != 0) return true;
    }
    return false;
  }

  void prefetch(uint64_t hash) const { __builtin_prefetch(&sets_[hash & mask_]); }

  void remember(uint64_t hash, const KnownAddress& known) {
    const uint64_t page = known.subtable / layout::kPageBytes;
    if (!enabled_ || page > UINT32_MAX || known.value_bytes > UINT32_MAX) return;
    Entry& newest = sets_[hash & mask_].ways[0];
    Entry& older = sets_[hash & mask_].ways[1];
    if (newest.hash.load(std::memory_order_relaxed) != hash) older.take(newest);
    newest.slot_offset.store(known.slot_offset, std::memory_order_relaxed);
    newest.slot.store(known.slot.word, std::memory_order_relaxed);
    newest.page_and_length.store(page << 32 | known.value_bytes, std::memory_order_relaxed);
    newest.hash.store(hash, std::memory_order_relaxed);
  }

  void forget(uint64_t hash) {
    for (Entry& entry : sets_[hash & mask_].ways) {
      if (entry.hash.load(std::memory_order_relaxed) == hash) {
        entry.slot_offset.store(0, std::memory_order_relaxed);
      }
    }
  }

 private:
  static constexpr unsigned kWays = 2;

  struct Entry {
    std::atomic<uint64_t> hash{0};
    std::atomic<uint64_t> slot_offset{0};  // 0: nothing is known
    std::atomic<uint64_t> slot{0};
    // The page where the subtable begins (high half), and the value's length: one word, since a
    // slot of one subtable must not be taken for one of another.
    std::atomic<uint64_t> page_and_length{0};

    void take(const Entry& other) {
      slot_offset.store(other.slot_offset.load(std::memory_order_relaxed),
                        std::memory_order_relaxed);
      slot.store(other.slot.load(std::memory_order_relaxed), std::memory_order_relaxed);
      page_and_length.store(other.page_and_length.load(std::memory_order_relaxed),
                            std::memory_order_relaxed);
      hash.store(other.hash.load(std::memory_order_relaxed), std::memory_order_relaxed);
    }
  };
  struct alignas(64) Set {
    Entry ways[kWays];
  };
  static_assert(sizeof(Set) == 64);

  const bool enabled_;
  const uint64_t mask_;
  const Table<Set> sets_;
};

}  // namespace kvstore
