// The 8-byte words that clients change with CAS: index slots, bucket headers, directory entries,
// segment entries. Bit 0 is the lowest. Nothing else in the code shifts or masks these fields.

#pragma once

#include <cstdint>
#include <type_traits>

#include "base/variant.hpp"

namespace kvstore::layout {

// Addresses of blocks and subtables are in units of 64 bytes, 40 bits wide: 64 TiB a region.
inline constexpr uint64_t kUnitBytes = 64;
inline constexpr unsigned kAddressBits = 40;
inline constexpr uint64_t kAddressMask = (uint64_t{1} << kAddressBits) - 1;

constexpr uint64_t field(uint64_t word, unsigned shift, unsigned bits) {
  return (word >> shift) & ((uint64_t{1} << bits) - 1);
}

// ---- Index slot -----------------------------------------------------------------------------
//
//   bits  0..39  address of the object, 64 B units; 0: the slot is empty, its class and fingerprint
//                mean nothing
//   bits 40..47  size class of the block
//   bits 48..50  flags: shared, frozen, tentative
//   bits 51..55  version: +1 at every change but from nothing to `hosted` or `shared`, and from
//                `hosted` to `shared`; survives emptiness
//   bits 56..63  fingerprint of the key
//
// tentative           an insert that has not committed; readers ignore it, anyone may kill it
// shared              some client may have a copy of what this word points at
// frozen              a write to such a key is under way: readers may still return what this word
//                     points at, nobody takes a copy, and any writer may replace it once the
//                     owners of the record have been heard; with `shared`
// frozen alone        hosted: no clients but those of one host may have copies; they know from each
//                     other that it is theirs, all others take it for any host's
// frozen + tentative  moving: a split is carrying this entry to another subtable
struct Slot {
  static constexpr unsigned kClassShift = 40;
  static constexpr unsigned kFlagShift = 48;
  static constexpr unsigned kVersionShift = 51;
  static constexpr unsigned kFingerprintShift = 56;
  static constexpr uint64_t kShared = uint64_t{1} << 48;
  static constexpr uint64_t kFrozen = uint64_t{1} << 49;
  static constexpr uint64_t kTentative = uint64_t{1} << 50;
  static constexpr uint64_t kHosted = kFrozen;
  static constexpr uint64_t kMoving = kFrozen | kTentative;
  static constexpr uint64_t kFlags = kShared | kFrozen | kTentative;
  static constexpr unsigned kVersionBits = 5;

  uint64_t word = 0;

  constexpr uint64_t address() const { return word & kAddressMask; }
  constexpr uint64_t offset() const { return address() * kUnitBytes; }
  constexpr unsigned size_class() const { return unsigned(field(word, kClassShift, 8)); }
  constexpr unsigned version() const { return unsigned(field(word, kVersionShift, kVersionBits)); }
  constexpr unsigned fingerprint() const { return unsigned(field(word, kFingerprintShift, 8)); }
  constexpr bool empty() const { return address() == 0; }
  // A CAS that replaces it would go past copies of clients.
  constexpr bool guarded() const { return (word & (kShared | kFrozen)) != 0; }
  // Of a slot that is not frozen.
  constexpr Slot with_shared() const { return Slot{(word & ~kHosted) | kShared}; }
  // Of one that nobody guards.
  constexpr Slot with_hosted() const { return Slot{word | kHosted}; }
  // Whether both lead to the same object with the same right: they may differ in who may have
  // copies.
  constexpr bool leads_where(const Slot& other) const {
    const bool same_right = frozen() == other.frozen();
    return same_right && ((word ^ other.word) & ~(kShared | kHosted)) == 0;
  }
  constexpr bool shared() const { return (word & kShared) != 0; }
  constexpr bool hosted() const { return (word & kFlags) == kHosted; }
  // By a writer, or a split.
  constexpr bool frozen() const { return (word & kFrozen) != 0 && !hosted(); }
  constexpr bool moving() const { return !empty() && (word & kMoving) == kMoving; }
  constexpr bool tentative() const { return !empty() && (word & kMoving) == kTentative; }
  // A reader may return what a live or moving slot points at.
  constexpr bool readable() const { return !empty() && !tentative(); }

