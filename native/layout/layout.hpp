// Every byte on a memory node: the specification of the region. Words that are changed with CAS are
// in words.hpp, block sizes in size_class.hpp. Little endian throughout.
//
//   offset           what                        who writes it
//   0                superblock                  the node, before the first client
//   4096             node line                   the node alone
//   8192             control page                clients, CAS; the split record also WRITE
//   12288            client lines                each client its own
//   ...              registry lines              the node alone
//   ...              postbox lines               clients each its own
//   ...              directory                   clients
//   ...              coherence records, present  clients, CAS
//   ...              coherence records, absent   clients, CAS
//   ...              segment table               clients, CAS
//   first_segment    segments                    their owners
//
// The atomic domain's rule holds everywhere: a word that anyone changes with CAS or FAA is changed
// with nothing else, and never by the node's processor in the verbs domain.

#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

#include "layout/size_class.hpp"
#include "layout/words.hpp"

namespace kvstore::layout {

inline constexpr uint64_t kMagic = 0x31304d454d44564bull;  // "KVDMEM01"
inline constexpr uint32_t kLayoutVersion = 7;

inline constexpr uint64_t kPageBytes = 4096;
inline constexpr uint64_t kLineBytes = 64;
inline constexpr uint64_t kRegionBytesMin = uint64_t{8} << 20;
inline constexpr uint64_t kSegmentBytesMin = uint64_t{64} << 10;
inline constexpr uint64_t kSegmentsMax = uint64_t{1} << 20;  // then segments grow instead
inline constexpr uint32_t kClientsMax = 1024;

// ---- Superblock -----------------------------------------------------------------------------

enum class Domain : uint32_t { kCpu = 1, kVerbs = 2, kSim = 3 };

struct Superblock {
  uint64_t magic;
  uint32_t layout_version;
  uint32_t domain;
  uint64_t region_bytes;
  uint64_t node_id;
  uint64_t incarnation;
  uint64_t segment_bytes;
  uint64_t segment_count;
  uint64_t first_segment_offset;
  uint64_t segment_table_offset;
  uint64_t directory_offset;
  uint64_t directory_depth_max;
  uint64_t present_records_offset;
  uint64_t absent_records_offset;
  uint64_t record_count;  // in each of the two tables, a power of two
  uint64_t client_lines_offset;
  uint64_t registry_offset;
  uint64_t postboxes_offset;
  uint32_t client_count_max;
  uint32_t eviction;     // kv_eviction
  uint32_t consistency;  // kv_consistency
  uint32_t membership_lease_ms;
  uint32_t cache_lease_ms;
  uint32_t flags;
  uint64_t checksum;  // CRC32C of everything before
};
static_assert(sizeof(Superblock) == 168 && sizeof(Superblock) <= kPageBytes);
inline constexpr uint64_t kSuperblockOffset = 0;

// ---- Node line ------------------------------------------------------------------------------

// Plain stores of the node to words that nobody else writes.
struct NodeLine {
  uint64_t global_epoch;
  // Every live client has published at least this epoch: what was retired in an earlier one is
  // held by nobody.
  uint64_t safe_epoch;
  uint64_t clock_ms;    // since the region was made; expiry of values counts in it
  uint64_t deaths;      // clients fenced so far; a change makes owners scrub their segments
  uint64_t pressure;    // what a client waits for, as in its line: the others should help soon
  uint64_t losses;      // by FAA of clients that lost operations; a change has the same effect
  uint64_t admissions;  // clients admitted so far, before they can do anything
  uint64_t crashes;     // of the deaths, those without a farewell
};
static_assert(sizeof(NodeLine) == kLineBytes);
inline constexpr uint64_t kNodeLineOffset = kPageBytes;

// In regions that are mapped: a robust mutex that the node holds while it lives. Its first four
// bytes are the futex word: the holder's thread, marked by the kernel when that has died.
inline constexpr uint64_t kLivenessOffset = kNodeLineOffset + kLineBytes;

// ---- Control page ---------------------------------------------------------------------------

// The holder of the lock writes the record before it changes anything else, so that whoever takes
// the lock from a fenced holder can finish the split.
struct SplitRecord {
  uint64_t lock;    // DirectoryLock
  uint64_t source;  // address of the subtable being split, 0: none
  uint64_t target;  // address of the new subtable
  uint64_t depth;   // local depth of both after the split
  uint64_t target_suffix;
  uint64_t reserved[3];
};
static_assert(sizeof(SplitRecord) == kLineBytes);
inline constexpr uint64_t kSplitRecordOffset = 2 * kPageBytes;
inline constexpr uint64_t kGlobalDepthOffset = kSplitRecordOffset + kLineBytes;
// Roots of structures that are made on demand: word 0 is the first lock table.
inline constexpr uint64_t kRootsOffset = kSplitRecordOffset + 2 * kLineBytes;
inline constexpr unsigned kRoots = 64;

// A word for each group of owners, in lines of their own. A client reads its group's before every
// renewal of its cache lease, and drops all copies when the word has changed: FAA of a writer to
// whom some client of the group did not answer.
inline constexpr uint64_t kRevokeLinesOffset = kSplitRecordOffset + 16 * kLineBytes;

// Clients with the same group share an owner bit.
constexpr unsigned owner_group(uint32_t registration) {
  return registration % kClientsMax % kOwnerGroups;
}
constexpr uint64_t revoke_offset(unsigned group) {
  return kRevokeLinesOffset + group * kLineBytes;
}

inline constexpr uint64_t kClientLinesOffset = 3 * kPageBytes;
static_assert(kRootsOffset + kRoots * 8 <= kRevokeLinesOffset);
static_assert(revoke_offset(kOwnerGroups) <= kClientLinesOffset);

// ---- Client and registry lines --------------------------------------------------------------

// In `wants_memory`: reclamation, of no class in particular.
inline constexpr uint64_t kWantsReclamation = kSizeClasses;

struct ClientLine {
  uint64_t registration;     // as granted, so that a stale writer shows
  uint64_t heartbeat;        // +1 at every renewal
  uint64_t published_epoch;  // every operation under way began after this epoch was seen
  uint64_t wants_memory;     // size class of the blocks that it waits for, 0: none
  uint64_t operations;
  uint64_t limbo_bytes;
  // Since this registration began: reads that copies served, copies that writes of others took
  // away, and reads of keys whose copies don't pay. The latter two come round again.
  uint64_t cache_hits;
  uint32_t cache_invalidated;
  uint32_t cache_bypassed;
};
static_assert(sizeof(ClientLine) == kLineBytes);

enum class ClientState : uint64_t { kNone = 0, kLive = 1, kFenced = 2, kSwept = 3 };

struct RegistryLine {
  uint64_t registration;
  uint64_t state;
  uint64_t fenced_epoch;  // global epoch when the fence returned
  uint64_t reserved[5];
};
static_assert(sizeof(RegistryLine) == kLineBytes);

// How a client is sent messages. Written once, when it first awaits any; readers check all of it.
struct PostboxLine {
  uint32_t registration;
  uint32_t checksum;    // CRC32C of the line with this field 0
  uint8_t address[40];  // a kv_datagram_address
  uint8_t key[16];      // of the codes of messages to this client
};
static_assert(sizeof(PostboxLine) == kLineBytes);

// ---- Index ----------------------------------------------------------------------------------

// RACE (ATC'21) section 3: three adjacent buckets make a group, main and overflow or overflow and
// main are read together as one combined bucket of 128 bytes.
inline constexpr unsigned kSlotsPerBucket = 7;
inline constexpr unsigned kBucketsPerGroup = 3;
inline constexpr unsigned kSlotsPerGroup = kSlotsPerBucket * kBucketsPerGroup;

struct Bucket {
  uint64_t header;
  uint64_t slots[kSlotsPerBucket];
};
static_assert(sizeof(Bucket) == kLineBytes);

inline constexpr uint64_t kBucketBytes = sizeof(Bucket);
inline constexpr uint64_t kGroupBytes = kBucketsPerGroup * kBucketBytes;
inline constexpr uint64_t kCombinedBytes = 2 * kBucketBytes;

// A subtable: its buckets in 64 KiB, then the eviction metadata of its slots, in one extent.
inline constexpr uint64_t kSubtableBucketBytes = uint64_t{64} << 10;
inline constexpr unsigned kGroupsPerSubtable = unsigned(kSubtableBucketBytes / kGroupBytes);  // 341
inline constexpr unsigned kSlotsPerSubtable = kGroupsPerSubtable * kSlotsPerGroup;

// Best effort, by WRITE and FAA only; a get never reads it. What a read changes stands first.
struct EvictionMetadata {
  uint32_t last_access_ms;  // node clock, low 32 bits
  uint16_t category;        // of the last use, as the caller says; 0: nothing said
  uint16_t place;           // in a chain of keys that are of use up to the first that is missing
  uint32_t insert_ms;
  uint16_t pinned_until_s;  // node clock in seconds, low 16 bits; 0: not pinned
  uint16_t frequency;       // reads, by FAA; the highest bits, so that it overflows into nothing
};
static_assert(sizeof(EvictionMetadata) == 16);
inline constexpr uint64_t kOneRead = uint64_t{1} << 48;  // in the word that begins at insert_ms
// A pin is believed for so long at most: the clock's 16 bits come round again.
inline constexpr uint32_t kPinSecondsMax = 4000;
inline constexpr uint64_t kMetadataBytesPerGroup = kSlotsPerGroup * sizeof(EvictionMetadata);
inline constexpr uint64_t kSubtableBytes =
    kSubtableBucketBytes + kGroupsPerSubtable * kMetadataBytesPerGroup;

// ---- Object ---------------------------------------------------------------------------------

enum ObjectFlags : uint8_t {
  kObjectTombstone = 1,  // a deleted key whose fence must be remembered
  kObjectFence = 2       // a FenceExtension follows the value, 8-byte aligned
};

// header, key, value, extension. An object is immutable from its publication to its reuse.
struct ObjectHeader {
  uint16_t key_bytes;
  uint8_t flags;
  uint8_t codec;        // 0 bytes, 1 msgpack, 16 and up: blocks of a prefix cache
  uint32_t header_crc;  // CRC32C of the header with this field 0
  uint64_t value_bytes;
  uint64_t key_hash;
  uint64_t version;
  uint64_t address_generation;  // own address 40 bits; low 24 bits of the epoch it was written in
  uint32_t value_crc;           // CRC32C of key, then value
  uint32_t expiry_ticks;        // node clock in ticks of 64 ms; 0: never

