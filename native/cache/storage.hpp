// Copies of values in this process's memory: a bounded number of bytes, found by key. No protocol
// is in here: whoever puts a copy in knows that it may be believed, and takes it out when it may
// not be any more.
//
// Any number of threads read at once; a reader takes no lock and makes no system call. Each copy is
// reached through one word that no other copy ever has, and that is cleared before the copy's bytes
// are used again: a reader copies the bytes out, and has them only if the word is still the same.
// Changes take the lock of one of a few shards.
//
// What stays is decided as in S3-FIFO (SOSP'23): a copy begins in a small queue, a tenth of the
// bytes, and goes on to the main queue only if it was read there, or while that has room to spare;
// the main queue gives what was read another round. Both queues are rings of bytes, so values of
// any size lie side by side and nothing is fragmented.

#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <unordered_map>
#include <vector>

#include "base/table.hpp"
#include "cache/host_stamps.hpp"
#include "index/key.hpp"
#include "layout/layout.hpp"

namespace kvstore {

// What is kept beside the bytes of a value.
struct CopyFacts {
  uint64_t value_bytes = 0;
  uint64_t version = 0;
  uint64_t slot_offset = 0;  // where it was found, for the node's eviction metadata
  uint64_t subtable = 0;
  uint32_t record = 0;  // coherence record
  uint32_t codec = 0;
  Stamp stamp{};        // from before it was made: it may be read while that is current
  bool absent = false;  // the copy says that there is no such key, and has no value
  // The slot's word, where that said `hosted`, and by this host, and the object has no fence. As
  // long as the copy may be read it is the same but for `shared`.
  layout::Slot hosted{};
};

class CacheStorage {
 public:
  static constexpr uint64_t kBytesMin = 64 << 10;

  // `bytes` is at least kBytesMin. Memory is taken as it comes to be used, in huge pages where
  // there are any.
  explicit CacheStorage(uint64_t bytes);
  CacheStorage(const CacheStorage&) = delete;
  CacheStorage& operator=(const CacheStorage&) = delete;

  // A copy as a reader finds it. The facts are of this copy; whether its value can still be had,
  // `take` tells.
  struct View {
    CopyFacts facts;
    uint64_t word = 0;
    const std::atomic<uint64_t>* place = nullptr;
    const uint8_t* value = nullptr;
    std::atomic<uint32_t>* mark = nullptr;
  };
  bool find(const Key& key, View& view) const;
  // Whether there is one, as far as eight bits of its hash tell.
  bool may_have(uint64_t hash) const {
    const Shard& shard = shard_of(hash);
    const uint32_t tags = shard.tags[set_number(shard, hash)].load(std::memory_order_relaxed);
    // A byte that is zero here is a tag that is the same.
    const uint32_t other = tags ^ tag_of(hash) * kEachByte;
    return ((other - kEachByte) & ~other & kEachByte << 7) != 0;
  }
  // Copies the value out. False if the copy has gone meanwhile: then what is in `into` is nothing.
  bool take(const View& view, void* into) const;
  // Notes that it was read. Once in `again_ms` it returns true, by the clock given.
  static bool note_use(const View& view, uint32_t now_ms, uint32_t again_ms);

  // ---- changes, under the lock of the key's shard ----

  // All keys of one coherence record have one shard.
  unsigned shard_index(uint64_t hash) const { return unsigned((hash ^ hash >> 29) & shard_mask_); }
  unsigned shards() const { return shard_mask_ + 1; }
  std::mutex& mutex_of(unsigned shard) { return shards_[shard].mutex; }

  // Larger ones don't come in.
  uint64_t value_bytes_max() const { return value_bytes_max_; }
  // In place of an earlier copy. False: it is too large, or its subtable too far away, or what
  // `value` holds does not have the checksum of key and value that it has at the node: its owner
  // has changed it meanwhile.
  bool put_locked(const Key& key, const CopyFacts& facts, const void* value, uint32_t value_crc);
  // Whether there was a copy; `uses` is then how often it was read, up to kUsesMax.
  bool drop_locked(uint64_t hash, uint32_t& uses);
  // Copies of keys with this record, of which `hash` is one.
  uint32_t of_record_locked(uint64_t hash, uint32_t record) const;
  void clear_locked(unsigned shard);

  static constexpr uint32_t kUsesMax = 255;

  static uint32_t uses_of(const View& view) {
    return view.mark->load(std::memory_order_relaxed) & kUsesMax;
  }
  uint64_t entries() const { return entries_.load(std::memory_order_relaxed); }
  uint64_t bytes_used() const { return bytes_used_.load(std::memory_order_relaxed); }
  uint64_t evictions() const { return evictions_.load(std::memory_order_relaxed); }

