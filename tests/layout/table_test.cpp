// Holds native/layout against the written table beside this file: every constant, every bit field,
// every structure field, in both directions.

#include <doctest/doctest.h>

#include <cstddef>
#include <fstream>
#include <map>
#include <set>
#include <sstream>
#include <string>

#include "api/kvstore.h"
#include "layout/layout.hpp"
#include "layout/locks.hpp"

namespace kvstore::layout {
namespace {

struct Extent {
  uint64_t start;
  uint64_t width;
  bool operator==(const Extent&) const = default;
};

struct Table {
  std::map<std::string, uint64_t> numbers;
  std::map<std::string, Extent> bits;
  std::map<std::string, Extent> fields;
};

Table read_table() {
  std::ifstream file(KVSTORE_LAYOUT_TABLE);
  REQUIRE(file.good());
  Table table;
  std::string line;
  while (std::getline(file, line)) {
    if (line.empty() || line[0] == '#') continue;
    CAPTURE(line);
    std::istringstream words(line);
    std::string first, name, value;
    words >> first;
    bool added = false;
    if (first == "bits" || first == "at") {
      Extent extent{};
      words >> name >> extent.start >> extent.width;
      REQUIRE(!words.fail());
      added = (first == "bits" ? table.bits : table.fields).emplace(name, extent).second;
    } else {
      words >> value;
      added = table.numbers.emplace(first, std::stoull(value, nullptr, 0)).second;
    }
    REQUIRE(added);  // no line twice
  }
  return table;
}

template <class Value>
void check_same(const std::map<std::string, Value>& written,
                const std::map<std::string, Value>& actual) {
  for (const auto& [name, value] : written) {
    CAPTURE(name);
    REQUIRE(actual.count(name) == 1);
    CHECK((actual.at(name) == value));
  }
  for (const auto& [name, value] : actual) {
    CAPTURE(name);
    CHECK(written.count(name) == 1);
  }
}

#define FIELD(structure, name, field)                      \
  {                                                        \
    name "." #field, Extent {                              \
      offsetof(structure, field), sizeof(structure::field) \
    }                                                      \
  }

std::map<std::string, Extent> superblock_fields() {
  return {FIELD(Superblock, "superblock", magic),
          FIELD(Superblock, "superblock", layout_version),
          FIELD(Superblock, "superblock", domain),
          FIELD(Superblock, "superblock", region_bytes),
          FIELD(Superblock, "superblock", node_id),
          FIELD(Superblock, "superblock", incarnation),
          FIELD(Superblock, "superblock", segment_bytes),
          FIELD(Superblock, "superblock", segment_count),
          FIELD(Superblock, "superblock", first_segment_offset),
          FIELD(Superblock, "superblock", segment_table_offset),
          FIELD(Superblock, "superblock", directory_offset),
          FIELD(Superblock, "superblock", directory_depth_max),
          FIELD(Superblock, "superblock", present_records_offset),
          FIELD(Superblock, "superblock", absent_records_offset),
          FIELD(Superblock, "superblock", record_count),
          FIELD(Superblock, "superblock", client_lines_offset),
          FIELD(Superblock, "superblock", registry_offset),
          FIELD(Superblock, "superblock", postboxes_offset),
          FIELD(Superblock, "superblock", client_count_max),
          FIELD(Superblock, "superblock", eviction),
          FIELD(Superblock, "superblock", consistency),
          FIELD(Superblock, "superblock", membership_lease_ms),
          FIELD(Superblock, "superblock", cache_lease_ms),
          FIELD(Superblock, "superblock", flags),
          FIELD(Superblock, "superblock", checksum)};
}

std::map<std::string, Extent> line_fields() {
  return {FIELD(NodeLine, "node_line", global_epoch),
          FIELD(NodeLine, "node_line", safe_epoch),
          FIELD(NodeLine, "node_line", clock_ms),
          FIELD(NodeLine, "node_line", deaths),
          FIELD(NodeLine, "node_line", pressure),
          FIELD(NodeLine, "node_line", admissions),
          FIELD(NodeLine, "node_line", crashes),
          FIELD(SplitRecord, "split_record", lock),
          FIELD(SplitRecord, "split_record", source),
          FIELD(SplitRecord, "split_record", target),
          FIELD(SplitRecord, "split_record", depth),
          FIELD(SplitRecord, "split_record", target_suffix),
          FIELD(ClientLine, "client_line", registration),
          FIELD(ClientLine, "client_line", heartbeat),
          FIELD(ClientLine, "client_line", published_epoch),
          FIELD(ClientLine, "client_line", wants_memory),
          FIELD(ClientLine, "client_line", operations),
          FIELD(ClientLine, "client_line", limbo_bytes),
          FIELD(ClientLine, "client_line", cache_hits),
          FIELD(ClientLine, "client_line", cache_invalidated),
          FIELD(ClientLine, "client_line", cache_bypassed),
          FIELD(RegistryLine, "registry_line", registration),
          FIELD(RegistryLine, "registry_line", state),
          FIELD(RegistryLine, "registry_line", fenced_epoch),
          FIELD(PostboxLine, "postbox_line", registration),
          FIELD(PostboxLine, "postbox_line", checksum),
          FIELD(PostboxLine, "postbox_line", address),
          FIELD(PostboxLine, "postbox_line", key)};
}

std::map<std::string, Extent> index_and_object_fields() {
  return {FIELD(Bucket, "bucket", header),
          FIELD(Bucket, "bucket", slots),
          FIELD(EvictionMetadata, "eviction_metadata", last_access_ms),
          FIELD(EvictionMetadata, "eviction_metadata", category),
          FIELD(EvictionMetadata, "eviction_metadata", place),
          FIELD(EvictionMetadata, "eviction_metadata", insert_ms),
          FIELD(EvictionMetadata, "eviction_metadata", pinned_until_s),
          FIELD(EvictionMetadata, "eviction_metadata", frequency),
          FIELD(ObjectHeader, "object_header", key_bytes),
          FIELD(ObjectHeader, "object_header", flags),
          FIELD(ObjectHeader, "object_header", codec),
          FIELD(ObjectHeader, "object_header", header_crc),
          FIELD(ObjectHeader, "object_header", value_bytes),
          FIELD(ObjectHeader, "object_header", key_hash),
          FIELD(ObjectHeader, "object_header", version),
          FIELD(ObjectHeader, "object_header", address_generation),
          FIELD(ObjectHeader, "object_header", value_crc),
          FIELD(ObjectHeader, "object_header", expiry_ticks),
          FIELD(LockTableHead, "lock_table_head", magic),
          FIELD(LockTableHead, "lock_table_head", lock_count),
          FIELD(LockTableHead, "lock_table_head", ring_capacity),
          FIELD(LockTableHead, "lock_table_head", era),
          FIELD(LockTableHead, "lock_table_head", checksum),
          FIELD(Fence, "fence", lock),
          FIELD(Fence, "fence", token),
          FIELD(FenceExtension, "fence_extension", fence),
          FIELD(FenceExtension, "fence_extension", checksum)};
}

// A field of a word as its accessor sees it: the bits whose setting alone changes what it returns.
template <class Read>
Extent seen_bits(Read&& read) {
  Extent extent{64, 0};
  for (unsigned bit = 0; bit < 64; ++bit) {
    const uint64_t value = read(uint64_t{1} << bit);
    if (value == 0) continue;
    if (extent.width == 0) extent.start = bit;
    CHECK(value == uint64_t{1} << (bit - extent.start));  // contiguous, lowest bit first
    ++extent.width;
  }
  return extent;
}

std::map<std::string, Extent> word_fields() {
  const uint64_t live = 1;  // flags mean something only in a slot that is not empty
  return {
      {"slot.address", seen_bits([](uint64_t w) { return Slot{w}.address(); })},
      {"slot.size_class", seen_bits([](uint64_t w) { return Slot{w}.size_class(); })},
      {"slot.shared", seen_bits([](uint64_t w) { return Slot{w}.shared(); })},
      {"slot.frozen", seen_bits([](uint64_t w) { return (Slot{w}.flags() & Slot::kFrozen) != 0; })},
      {"slot.tentative", seen_bits([&](uint64_t w) { return Slot{w | live}.tentative(); })},
      {"slot.version", seen_bits([](uint64_t w) { return Slot{w}.version(); })},
      {"slot.fingerprint", seen_bits([](uint64_t w) { return Slot{w}.fingerprint(); })},
      {"bucket_header.suffix", seen_bits([](uint64_t w) { return BucketHeader{w}.suffix(); })},
      {"bucket_header.depth", seen_bits([](uint64_t w) { return BucketHeader{w}.depth(); })},
      {"bucket_header.filling", seen_bits([](uint64_t w) { return BucketHeader{w}.filling(); })},
      {"directory_entry.address",
       seen_bits([](uint64_t w) { return DirectoryEntry{w}.address(); })},
      {"directory_entry.depth", seen_bits([](uint64_t w) { return DirectoryEntry{w}.depth(); })},
      {"segment_entry.owner", seen_bits([](uint64_t w) { return SegmentEntry{w}.owner(); })},
      {"segment_entry.run", seen_bits([](uint64_t w) { return SegmentEntry{w}.run(); })},
      {"segment_entry.size_class",
       seen_bits([](uint64_t w) { return SegmentEntry{w}.size_class(); })},
      {"segment_entry.kind", seen_bits([](uint64_t w) { return SegmentEntry{w}.kind(); })},
      {"segment_entry.version", seen_bits([](uint64_t w) { return SegmentEntry{w}.version(); })},
      {"directory_lock.holder", seen_bits([](uint64_t w) { return DirectoryLock{w}.holder(); })},
      {"directory_lock.era", seen_bits([](uint64_t w) { return DirectoryLock{w}.era(); })},
      {"coherence_record.owners",
       seen_bits([](uint64_t w) { return CoherenceRecord{w}.owners(); })},
      {"coherence_record.changes",
       seen_bits([](uint64_t w) { return CoherenceRecord{w}.changes(); })},
      {"lock_header.resetting", seen_bits([](uint64_t w) { return LockHeader{w}.resetting(); })},
      {"lock_header.exclusive", seen_bits([](uint64_t w) { return LockHeader{w}.exclusive(); })},
      {"lock_header.size", seen_bits([](uint64_t w) { return LockHeader{w}.size(); })},
      {"lock_header.head", seen_bits([](uint64_t w) { return LockHeader{w}.head(); })},
      {"lock_entry.exclusive", seen_bits([](uint64_t w) { return LockEntry{w}.exclusive(); })},
      {"lock_entry.registration",
       seen_bits([](uint64_t w) { return LockEntry{w}.registration(); })},
      {"lock_entry.lap", seen_bits([](uint64_t w) { return LockEntry{w}.lap(); })},
      {"lock_reset.owner", seen_bits([](uint64_t w) { return LockReset{w}.owner(); })},
      {"lock_reset.epoch", seen_bits([](uint64_t w) { return LockReset{w}.epoch(); })},
      {"fence_lock.era", seen_bits([](uint64_t w) { return FenceLock{w}.era(); })},
      {"fence_lock.identity", seen_bits([](uint64_t w) { return FenceLock{w}.identity(); })},
      {"object_header.address", seen_bits([](uint64_t w) {
         ObjectHeader header{};
         header.address_generation = w;
         return header.address();
       })}};
}

// What the C interface tells, and what only native code uses.
std::map<std::string, uint64_t> numbers() {
  std::map<std::string, uint64_t> all = {
      {"page_bytes", kPageBytes},
      {"region_bytes_min", kRegionBytesMin},
      {"segments_max", kSegmentsMax},
      {"size_classes", kSizeClasses},
      {"shared_extent_segments", kSharedExtentSegments},
      {"slots_per_group", kSlotsPerGroup},
      {"metadata_bytes_per_group", kMetadataBytesPerGroup},
      {"roots", kRoots},
      {"lock_root", kLockRoot},
      {"lock_table_magic", kLockTableMagic},
      {"lock_count_default", kLockCountDefault},
      {"lock_ring_default", kLockRingDefault},
      {"lock_table_share", kLockTableShare},
      {"lock_reset_offset", kLockResetOffset},
      {"lock_ring_offset", kLockRingOffset},
  };
  const char* name = nullptr;
  uint64_t value = 0;
  for (uint32_t index = 0; kv_layout_number(index, &name, &value) != 0; ++index) {
    CAPTURE(name);
    REQUIRE(all.emplace(name, value).second);
  }
  return all;
}

}  // namespace

TEST_CASE("layout: the written table is what the code uses") {
  const Table table = read_table();
  check_same(table.numbers, numbers());
  check_same(table.bits, word_fields());
  std::map<std::string, Extent> fields = superblock_fields();
  fields.merge(line_fields());
  fields.merge(index_and_object_fields());
  check_same(table.fields, fields);
}

TEST_CASE("layout: past the last number there is none") {
  const char* name = nullptr;
  uint64_t value = 0;
  CHECK(kv_layout_number(UINT32_MAX, &name, &value) == 0);
  CHECK(name == nullptr);
}

}  // namespace kvstore::layout
