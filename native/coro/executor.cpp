#include "coro/executor.hpp"

#include <poll.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <functional>

#include "base/assert.hpp"
#include "coro/signal.hpp"

namespace kvstore {
namespace {

// A blocking round trip over loopback costs two context switches, several times what the data
// takes; spinning for about two round trips saves them while answers do come that fast. Who is to
// answer may wait for another processor: the kernel brings its thread here once this one sleeps.
constexpr uint64_t kSpinNs = 30'000;
constexpr unsigned kSpinCreditMax = 8;
constexpr uint64_t kInterruptCheckNs = 50 * kMillisecond;

bool spinning_pays() {
  static const bool several_processors = sysconf(_SC_NPROCESSORS_ONLN) > 1;
  return several_processors;
}

}  // namespace

Executor::Executor() {
  ready_.reserve(64);
  resuming_.reserve(64);
}

Executor::~Executor() {
  if (wake_descriptor_ >= 0) ::close(wake_descriptor_);
}

void Executor::add_timer(uint64_t when_ns, std::coroutine_handle<> handle) {
  timers_.push_back(Timer{when_ns, handle});
  std::push_heap(timers_.begin(), timers_.end(), std::greater<>{});
}

void Executor::add_connection(kv_connection* connection) {
  connections_.push_back(connection);
}

void Executor::remove_connection(kv_connection* connection) {
  std::erase(connections_, connection);
}

void Executor::expire_timers() {
  fire_timers(UINT64_MAX);
}

void Executor::wake() noexcept {
  if (waker_ != nullptr) [[unlikely]] {
    waker_->woken();
    return;
  }
  KV_ASSERT(wake_descriptor_ >= 0);
  const uint64_t one = 1;
  // A full counter is a wake-up that is still pending, which is all that is wanted.
  [[maybe_unused]] const ssize_t written = ::write(wake_descriptor_, &one, sizeof one);
}

bool Executor::enable_wake() {
  if (wake_descriptor_ < 0) wake_descriptor_ = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  return wake_descriptor_ >= 0;
}

bool Executor::interrupted() noexcept {
  static thread_local uint64_t asked_ns = 0;
  const uint64_t now_ns = monotonic_ns();
  if (now_ns - asked_ns < kInterruptCheckNs) return false;
  asked_ns = now_ns;
  int (*check)() = interrupt_check_.load(std::memory_order_relaxed);
  return check != nullptr && check() != 0;
}

void Executor::resume_ready() {
  // What a resumed coroutine makes ready runs in the next round, so that a chain of completions
  // cannot keep the connections from being polled.
  while (!ready_.empty()) {
    resuming_.swap(ready_);
    if (ready_order_ != nullptr) [[unlikely]]
      ready_order_->arrange(resuming_);
    for (const std::coroutine_handle<> handle : resuming_) handle.resume();
    resuming_.clear();
  }
}

uint32_t Executor::poll_connections() {
  uint32_t completed = 0;
  for (kv_connection* connection : connections_) {
    if (!connection->completes_inline && !connection->broken) {
      completed += connection->ops->poll(connection);
    }
  }
  return completed;
}

uint64_t Executor::next_timer_ns() const {
  uint64_t soonest_ns = timers_.empty() ? UINT64_MAX : timers_.front().when_ns;
  for (const Signal* signal : awaited_) soonest_ns = std::min(soonest_ns, signal->until_ns_);
  return soonest_ns;
}

void Executor::collect_signals() {
  // Whoever had marked it before has set its signal before that.
  signalled_.exchange(false, std::memory_order_acq_rel);
  std::erase_if(awaited_, [this](const Signal* signal) {
    if (!signal->is_set()) return false;
    ready_.push_back(signal->waiter_);
    return true;
  });
}

bool Executor::fire_timers(uint64_t now_ns) {
  bool fired = false;
  std::erase_if(awaited_, [&](const Signal* signal) {
    if (signal->until_ns_ > now_ns) return false;
    ready_.push_back(signal->waiter_);
    return fired = true;
  });
  while (!timers_.empty() && timers_.front().when_ns <= now_ns) {
    std::pop_heap(timers_.begin(), timers_.end(), std::greater<>{});
    ready_.push_back(timers_.back().handle);
    timers_.pop_back();
    fired = true;
  }
  return fired;
}

// Gives way between two looks: whoever is to answer may be waiting for this very processor, and a
// thread that is woken does not displace one that polls before that one's slice is over, most of a
// millisecond. Where nobody waits this costs some 0.2 us. The last look is after the last time
// away.
bool Executor::spin(uint64_t until_ns) {
  for (;;) {
    const bool over = monotonic_ns() >= until_ns;
    if (poll_connections() > 0 || !ready_.empty()) return true;
    if (signalled_.load(std::memory_order_relaxed)) return true;
    if (over) return false;
    sched_yield();
  }
}

Executor::Outcome Executor::wait(uint64_t deadline_ns) {
  const uint64_t now_ns = monotonic_ns();
  if (fire_timers(now_ns)) return Outcome::kDone;
  if (now_ns >= deadline_ns) return Outcome::kDeadline;
  uint64_t until_ns = deadline_ns;
  until_ns = std::min(until_ns, next_timer_ns());

  bool remote = false;
  for (kv_connection* connection : connections_) {
    remote |= !connection->completes_inline && !connection->broken;
  }
  if (remote && spins_ && spinning_pays()) {
    // While spins fail, only one wait in eight tries again.
    static thread_local unsigned attempts = 0;
    if (spin_credit_ > 0 || ++attempts % 8 == 0) {
      if (spin(std::min(until_ns, now_ns + kSpinNs))) {
        spin_credit_ = std::min(spin_credit_ + 1, kSpinCreditMax);
        return Outcome::kDone;
      }
      if (spin_credit_ > 0) --spin_credit_;
    }
  }
  return block(monotonic_ns(), until_ns);
}

Executor::Outcome Executor::block(uint64_t now_ns, uint64_t until_ns) {
  constexpr size_t kDescriptorsMax = 130;
  pollfd descriptors[kDescriptorsMax];
  nfds_t count = 0;
  for (kv_connection* connection : connections_) {
    if (connection->completes_inline || connection->broken) continue;
    if (count == kDescriptorsMax - 1) break;  // the others are polled after the next time-out
    short events = POLLIN;
    const int descriptor = connection->ops->wait_descriptor(connection, &events);
    if (descriptor >= 0) descriptors[count++] = pollfd{descriptor, events, 0};
  }
  const bool waking = wake_descriptor_ >= 0;
  if (waking) descriptors[count++] = pollfd{wake_descriptor_, POLLIN, 0};

  const uint64_t wait_ns = std::min(until_ns > now_ns ? until_ns - now_ns : 0, kInterruptCheckNs);
  const timespec timeout{time_t(wait_ns / kSecond), long(wait_ns % kSecond)};
  const int ready = ::ppoll(descriptors, count, &timeout, nullptr);
  if (waking && ready > 0 && (descriptors[count - 1].revents & POLLIN) != 0) {
    uint64_t ignored = 0;
    [[maybe_unused]] const ssize_t got = ::read(wake_descriptor_, &ignored, sizeof ignored);
    return Outcome::kWoken;
  }
  const bool signalled = ready < 0 && errno == EINTR;
  if (signalled || ready == 0) {
    int (*check)() = interrupt_check_.load(std::memory_order_relaxed);
    if (check != nullptr && check() != 0) return Outcome::kInterrupted;
  }
  return Outcome::kDone;
}

}  // namespace kvstore
