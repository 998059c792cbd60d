// The lock table of a node, made on demand in an extent of its own, and the words of a lock.
//
//   table    one line that describes it, then `lock_count` records
//   record   header word, reset word, padding to a line, ring of one word a queue entry
//
// After DecLock (arXiv 2505.17641), with entries of one aligned word, indexes that never repeat and
// a reset that has an owner. Queue positions are absolute: the request that finds `head` and `size`
// has index head + size, for ever.

#pragma once

#include <cstddef>
#include <cstdint>

#include "layout/layout.hpp"

namespace kvstore::layout {

// ---- Header ---------------------------------------------------------------------------------
//
//   bit   0      a reset is under way: requests and releases from here on are void
//   bits  1..11  exclusive requests in the queue, holders included
//   bits 12..22  requests in the queue, holders included
//   bits 23..63  head: releases since the table was made, and what resets skipped
//
// Changed by FAA of the constants below. Each adds the complement of 1 to a field that is at least
// 1, which carries one into the next field: so a release decrements and moves the head at once. A
// client has at most one request in the queue of a lock, hence neither field can overflow.
template <unsigned kCountBits, unsigned kHeadBits>
struct BasicLockHeader {
  static constexpr unsigned kExclusiveShift = 1;
  static constexpr unsigned kSizeShift = kExclusiveShift + kCountBits;
  static constexpr unsigned kHeadShift = kSizeShift + kCountBits;
  static constexpr unsigned kWidth = kHeadShift + kHeadBits;
  static constexpr uint64_t kResetting = 1;
  static constexpr uint64_t kCountMax = (uint64_t{1} << kCountBits) - 1;
  static constexpr uint64_t kOneExclusive = uint64_t{1} << kExclusiveShift;
  static constexpr uint64_t kOneRequest = uint64_t{1} << kSizeShift;
  static constexpr uint64_t kOneRelease = uint64_t{1} << kHeadShift;

  static constexpr uint64_t acquisition(bool exclusive) {
    return kOneRequest + (exclusive ? kOneExclusive : 0);
  }
  static constexpr uint64_t release(bool exclusive) {
    return kOneRelease - kOneRequest - (exclusive ? kOneExclusive : 0);
  }

  uint64_t word = 0;

  constexpr bool resetting() const { return (word & kResetting) != 0; }
  constexpr uint64_t exclusive() const { return field(word, kExclusiveShift, kCountBits); }
  constexpr uint64_t size() const { return field(word, kSizeShift, kCountBits); }
  constexpr uint64_t head() const { return field(word, kHeadShift, kHeadBits); }
  // The index that the next request gets.
  constexpr uint64_t tail() const { return head() + size(); }
  // Whether a request that finds this header holds the lock at once.
  constexpr bool grants(bool wants_exclusive) const {
    return size() == 0 || (!wants_exclusive && exclusive() == 0);
  }
  // The header that ends a reset: nobody is in the queue, and no index comes a second time.
  constexpr BasicLockHeader after_reset() const { return {tail() << kHeadShift}; }
  constexpr bool operator==(const BasicLockHeader&) const = default;
};
using LockHeader = BasicLockHeader<11, 41>;
static_assert(LockHeader::kWidth == 64);
static_assert(kClientsMax < LockHeader::kCountMax);

// A lock is worn out when its next index would come near the end of the head's bits.
inline constexpr uint64_t kLockIndexMax = (uint64_t{1} << 41) - 2 * LockHeader::kCountMax;

// ---- Queue entry ----------------------------------------------------------------------------
//
//   bit   0      exclusive
//   bits  1..24  registration of the client that waits; 0: never written
//   bits 25..63  lap: index div ring capacity
struct LockEntry {
  static constexpr unsigned kLapShift = 25;

  uint64_t word = 0;

