// The C ABI that only tells: versions, statuses, layout numbers, checksums.

#include <cstddef>
#include <iterator>

#include "api/guard.hpp"
#include "api/kvstore.h"
#include "base/crc32c.hpp"
#include "fabric/verbs_library.hpp"
#include "layout/layout.hpp"
#include "version.hpp"

using namespace kvstore;

namespace {

struct StatusText {
  const char* name;
  const char* text;
};

constexpr StatusText kStatusTexts[] = {
    {"KV_OK", "done"},
    {"KV_ABSENT", "the key is absent"},
    {"KV_PENDING", "the call would have to wait"},
    {"KV_CONDITION_FAILED", "the condition on the key's current version does not hold"},
    {"KV_OUT_OF_MEMORY", "the node is full"},
    {"KV_NODE_UNREACHABLE", "the key's node can't be reached"},
    {"KV_DEADLINE_EXCEEDED", "the deadline passed"},
    {"KV_OUTCOME_UNKNOWN", "the connection broke and whether the write was applied is unknown"},
    {"KV_KEY_INVALID", "a key has 1 to 1024 bytes"},
    {"KV_VALUE_TOO_LARGE", "the value can't fit in the node"},
    {"KV_BUFFER_TOO_SMALL", "the buffer is smaller than the value"},
    {"KV_CORRUPT", "remote memory failed its checks again and again"},
    {"KV_FORKED", "the store was opened before a fork: connect anew in the child"},
    {"KV_CLOSED", "the store is closed"},
    {"KV_INTERRUPTED", "the call was interrupted"},
    {"KV_REFUSED", "the node refused"},
    {"KV_NO_ATTACHMENT", "this member was never attached"},
    {"KV_FENCED", "the node fenced this client out: connect anew"},
    {"KV_INVALID", "an argument makes no sense"},
    {"KV_BUSY", "no session was free before the deadline"},
    {"KV_WOULD_DEADLOCK", "the caller holds this lock already"},
    {"KV_LOCK_LOST", "the lock was lost: its node is gone or fenced this client out"},
    {"KV_LOCK_WORN_OUT", "the lock has been granted as often as its words can count"},
    {"KV_FENCED_WRITE", "a newer holder of the lock has written the key"},
    {"KV_FENCE_MISMATCH", "the key is fenced by another lock"},
    {"KV_LEASE_TOO_SHORT", "the lease is below the membership lease of the lock's node"},
};

struct LayoutNumber {
  const char* name;
  uint64_t value;
};

constexpr LayoutNumber kLayoutNumbers[] = {
    {"magic", layout::kMagic},
    {"layout_version", layout::kLayoutVersion},
    {"unit_bytes", layout::kUnitBytes},
    {"segment_bytes_min", layout::kSegmentBytesMin},
    {"clients_max", layout::kClientsMax},
    {"superblock_bytes", sizeof(layout::Superblock)},
    {"superblock_offset", layout::kSuperblockOffset},
    {"node_line_offset", layout::kNodeLineOffset},
    {"liveness_offset", layout::kLivenessOffset},
    {"split_record_offset", layout::kSplitRecordOffset},
    {"global_depth_offset", layout::kGlobalDepthOffset},
    {"roots_offset", layout::kRootsOffset},
    {"client_lines_offset", layout::kClientLinesOffset},
    {"line_bytes", layout::kLineBytes},
    {"bucket_bytes", layout::kBucketBytes},
    {"group_bytes", layout::kGroupBytes},
    {"combined_bytes", layout::kCombinedBytes},
    {"slots_per_bucket", layout::kSlotsPerBucket},
    {"groups_per_subtable", layout::kGroupsPerSubtable},
    {"subtable_bucket_bytes", layout::kSubtableBucketBytes},
    {"subtable_bytes", layout::kSubtableBytes},
    {"eviction_metadata_bytes", sizeof(layout::EvictionMetadata)},
    {"object_header_bytes", layout::kHeaderBytes},
    {"object_header_value_bytes_offset", offsetof(layout::ObjectHeader, value_bytes)},
    {"object_header_key_hash_offset", offsetof(layout::ObjectHeader, key_hash)},
    {"object_header_version_offset", offsetof(layout::ObjectHeader, version)},
    {"object_header_address_offset", offsetof(layout::ObjectHeader, address_generation)},
    {"object_header_value_crc_offset", offsetof(layout::ObjectHeader, value_crc)},
    {"object_header_expiry_offset", offsetof(layout::ObjectHeader, expiry_ticks)},
    {"expiry_tick_ms", layout::kExpiryTickMs},
    {"key_bytes_max", layout::kKeyBytesMax},
    {"slot_address_bits", layout::kAddressBits},
    {"slot_class_shift", layout::Slot::kClassShift},
    {"slot_flag_shift", layout::Slot::kFlagShift},
    {"slot_version_shift", layout::Slot::kVersionShift},
    {"slot_version_bits", layout::Slot::kVersionBits},
    {"slot_fingerprint_shift", layout::Slot::kFingerprintShift},
    {"linear_classes", layout::kLinearClasses},
    {"classes_per_doubling", layout::kClassesPerDoubling},
    {"header_room_bytes", layout::kHeaderRoomBytes},
};

}  // namespace

extern "C" {

const char* kv_version(void) {
  return kVersion;
}

const char* kv_status_name(int status) {
  const bool known = status >= 0 && size_t(status) < std::size(kStatusTexts);
  return known ? kStatusTexts[status].name : "unknown status";
}

const char* kv_status_text(int status) {
  const bool known = status >= 0 && size_t(status) < std::size(kStatusTexts);
  return known ? kStatusTexts[status].text : "unknown status";
}

int kv_layout_number(uint32_t index, const char** name, uint64_t* value) {
  if (index >= std::size(kLayoutNumbers)) return 0;
  *name = kLayoutNumbers[index].name;
  *value = kLayoutNumbers[index].value;
  return 1;
}

int kv_verbs_available(char* error, uint64_t error_bytes) {
  return guarded(error, error_bytes, 0, [&] {
    std::string line;
    const bool available = verbs_library(line) != nullptr;
    set_error(error, error_bytes, line);
    return available ? 1 : 0;
  });
}

const char* kv_crc32c_implementation(void) {
  return crc32c_implementation();
}

uint32_t kv_crc32c(uint32_t crc, const void* data, uint64_t bytes) {
  return crc32c(crc, data, bytes);
}

uint32_t kv_crc32c_copy(uint32_t crc, void* destination, const void* source, uint64_t bytes) {
  return crc32c_copy(crc, destination, source, bytes);
}

}  // extern "C"
