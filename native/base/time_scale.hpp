// How much more patience than usual this machine needs: 1, or what KVSTORE_TIME_SCALE says, up to
// 100. Emulated machines are many times slower than those that the time-outs were chosen for; where
// a time-out says when a peer is taken to be gone, it is multiplied by this.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>

namespace kvstore {

inline uint32_t time_scale() noexcept {
  static const uint32_t scale = [] {
    const char* given = std::getenv("KVSTORE_TIME_SCALE");
    return uint32_t(std::clamp(given == nullptr ? 1 : std::atoi(given), 1, 100));
  }();
  return scale;
}

// A duration that was chosen for a usual machine.
inline uint64_t patient(uint64_t duration) noexcept {
  return duration * time_scale();
}

}  // namespace kvstore
