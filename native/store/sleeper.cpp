#include "store/sleeper.hpp"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>

#include "coro/clock.hpp"
#include "coro/executor.hpp"

namespace kvstore {

namespace {

constexpr uint64_t kInterruptCheckNs = 50 * kMillisecond;

long futex(uint32_t& word, int operation, uint32_t value, const timespec* timeout) {
  return ::syscall(SYS_futex, &word, operation | FUTEX_PRIVATE_FLAG, value, timeout, nullptr, 0);
}

}  // namespace

void Sleeper::wake() {
  if (word().exchange(kWoken, std::memory_order_acq_rel) == kAsleep) {
    futex(word_, FUTEX_WAKE, 1, nullptr);
  }
}

void Sleeper::cancel() {
  cancelled().store(1, std::memory_order_release);
  wake();
}

Sleeper::Ended Sleeper::sleep(uint64_t deadline_ns) {
  for (;;) {
    if (is_cancelled()) return Ended::kCancelled;
    uint32_t expected = kAwake;
    if (!word().compare_exchange_strong(expected, kAsleep) && expected == kWoken) {
      word().store(kAwake, std::memory_order_relaxed);
      return Ended::kWoken;
    }
    const uint64_t now_ns = monotonic_ns();
    if (now_ns >= deadline_ns) return Ended::kDeadline;
    const uint64_t wait_ns = std::min(deadline_ns - now_ns, kInterruptCheckNs);
    const timespec timeout{time_t(wait_ns / kSecond), long(wait_ns % kSecond)};
    futex(word_, FUTEX_WAIT, kAsleep, &timeout);
    if (Executor::interrupted()) return Ended::kInterrupted;
  }
}

}  // namespace kvstore