 private:
  static constexpr uint64_t kUnitBytes = 64;

  static uint64_t value_at(uint64_t key_bytes) { return (kUnitBytes + key_bytes + 15) / 16 * 16; }

  // In a ring before key and value.
  struct Header {
    uint64_t hash = 0;  // of a filler up to the end of the ring: 0
    uint64_t version = 0;
    uint64_t slot_offset = 0;
    layout::Slot hosted;
    Stamp stamp;
    uint32_t subtable_page = 0;
    uint32_t value_bytes = 0;  // of a filler: all of it
    uint32_t record = 0;
    uint16_t key_bytes = 0;
    uint8_t codec = 0;
    bool absent = false;

    CopyFacts facts() const {
      return {value_bytes, version, slot_offset, subtable_page * layout::kPageBytes, record, codec,
              stamp,       absent,  hosted};
    }
    // With header and padding.
    uint32_t copy_bytes() const {
      if (hash == 0) return value_bytes;
      return uint32_t((value_at(key_bytes) + value_bytes + kUnitBytes - 1) / kUnitBytes *
                      kUnitBytes);
    }
  };
  static_assert(sizeof(Header) <= kUnitBytes);

  static constexpr unsigned kWays = 4;
  static constexpr uint32_t kEachByte = 0x01010101;
  struct Way {
    std::atomic<uint64_t> hash{0};
    // Unit in the arena in the low half, a number that goes up in the high half; 0: nothing.
    std::atomic<uint64_t> place{0};
  };
  struct alignas(64) Set {
    Way ways[kWays];
  };

  // Positions count bytes since the beginning and never go back.
  struct Ring {
    uint64_t base = 0;  // in the arena
    uint64_t bytes = 0;
    uint64_t head = 0;
    uint64_t tail = 0;
  };
  struct alignas(64) Shard {
    std::mutex mutex;
    Set* sets = nullptr;
    // Beside each way: uses in the low 8 bits, above them when `note_use` last said true. A late
    // reader may write to it, so it must not lie among bytes that are used again.
    std::atomic<uint32_t>* marks = nullptr;
    // Of each set a byte a way, zero where there is no copy. So many lie close together that a read
    // of what has no copy seldom waits for memory.
    std::atomic<uint32_t>* tags = nullptr;
    uint64_t set_mask = 0;
    Ring small;
    Ring main;
    uint32_t number = 0;
    std::unordered_map<uint32_t, uint32_t> records;  // copies of each
    std::vector<uint8_t> moved;
  };

  static uint64_t set_number(const Shard& shard, uint64_t hash) {
    return (hash * 0x9e3779b97f4a7c15ull >> 32) & shard.set_mask;
  }
  static uint32_t tag_of(uint64_t hash) { return 1 + uint32_t(hash >> 40) % 255; }
  static uint64_t offset_of(uint64_t place) { return uint64_t{uint32_t(place)} * kUnitBytes; }

  Shard& shard_of(uint64_t hash) const { return shards_[shard_index(hash)]; }
  Header header_at(uint64_t offset) const;
  std::atomic<uint32_t>& mark_of(const Shard& shard, const Way& way) const;
  Way* way_of(Shard& shard, uint64_t hash) const;
  Way& way_for(Shard& shard, uint64_t hash);
  void set_tag(Shard& shard, const Way& way, uint32_t tag);
  void forget(Shard& shard, Way& way);
  bool has_room(const Ring& ring, uint64_t bytes) const;
  uint64_t claim(Ring& ring, uint64_t bytes);
  void make_room(Shard& shard, Ring& ring, uint64_t bytes);
  Way* oldest_of(Shard& shard, const Ring& ring, Header& header) const;
  uint32_t uses_of(const Shard& shard, const Way& way) const;
  bool pop(Shard& shard, Ring& ring, bool may_stay);
  bool move(Shard& shard, Way& way, const Header& header, uint64_t offset, Ring& to);

  std::optional<ZeroMemory> memory_;
  std::optional<Table<Set>> sets_;
  std::optional<Table<std::atomic<uint32_t>>> marks_;
  std::optional<Table<std::atomic<uint32_t>>> tags_;
  uint8_t* arena_ = nullptr;
  unsigned shard_mask_ = 0;
  std::unique_ptr<Shard[]> shards_;
  uint64_t value_bytes_max_ = 0;
  std::atomic<uint64_t> entries_{0};
  std::atomic<uint64_t> bytes_used_{0};
  std::atomic<uint64_t> evictions_{0};
};

}  // namespace kvstore