  constexpr uint64_t address() const { return address_generation & kAddressMask; }
};
static_assert(sizeof(ObjectHeader) == 48);
inline constexpr uint64_t kHeaderBytes = sizeof(ObjectHeader);
inline constexpr uint64_t kExpiryTickMs = 64;

// Which holder of a lock wrote last. Whoever held the lock before is refused from then on.
struct Fence {
  uint64_t lock = 0;  // FenceLock; 0: the caller's own numbers
  uint64_t token = 0;

  constexpr bool operator==(const Fence&) const = default;
  constexpr bool same_lock(const Fence& other) const {
    return FenceLock{lock}.identity() == FenceLock{other.lock}.identity();
  }
  // Of fences of one lock.
  constexpr bool is_older_than(const Fence& other) const {
    const uint64_t era = FenceLock{lock}.era(), other_era = FenceLock{other.lock}.era();
    return era != other_era ? era < other_era : token < other.token;
  }
};

struct FenceExtension {
  Fence fence;
  uint64_t checksum;  // CRC32C of everything before
};
static_assert(sizeof(FenceExtension) == 24);

inline constexpr uint64_t kKeyBytesMax = 1024;

// Values in blocks above the linear classes start on a 64-byte boundary, so that long copies run
// aligned; in smaller blocks right behind the key, so that nothing is wasted.
constexpr uint64_t value_offset(unsigned size_class, uint64_t key_bytes) {
  const uint64_t end = kHeaderBytes + key_bytes;
  return size_class <= kLinearClasses ? end : (end + kUnitBytes - 1) / kUnitBytes * kUnitBytes;
}

// Where the extension of an object begins, and the object without one would end or be padded.
constexpr uint64_t extension_offset(unsigned size_class, uint64_t key_bytes, uint64_t value_bytes) {
  return (value_offset(size_class, key_bytes) + value_bytes + 7) / 8 * 8;
}

// The class for an object; 0 if it is too large for any.
constexpr unsigned object_class(uint64_t key_bytes, uint64_t value_bytes, bool extended = false) {
  const auto end = [&](unsigned size_class) {
    return extended ? extension_offset(size_class, key_bytes, value_bytes) + sizeof(FenceExtension)
                    : value_offset(size_class, key_bytes) + value_bytes;
  };
  const uint64_t packed = end(kLinearClasses);
  return packed <= kLinearBytesMax ? class_of(packed) : class_of(end(kLinearClasses + 1));
}

// ---- Extents --------------------------------------------------------------------------------

// Blocks below 64 segments share an extent. It begins with a bitmap in which anybody sets the
// bit of a block that may be reused and only the owner clears it. Larger blocks have an extent of
// their own without a header.
inline constexpr uint64_t kSharedExtentSegments = 64;

constexpr bool shares_extent(uint64_t block_bytes, uint64_t segment_bytes) {
  return block_bytes < kSharedExtentSegments * segment_bytes;
}

struct ExtentShape {
  uint32_t segments;
  uint32_t blocks;
  uint64_t first_block_offset;  // from the extent's start
};

// The shape of an extent of `segments` segments, blocks of `block_bytes`; blocks is 0 if none fits.
constexpr ExtentShape extent_shape(uint64_t block_bytes, uint32_t segments,
                                   uint64_t segment_bytes) {
  const uint64_t bytes = segments * segment_bytes;
  if (!shares_extent(block_bytes, segment_bytes)) return {segments, 1, 0};
  uint64_t blocks = bytes / block_bytes;
  while (blocks > 0) {
    const uint64_t bitmap_bytes = (blocks + 511) / 512 * kLineBytes;
    if (bitmap_bytes + blocks * block_bytes <= bytes) {
      return {segments, uint32_t(blocks), bitmap_bytes};
    }
    --blocks;
  }
  return {segments, 0, 0};
}

// ---- Geometry -------------------------------------------------------------------------------

struct Geometry {
  uint64_t region_bytes = 0;
  uint64_t segment_bytes = 0;
  uint64_t segment_count = 0;
  uint64_t first_segment_offset = 0;
  uint64_t segment_table_offset = 0;
  uint64_t directory_offset = 0;
  unsigned directory_depth_max = 0;
  uint64_t present_records_offset = 0;
  uint64_t absent_records_offset = 0;
  uint64_t record_count = 0;
  uint64_t registry_offset = 0;
  uint64_t postboxes_offset = 0;

