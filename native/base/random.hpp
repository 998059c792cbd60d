// Cheap pseudo-random numbers of a thread, where collisions are to be spread and nothing more:
// never for what others must not guess.

#pragma once

#include <cstdint>

#include "coro/clock.hpp"

namespace kvstore {

// xorshift64 (Marsaglia, Journal of Statistical Software 8, 2003).
inline uint64_t thread_random() {
  static thread_local uint64_t state = monotonic_ns() | 1;
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return state;
}

}  // namespace kvstore
