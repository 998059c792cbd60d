// Size classes of blocks.
//
// Classes 1..64 are 1..64 units of 64 bytes. Above 4 KiB there are eight classes to each doubling,
// each 128 bytes larger than its share of the power of two: that is room for header and key, so
// that values of a power of two and keys of up to 80 bytes waste nothing. Neighbours are at most
// 1/8 apart. Class 0 is none.

#pragma once

#include <bit>
#include <cstdint>

#include "layout/words.hpp"

namespace kvstore::layout {

inline constexpr unsigned kLinearClasses = 64;
inline constexpr unsigned kClassesPerDoubling = 8;
inline constexpr uint64_t kLinearBytesMax = kLinearClasses * kUnitBytes;  // 4 KiB
inline constexpr uint64_t kHeaderRoomBytes = 128;
inline constexpr unsigned kSizeClasses = 256;

constexpr uint64_t class_bytes(unsigned size_class) {
  if (size_class <= kLinearClasses) return size_class * kUnitBytes;
  const unsigned step = size_class - kLinearClasses - 1;
  const uint64_t power = kLinearBytesMax << (step / kClassesPerDoubling);
  return power + power / kClassesPerDoubling * (step % kClassesPerDoubling) + kHeaderRoomBytes;
}

// The smallest class whose blocks hold `bytes` bytes; 0 if none does.
constexpr unsigned class_of(uint64_t bytes) {
  if (bytes <= kLinearBytesMax) return unsigned((bytes + kUnitBytes - 1) / kUnitBytes);
  const uint64_t payload =
      bytes <= kLinearBytesMax + kHeaderRoomBytes ? kLinearBytesMax : bytes - kHeaderRoomBytes;
  const unsigned doubling = unsigned(std::bit_width(payload)) - 13;  // 2^12 is kLinearBytesMax
  const uint64_t power = kLinearBytesMax << doubling;
  const uint64_t eighth = power / kClassesPerDoubling;
  const uint64_t step = (payload - power + eighth - 1) / eighth;
  const uint64_t result = kLinearClasses + 1 + uint64_t{doubling} * kClassesPerDoubling + step;
  return result < kSizeClasses ? unsigned(result) : 0;
}

inline constexpr uint64_t kBlockBytesMax = class_bytes(kSizeClasses - 1);
static_assert(kBlockBytesMax > (uint64_t{1} << 30) + 4096, "objects of 1 GiB must fit");
static_assert(class_bytes(65) == 4096 + 128 && class_of(4097) == 65 && class_of(4224) == 65);
static_assert(class_of(4225) == 66 && class_of((2u << 20) + 128) == class_of(2u << 20));
static_assert(class_of(1) == 1 && class_of(64) == 1 && class_of(65) == 2 && class_of(4096) == 64);

}  // namespace kvstore::layout