  constexpr unsigned next_version() const {
    if (!std::is_constant_evaluated()) {
      if (KV_BUGGIFY(no_slot_versions)) return version();
    }
    return (version() + 1u) & ((1u << kVersionBits) - 1);
  }
  // The word that replaces this one: next version, given contents.
  constexpr Slot successor(unsigned fingerprint, uint64_t flags, unsigned size_class,
                           uint64_t address) const {
    return Slot{address | uint64_t{size_class} << kClassShift | flags |
                uint64_t{next_version()} << kVersionShift |
                uint64_t{fingerprint} << kFingerprintShift};
  }
  // An empty word keeps bits of what stood there in the places of class and fingerprint, so that 32
  // changes later it is hardly ever the same word.
  constexpr Slot emptied() const {
    const uint64_t mixed = (address() ^ word >> kFingerprintShift) * 0x9e3779b97f4a7c15ull;
    return successor(unsigned(mixed >> 56), 0, unsigned(mixed >> 48 & 0xff), 0);
  }
  constexpr Slot with_flags(uint64_t flags) const {
    return successor(fingerprint(), flags, size_class(), address());
  }
  constexpr uint64_t flags() const { return word & kFlags; }
  constexpr bool operator==(const Slot&) const = default;
};
static_assert(sizeof(Slot) == 8);

// ---- Bucket header --------------------------------------------------------------------------
//
//   bits  0..31  suffix: the low `depth` bits of the hash of every key in the bucket
//   bits 32..39  local depth
//   bit  40      filling: a split has not yet carried this bucket's entries here; the sibling
//                (suffix without its highest bit) may still hold them
struct BucketHeader {
  static constexpr uint64_t kFilling = uint64_t{1} << 40;

  uint64_t word = 0;

  static constexpr BucketHeader make(unsigned depth, uint64_t suffix, bool filling) {
    return BucketHeader{suffix | uint64_t{depth} << 32 | (filling ? kFilling : 0)};
  }
  constexpr unsigned depth() const { return unsigned(field(word, 32, 8)); }
  constexpr uint64_t suffix() const { return field(word, 0, 32); }
  constexpr bool filling() const { return (word & kFilling) != 0; }
  constexpr bool covers(uint64_t hash) const {
    const unsigned bits = depth() > 32 ? 32 : depth();
    return field(hash, 0, bits) == suffix();
  }
  constexpr bool operator==(const BucketHeader&) const = default;
};
static_assert(sizeof(BucketHeader) == 8);

// ---- Directory entry ------------------------------------------------------------------------
//
//   bits  0..39  address of the subtable, 64 B units
//   bits 40..47  local depth
struct DirectoryEntry {
  uint64_t word = 0;

  static constexpr DirectoryEntry make(uint64_t address, unsigned depth) {
    return DirectoryEntry{address | uint64_t{depth} << 40};
  }
  constexpr uint64_t address() const { return word & kAddressMask; }
  constexpr uint64_t offset() const { return address() * kUnitBytes; }
  constexpr unsigned depth() const { return unsigned(field(word, 40, 8)); }
  constexpr bool operator==(const DirectoryEntry&) const = default;
};

// ---- Segment entry --------------------------------------------------------------------------
//
//   bits  0..23  registration of the owner
//   bits 24..47  head: segments in the extent; follower: distance back to its head
//   bits 48..55  size class of the blocks (head of an object extent)
//   bits 56..58  kind
//   bits 59..63  version: +1 at every change, so that a stale CAS fails
//
// An extent is a run of segments taken at once. Its head is claimed first and says `claiming` until
// all followers are claimed, so that a client that dies in between leaves a run that can be undone.
struct SegmentEntry {
  enum Kind : unsigned {
    kFree = 0,
    kClaiming = 1,  // head of an extent being taken
    kObjects = 2,   // head of an extent that holds blocks of one size class
    kSubtable = 3,  // head of an index subtable; the owner matters until it is in the directory
    kFollower = 4,
    kAdoptable = 5,  // head of an object extent without an owner, partly free
    kLocks = 6       // head of a lock table
  };
  static constexpr unsigned kOwnerBits = 24;

