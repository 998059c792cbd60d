// Clocks. Leases count in CLOCK_BOOTTIME, which goes on while the machine is suspended; waits count
// in CLOCK_MONOTONIC.

#pragma once

#include <cstdint>
#include <ctime>

namespace kvstore {

inline uint64_t clock_ns(clockid_t clock) noexcept {
  timespec now;
  clock_gettime(clock, &now);
  return uint64_t(now.tv_sec) * 1'000'000'000u + uint64_t(now.tv_nsec);
}

inline uint64_t monotonic_ns() noexcept {
  return clock_ns(CLOCK_MONOTONIC);
}
inline uint64_t boottime_ns() noexcept {
  return clock_ns(CLOCK_BOOTTIME);
}

inline constexpr uint64_t kMillisecond = 1'000'000;
inline constexpr uint64_t kSecond = 1'000'000'000;

}  // namespace kvstore
