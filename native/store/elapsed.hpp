// Times between moments of a node's clock, which wraps after 49 days.

#pragma once

#include <cstdint>

namespace kvstore {

// Never negative: a clock that was read earlier may be behind one that was written meanwhile.
inline uint32_t elapsed_ms(uint32_t since_ms, uint32_t now_ms) {
  const uint32_t difference = now_ms - since_ms;
  return difference < uint32_t{1} << 31 ? difference : 0;
}

}  // namespace kvstore
