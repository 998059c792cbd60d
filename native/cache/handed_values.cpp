#include "cache/handed_values.hpp"

#include <cstddef>

#include "base/crc32c.hpp"
#include "base/sequence_lock.hpp"
#include "base/variant.hpp"

namespace kvstore {

void HandedValues::hand(uint64_t hash, uint64_t stamp, const HandedValue& value) {
  if (value.value_bytes > kValueBytesMax) return;
  const uint64_t bytes =
      kUnitBytes + (value.value_bytes + kUnitBytes - 1) / kUnitBytes * kUnitBytes;
  const uint64_t position = head_.fetch_add(bytes, std::memory_order_acq_rel);
  // What would go over the end is not worth two pieces.
  if (position % kRingBytes + bytes > kRingBytes) return;
  Header header{};
  header.hash = hash;
  header.stamp = stamp;
  header.position = position;
  header.version = value.version;
  header.slot_offset = value.slot_offset;
  header.hosted = value.hosted;
  header.value_bytes = uint32_t(value.value_bytes);
  header.value_crc = value.value_crc;
  header.codec = value.codec;
  header.header_crc = crc32c(0, &header, offsetof(Header, header_crc));
  uint8_t* const at = ring_ + position % kRingBytes;
  order_writes();
  region_copy(at, &header, sizeof header);
  region_copy(at + kUnitBytes, value.value, value.value_bytes);
  places_[number_of(hash)].store(position + kUnitBytes, std::memory_order_release);
}

bool HandedValues::find(uint64_t hash, uint64_t stamp, HandedValue& value) const {
  const uint64_t place = places_[number_of(hash)].load(std::memory_order_acquire);
  if (place == 0 || place % kUnitBytes != 0) return false;
  const uint64_t position = place - kUnitBytes;
  const uint8_t* const at = ring_ + position % kRingBytes;
  Header header;
  region_copy(&header, at, sizeof header);
  if (header.header_crc != crc32c(0, &header, offsetof(Header, header_crc))) return false;
  const bool same_stamp = header.stamp == stamp || KV_VARIANT(cache_takes_any);
  if (header.hash != hash || header.position != position || !same_stamp) return false;
  if (header.value_bytes > kValueBytesMax) return false;
  if (position % kRingBytes + kUnitBytes + header.value_bytes > kRingBytes) return false;
  value = {header.version,     header.value_bytes, header.codec,   header.value_crc,
           header.slot_offset, header.hosted,      at + kUnitBytes};
  return true;
}

}  // namespace kvstore
