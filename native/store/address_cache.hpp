// Where keys were found last: slot, slot word, value length. With it a get is one round trip, READ
// of the slot and READ of the object in one batch, accepted only if the slot word is unchanged.
//
// A direct-mapped table of relaxed atomic words. Entries may be torn by concurrent writers: what is
// read through them is verified like everything else, so a torn entry costs a second look-up.

#pragma once

#include <atomic>
#include <bit>
#include <cstdint>
#include <memory>

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
  explicit AddressCache(uint32_t entries)
      : mask_(std::bit_ceil(uint64_t{entries}) - 1),
        entries_(std::make_unique<Entry[]>(mask_ + 1)) {}

  bool find(uint64_t hash, KnownAddress& known) const {
    const Entry& entry = entries_[hash & mask_];
    if (entry.hash.load(std::memory_order_relaxed) != hash) return false;
    known.slot_offset = entry.slot_offset.load(std::memory_order_relaxed);
    known.slot.word = entry.slot.load(std::memory_order_relaxed);
    known.subtable = entry.subtable.load(std::memory_order_relaxed);
    known.value_bytes = entry.value_bytes.load(std::memory_order_relaxed);
    return known.slot_offset != 0;
  }
  void prefetch(uint64_t hash) const { __builtin_prefetch(&entries_[hash & mask_]); }
  void remember(uint64_t hash, const KnownAddress& known) {
    if (mask_ == 0) return;
    Entry& entry = entries_[hash & mask_];
    entry.slot_offset.store(known.slot_offset, std::memory_order_relaxed);
    entry.slot.store(known.slot.word, std::memory_order_relaxed);
    entry.subtable.store(known.subtable, std::memory_order_relaxed);
    entry.value_bytes.store(known.value_bytes, std::memory_order_relaxed);
    entry.hash.store(hash, std::memory_order_relaxed);
  }
  void forget(uint64_t hash) {
    Entry& entry = entries_[hash & mask_];
    if (entry.hash.load(std::memory_order_relaxed) == hash) {
      entry.slot_offset.store(0, std::memory_order_relaxed);
    }
  }

 private:
  struct alignas(64) Entry {
    std::atomic<uint64_t> hash{0};
    std::atomic<uint64_t> slot_offset{0};
    std::atomic<uint64_t> slot{0};
    std::atomic<uint64_t> subtable{0};
    std::atomic<uint64_t> value_bytes{0};
  };
  const uint64_t mask_;
  std::unique_ptr<Entry[]> entries_;
};

}  // namespace kvstore
