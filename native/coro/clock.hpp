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

inline constexpr uint64_t kMillisecond = 1'000'000;
inline constexpr uint64_t kSecond = 1'000'000'000;

}  // namespace kvstore