  constexpr uint64_t segment_offset(uint64_t segment) const {
    return first_segment_offset + segment * segment_bytes;
  }
  constexpr uint64_t segment_of(uint64_t offset) const {
    return (offset - first_segment_offset) / segment_bytes;
  }
  constexpr uint64_t entry_offset(uint64_t segment) const {
    return segment_table_offset + segment * 8;
  }
  // Which coherence record a key has while it is there, and which while it is absent: numbers of
  // one row, as the one table lies behind the other. Records don't move, so splits don't touch
  // them.
  constexpr uint32_t record_of(uint64_t key_hash) const {
    return uint32_t((key_hash ^ key_hash >> 29) & (record_count - 1));
  }
  constexpr uint32_t absent_record_of(uint64_t key_hash) const {
    return uint32_t(record_count) + record_of(key_hash);
  }
  constexpr uint64_t record_offset(uint32_t record) const {
    return present_records_offset + record * uint64_t{8};
  }
  constexpr uint32_t segments_for(uint64_t bytes) const {
    return uint32_t((bytes + segment_bytes - 1) / segment_bytes);
  }
  constexpr bool shares_extent(unsigned size_class) const {
    return layout::shares_extent(class_bytes(size_class), segment_bytes);
  }
  // The shape of the extent that begins at `segment` with this head; without blocks if that can't
  // be.
  constexpr ExtentShape shape_of(uint64_t segment, SegmentEntry head) const {
    const bool possible = head.size_class() != 0 && head.run() != 0 && segment < segment_count &&
                          head.run() <= segment_count - segment;
    if (!possible) return {0, 0, 0};
    return extent_shape(class_bytes(head.size_class()), head.run(), segment_bytes);
  }
  // A block that a slot may point at: inside the segments, whole.
  constexpr bool holds_block(uint64_t offset, unsigned size_class) const {
    const uint64_t end = first_segment_offset + segment_count * segment_bytes;
    return size_class != 0 && offset >= first_segment_offset && offset < end &&
           class_bytes(size_class) <= end - offset;
  }
};

constexpr uint64_t round_up(uint64_t value, uint64_t unit) {
  return (value + unit - 1) / unit * unit;
}

// The geometry of a region of `region_bytes`, at least kRegionBytesMin.
constexpr Geometry make_geometry(uint64_t region_bytes) {
  Geometry g;
  g.region_bytes = region_bytes;
  g.segment_bytes = kSegmentBytesMin;
  while (region_bytes / g.segment_bytes > kSegmentsMax) g.segment_bytes *= 2;

  uint64_t offset = kClientLinesOffset + kClientsMax * kLineBytes;
  g.registry_offset = offset;
  offset += kClientsMax * kLineBytes;
  g.postboxes_offset = offset;
  offset += kClientsMax * kLineBytes;

  const uint64_t subtables_max = region_bytes / kSubtableBytes + 1;
  const unsigned depth = unsigned(std::bit_width(subtables_max)) + 2;
  g.directory_depth_max = depth < 8 ? 8 : depth;
  g.directory_offset = offset;
  offset += uint64_t{8} << g.directory_depth_max;

  const uint64_t records = std::bit_floor(region_bytes / (uint64_t{64} << 10));
  g.record_count = records < 512 ? 512 : records;
  g.present_records_offset = offset;
  offset += g.record_count * 8;
  g.absent_records_offset = offset;
  offset += g.record_count * 8;

  g.segment_table_offset = round_up(offset, kPageBytes);
  const uint64_t left = region_bytes - g.segment_table_offset;
  uint64_t segments = left / (g.segment_bytes + 8);
  while (round_up(g.segment_table_offset + segments * 8, kPageBytes) + segments * g.segment_bytes >
         region_bytes) {
    --segments;
  }
  g.segment_count = segments;
  g.first_segment_offset = round_up(g.segment_table_offset + segments * 8, kPageBytes);
  return g;
}
static_assert(make_geometry(kRegionBytesMin).segment_count > 100);
static_assert(make_geometry(uint64_t{1} << 40).segment_count > 0);

}  // namespace kvstore::layout
