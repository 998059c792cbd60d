// Values that the clients of a host hand to each other: whoever has made a copy in the stead of one
// that a writer of this host has ended leaves the value here, under its key's stamp, for others
// whose copies ended at the same moment.
//
// It lies in memory that any process of this user may write to, or die at. So nothing that is read
// here is believed without its checksums, nothing waits, and what is torn, displaced or never came
// is a value that was not handed.
//
// Values stand in a ring of bytes, the newest in place of the oldest, and are found through a table
// of places, which keys share. Zeros are what it begins with.
//
// Any thread of any process.

#pragma once

#include <atomic>
#include <cstdint>

namespace kvstore {

struct HandedValue {
  uint64_t version = 0;
  uint64_t value_bytes = 0;
  uint32_t codec = 0;
  uint32_t value_crc = 0;  // of key and value
  uint64_t slot_offset = 0;
  uint64_t hosted = 0;  // the slot's word, as a copy's
  // In the ring when it was found: to be copied by `crc32c_copy`, and compared.
  const void* value = nullptr;
};

class HandedValues {
 public:
  static constexpr uint64_t kValueBytesMax = 64 << 10;

  // Larger values are not handed. `value.value` is the caller's.
  void hand(uint64_t hash, uint64_t stamp, const HandedValue& value);
  // The value that was handed for this hash under this stamp.
  bool find(uint64_t hash, uint64_t stamp, HandedValue& value) const;

 private:
  static constexpr uint64_t kRingBytes = 4 << 20;
  static constexpr unsigned kPlaceBits = 13;
  static constexpr uint64_t kUnitBytes = 64;

  struct Header {
    uint64_t hash;
    uint64_t stamp;
    uint64_t position;
    uint64_t version;
    uint64_t slot_offset;
    uint64_t hosted;
    uint32_t value_bytes;
    uint32_t value_crc;
    uint32_t codec;
    uint32_t header_crc;  // of what is before it
  };
  static_assert(sizeof(Header) == kUnitBytes);

  static uint64_t number_of(uint64_t hash) {
    return hash * 0x9e3779b97f4a7c15ull >> (64 - kPlaceBits);
  }

  // Bytes that were ever reserved. What lies more than a ring behind is gone.
  alignas(kUnitBytes) std::atomic<uint64_t> head_;
  // Where the header is, counted as the head is, and one unit more; 0: nowhere.
  alignas(kUnitBytes) std::atomic<uint64_t> places_[1 << kPlaceBits];
  alignas(kUnitBytes) uint8_t ring_[kRingBytes];
};

}  // namespace kvstore
