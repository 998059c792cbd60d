// A simulated host's clock, and what drives coroutines on it.

#pragma once

#include <coroutine>
#include <cstdint>
#include <span>
#include <utility>

#include "coro/clock.hpp"
#include "coro/executor.hpp"
#include "fabric/sim/sim.hpp"
#include "sim/progress.hpp"

namespace kvstore::sim {

// Runs at its own speed and began at its own time.
class HostClock final : public TimeSource {
 public:
  HostClock(const Schedule& schedule, int64_t drift_per_million, uint64_t ahead_ns)
      : schedule_(schedule), drift_per_million_(drift_per_million), ahead_ns_(ahead_ns) {
    // The product with a day of nanoseconds fits its word.
    KV_ASSERT(drift_per_million >= -kDriftPerMillionMax);
    KV_ASSERT(drift_per_million <= kDriftPerMillionMax);
  }

  uint64_t monotonic_ns() noexcept override {
    stop_if_given_up();
    return read(schedule_.now_ns());
  }
  uint64_t boottime_ns() noexcept override { return monotonic_ns(); }

  // The first instant, from now on, at which the clock shows at least `host_ns`.
  uint64_t instant_of(uint64_t host_ns) const {
    const uint64_t now_ns = schedule_.now_ns();
    const uint64_t shown_ns = read(now_ns);
    if (host_ns <= shown_ns) return now_ns;
    const __int128 wait_ns = __int128(host_ns - shown_ns) * 1'000'000;
    const __int128 stretched_ns = wait_ns / (1'000'000 + drift_per_million_) + 2;
    return stretched_ns > __int128(UINT64_MAX / 2) ? UINT64_MAX : now_ns + uint64_t(stretched_ns);
  }

  void leap(uint64_t ns) { ahead_ns_ += ns; }

 private:
  static constexpr int64_t kDriftPerMillionMax = 100'000;

  uint64_t read(uint64_t now_ns) const {
    return now_ns + ahead_ns_ + uint64_t(int64_t(now_ns) * drift_per_million_ / 1'000'000);
  }

  const Schedule& schedule_;
  const int64_t drift_per_million_;
  uint64_t ahead_ns_;
};

// The code of a host runs in its time.
class OnHost {
 public:
  explicit OnHost(HostClock& clock) : previous_(time_source) { time_source = &clock; }
  ~OnHost() { time_source = previous_; }
  OnHost(const OnHost&) = delete;
  OnHost& operator=(const OnHost&) = delete;

 private:
  TimeSource* const previous_;
};

// Steps something that never waits itself: when a completion has arrived for it, when it was
// poked, and at the time that its last step asked for.
class Driver : public Timed, public SimListener {
 public:
  // `name` says what it drives; not copied.
  Driver(Schedule& schedule, HostClock& clock, const char* name)
      : schedule_(schedule), clock_(clock), name_(name) {}
  virtual ~Driver() = default;

  void arrived() override { poke(); }
  // Has it stepped soon: the host takes a while to notice.
  void poke();
  // It does not step any more.
  void stop() { stopped_ = true; }
  bool stopped() const { return stopped_; }
  // It does not step before then: the host is paused.
  void pause_until(uint64_t instant_ns) { paused_until_ns_ = instant_ns; }
  uint64_t paused_until_ns() const { return paused_until_ns_; }

  void fire(uint64_t event) final;

 protected:
  // Goes on as far as can be. Returns the host's time at which it must be stepped again.
  virtual uint64_t step() = 0;

  Schedule& schedule_;
  HostClock& clock_;

 private:
  enum Event : uint64_t { kPoke, kWatch };

  static constexpr uint64_t kNoticeNsMin = 50;
  static constexpr uint64_t kNoticeNsSpread = 300;

  const char* const name_;
  bool poked_ = false;
  bool stopped_ = false;
  uint64_t watch_ns_ = UINT64_MAX;  // the instant of the soonest watch event
  uint64_t paused_until_ns_ = 0;
};

// Coroutines that are ready together resume in an order that the seed decides.
class SeededOrder final : public ReadyOrder {
 public:
  explicit SeededOrder(Random& random) : random_(random) {}
  void arrange(std::span<std::coroutine_handle<>> ready) override {
    for (size_t n = ready.size(); n > 1; --n) std::swap(ready[n - 1], ready[random_.below(n)]);
  }

 private:
  Random& random_;
};

}  // namespace kvstore::sim