  uint64_t word = 0;

  constexpr unsigned kind() const { return unsigned(field(word, 56, 3)); }
  constexpr uint32_t owner() const { return uint32_t(field(word, 0, kOwnerBits)); }
  constexpr uint32_t run() const { return uint32_t(field(word, 24, 24)); }
  constexpr unsigned size_class() const { return unsigned(field(word, 48, 8)); }
  constexpr unsigned version() const { return unsigned(field(word, 59, 5)); }
  constexpr bool is_free() const { return kind() == kFree; }
  constexpr SegmentEntry successor(Kind kind, uint32_t owner, uint32_t run,
                                   unsigned size_class) const {
    const uint64_t next = (version() + 1u) & 31u;
    return SegmentEntry{uint64_t{owner} | uint64_t{run} << 24 | uint64_t{size_class} << 48 |
                        uint64_t{kind} << 56 | next << 59};
  }
  constexpr SegmentEntry freed() const { return successor(kFree, 0, 0, 0); }
  constexpr bool operator==(const SegmentEntry&) const = default;
};

// ---- Directory lock -------------------------------------------------------------------------
//
//   bits  0..23  registration of the holder; 0: free
//   bits 24..63  era: +1 at every acquisition, so that a fenced holder's release fails
struct DirectoryLock {
  uint64_t word = 0;

  constexpr uint32_t holder() const { return uint32_t(field(word, 0, 24)); }
  constexpr uint64_t era() const { return word >> 24; }
  constexpr DirectoryLock taken_by(uint32_t registration) const {
    return DirectoryLock{uint64_t{registration} | (era() + 1) << 24};
  }
  constexpr DirectoryLock released() const { return DirectoryLock{era() << 24}; }
};

// ---- Coherence record -----------------------------------------------------------------------
//
//   bits  0..47  owners: groups of clients that may hold a copy of a key under this record
//   bits 48..63  changes: +1 at every change
//
// The count is what makes a clearing fail beside a registration that it has not seen.
inline constexpr unsigned kOwnerGroups = 48;

struct CoherenceRecord {
  uint64_t word = 0;

  constexpr uint64_t owners() const { return field(word, 0, kOwnerGroups); }
  constexpr unsigned changes() const { return unsigned(word >> kOwnerGroups); }
  constexpr CoherenceRecord changed(uint64_t owners) const {
    return CoherenceRecord{owners | (uint64_t{changes()} + 1) << kOwnerGroups};
  }
  constexpr CoherenceRecord with_owner(unsigned group) const {
    return changed(owners() | uint64_t{1} << group);
  }
  constexpr CoherenceRecord without_owners(uint64_t groups) const {
    return changed(owners() & ~groups);
  }
};

// ---- Version of a value ---------------------------------------------------------------------
//
//   bits  0..39  sequence of the writing client
//   bits 40..63  registration of the writing client
//
// Unique for ever in a node's incarnation, since registrations are never given twice.
constexpr uint64_t make_version(uint32_t registration, uint64_t sequence) {
  return uint64_t{registration} << 40 | (sequence & ((uint64_t{1} << 40) - 1));
}

// ---- The lock of a fence --------------------------------------------------------------------
//
//   bits  0..39  era: when the table of the lock was made, in ms of wall-clock time since 2024.
//                Tokens begin anew in a new table, so a later era comes before a larger token.
//   bits 40..63  identity: of the lock's name
struct FenceLock {
  static constexpr unsigned kIdentityShift = 40;
  static constexpr uint64_t kEraMax = (uint64_t{1} << kIdentityShift) - 1;

  uint64_t word = 0;

  static constexpr FenceLock make(uint64_t name_hash, uint64_t era) {
    return {(name_hash << kIdentityShift) | (era & kEraMax)};
  }
  constexpr uint64_t era() const { return word & kEraMax; }
  constexpr uint64_t identity() const { return word >> kIdentityShift; }
};

}  // namespace kvstore::layout