  static constexpr LockEntry make(bool exclusive, uint32_t registration, uint64_t lap) {
    return {uint64_t{exclusive} | uint64_t{registration} << 1 | lap << kLapShift};
  }
  constexpr bool exclusive() const { return (word & 1) != 0; }
  constexpr uint32_t registration() const { return uint32_t(field(word, 1, 24)); }
  constexpr uint64_t lap() const { return word >> kLapShift; }
  constexpr bool written() const { return registration() != 0; }
  constexpr bool is_of_lap(uint64_t wanted) const { return written() && lap() == wanted; }
  constexpr bool is_newer_than(uint64_t wanted) const { return written() && lap() > wanted; }
};

// ---- Reset word -----------------------------------------------------------------------------
//
//   bits  0..23  registration of the client that resets the lock; 0: nobody does
//   bits 24..63  epoch: +1 whenever somebody begins or takes over a reset
//
// Only its owner sets and clears the header's reset bit. An owner that has been fenced is replaced
// by anybody, who goes on with the reset.
struct LockReset {
  uint64_t word = 0;

  constexpr uint32_t owner() const { return uint32_t(field(word, 0, 24)); }
  constexpr uint64_t epoch() const { return word >> 24; }
  constexpr LockReset taken_by(uint32_t registration) const {
    return {uint64_t{registration} | (epoch() + 1) << 24};
  }
  constexpr LockReset ended() const { return {epoch() << 24}; }
};

// ---- Token of a grant -----------------------------------------------------------------------
//
//   bits  0..15  how often the lock was passed on within the client, under one request
//   bits 16..56  index of the request
constexpr uint64_t lock_token(uint64_t index, uint32_t grants) {
  return index << 16 | grants;
}
inline constexpr uint32_t kLockGrantsMax = (1u << 16) - 1;

// ---- Table ----------------------------------------------------------------------------------

inline constexpr unsigned kLockRoot = 0;  // among the roots: its offset, 0 while there is none
inline constexpr uint64_t kLockTableMagic = 0x31304b434f4c564bull;  // "KVLOCK01"
inline constexpr uint64_t kLockCountDefault = 65'536;
inline constexpr uint64_t kLockCountMin = 64;
inline constexpr uint64_t kLockRingDefault = 32;
inline constexpr uint64_t kLockRingMax = 1024;
inline constexpr uint64_t kLockResetOffset = 8;
inline constexpr uint64_t kLockRingOffset = kLineBytes;
// At most this part of a region becomes its lock table.
inline constexpr uint64_t kLockTableShare = 16;

struct LockTableHead {
  uint64_t magic;
  uint32_t lock_count;     // a power of two
  uint32_t ring_capacity;  // entries of each ring, a power of two
  uint64_t era;            // of the fences of its locks: see FenceLock
  uint64_t reserved[4];
  uint64_t checksum;  // CRC32C of everything before
};
static_assert(sizeof(LockTableHead) == kLineBytes);

struct LockTableShape {
  uint64_t lock_count = 0;
  uint64_t ring_capacity = 0;

  constexpr uint64_t record_bytes() const {
    return kLockRingOffset + (ring_capacity * 8 + kLineBytes - 1) / kLineBytes * kLineBytes;
  }
  constexpr uint64_t bytes() const { return kLineBytes + lock_count * record_bytes(); }
  constexpr uint64_t lap_of(uint64_t index) const { return index / ring_capacity; }
  // From the record's start.
  constexpr uint64_t entry_offset(uint64_t index) const {
    return kLockRingOffset + index % ring_capacity * 8;
  }
  constexpr uint64_t read_bytes() const { return kLockRingOffset + ring_capacity * 8; }
  constexpr bool sound() const {
    return std::has_single_bit(lock_count) && std::has_single_bit(ring_capacity) &&
           ring_capacity <= kLockRingMax && lock_count <= (uint64_t{1} << 31);
  }
};

// The shape of the table that a region of this size gets.
constexpr LockTableShape default_lock_table(uint64_t region_bytes) {
  LockTableShape shape{kLockCountDefault, kLockRingDefault};
  while (shape.lock_count > kLockCountMin && shape.bytes() > region_bytes / kLockTableShare) {
    shape.lock_count /= 2;
  }
  return shape;
}
static_assert(default_lock_table(kRegionBytesMin).lock_count == 1024);
static_assert(default_lock_table(uint64_t{1} << 30).lock_count == kLockCountDefault);

}  // namespace kvstore::layout
