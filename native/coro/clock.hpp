// Clocks. Leases count in CLOCK_BOOTTIME, which goes on while the machine is suspended; waits count
// in CLOCK_MONOTONIC. A simulation puts its own time in the place of both, thread by thread.

#pragma once

#include <cstdint>
#include <ctime>

namespace kvstore {

inline uint64_t clock_ns(clockid_t clock) noexcept {
  timespec now;
  clock_gettime(clock, &now);
  return uint64_t(now.tv_sec) * 1'000'000'000u + uint64_t(now.tv_nsec);
}

class TimeSource {
 public:
  virtual uint64_t monotonic_ns() noexcept = 0;
  virtual uint64_t boottime_ns() noexcept = 0;

 protected:
  ~TimeSource() = default;
};

// Where this thread's time comes from; the kernel if null.
inline constinit thread_local TimeSource* time_source = nullptr;

inline uint64_t monotonic_ns() noexcept {
  if (time_source != nullptr) [[unlikely]]
    return time_source->monotonic_ns();
  return clock_ns(CLOCK_MONOTONIC);
}
inline uint64_t boottime_ns() noexcept {
  if (time_source != nullptr) [[unlikely]]
    return time_source->boottime_ns();
  return clock_ns(CLOCK_BOOTTIME);
}

// Since 1970, as the hosts of a cluster roughly agree; a simulation begins some time in 2024.
inline uint64_t wall_clock_ms() noexcept {
  constexpr uint64_t kSimulatedMs = 1'710'000'000'000;
  if (time_source != nullptr) [[unlikely]]
    return kSimulatedMs + time_source->boottime_ns() / 1'000'000;
  return clock_ns(CLOCK_REALTIME) / 1'000'000;
}

inline constexpr uint64_t kMillisecond = 1'000'000;
inline constexpr uint64_t kSecond = 1'000'000'000;

}  // namespace kvstore
