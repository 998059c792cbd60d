// Values whose bytes all follow from a number, so that a reader knows which write it sees and that
// the value is whole.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "fabric/sim/schedule.hpp"

namespace kvstore::sim {

inline constexpr uint64_t kGarbage = UINT64_MAX;

inline std::vector<uint8_t> value_of(uint64_t number, uint64_t bytes_min, uint64_t bytes_max) {
  Random random(number);
  std::vector<uint8_t> value(8 + bytes_min + random.below(bytes_max - bytes_min + 1));
  std::memcpy(value.data(), &number, 8);
  for (size_t at = 8; at < value.size(); at += 8) {
    const uint64_t word = random.next();
    std::memcpy(&value[at], &word, std::min<size_t>(8, value.size() - at));
  }
  return value;
}

// The number of a value, kGarbage if it is not as it was written.
inline uint64_t number_of(const void* data, uint64_t bytes, uint64_t bytes_min,
                          uint64_t bytes_max) {
  uint64_t number = 0;
  if (bytes < 8) return kGarbage;
  std::memcpy(&number, data, 8);
  const std::vector<uint8_t> whole = value_of(number, bytes_min, bytes_max);
  const bool same = whole.size() == bytes && std::memcmp(whole.data(), data, bytes) == 0;
  return same ? number : kGarbage;
}

}  // namespace kvstore::sim
