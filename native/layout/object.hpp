// Sealing and checking object headers.

#pragma once

#include <cstring>

#include "base/crc32c.hpp"
#include "base/variant.hpp"
#include "layout/layout.hpp"

namespace kvstore::layout {

inline uint32_t header_crc(ObjectHeader header) {
  header.header_crc = 0;
  return crc32c(0, &header, sizeof header);
}

inline void seal(ObjectHeader& header) {
  header.header_crc = header_crc(header);
}

inline ObjectHeader load_header(const void* bytes) {
  ObjectHeader header;
  std::memcpy(&header, bytes, sizeof header);
  return header;
}

inline uint64_t fence_checksum(const Fence& fence) {
  return crc32c(0, &fence, sizeof fence);
}

// Whole, at the address where it says it is, and within its block. Everything else about a remote
// object may be believed only after this.
inline bool sound(const ObjectHeader& header, uint64_t address, unsigned size_class) {
  if (header.key_bytes == 0 || header.key_bytes > kKeyBytesMax) return false;
  const uint64_t block_bytes = class_bytes(size_class);
  const uint64_t value_at = value_offset(size_class, header.key_bytes);
  if (value_at > block_bytes || header.value_bytes > block_bytes - value_at) return false;
  if (KV_VARIANT(skip_header_check)) return true;
  return header.address() == address && header.header_crc == header_crc(header);
}

}  // namespace kvstore::layout
