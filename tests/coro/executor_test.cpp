// The executor: timers, deadlines, wake-ups from other threads, interruption, fairness.

#include "coro/executor.hpp"

#include <doctest/doctest.h>
#include <signal.h>

#include <atomic>
#include <thread>
#include <vector>

#include "coro/task.hpp"

namespace kvstore::test {
namespace {

Task<int> sleep_and_note(Executor& executor, uint64_t when_ns, int number,
                         std::vector<int>& order) {
  co_await executor.sleep_until(when_ns);
  order.push_back(number);
  co_return number;
}

const auto never = [] { return false; };

std::atomic<int> checks{0};
int check_says_stop() {
  return ++checks >= 2 ? 1 : 0;
}

}  // namespace

TEST_CASE("coro: timers fire in the order of their times, none too early") {
  Executor executor;
  const Executor::Scope scope(executor);
  const uint64_t now = monotonic_ns();
  std::vector<int> order;
  std::vector<Task<int>> tasks;
  for (const int i : {7, 2, 9, 0, 4, 1, 8, 3, 6, 5}) {
    tasks.push_back(sleep_and_note(executor, now + uint64_t(i) * 2 * kMillisecond, i, order));
  }
  CHECK(order.empty());
  bool early = false;
  const auto done = [&] {
    const uint64_t passed = (monotonic_ns() - now) / (2 * kMillisecond);
    for (const int number : order) early |= uint64_t(number) > passed;
    return order.size() == tasks.size();
  };
  REQUIRE(executor.run(done, now + 10 * kSecond, true) == Executor::Outcome::kDone);
  CHECK(!early);
  CHECK(order == std::vector<int>{0, 1, 2, 3, 4, 5, 6, 7, 8, 9});
}

TEST_CASE("coro: the deadline ends a wait and leaves later timers alone") {
  Executor executor;
  const Executor::Scope scope(executor);
  std::vector<int> order;
  const uint64_t now = monotonic_ns();
  Task<int> task = sleep_and_note(executor, now + kSecond, 1, order);
  CHECK(executor.run(never, now + 10 * kMillisecond, true) == Executor::Outcome::kDeadline);
  CHECK(monotonic_ns() >= now + 10 * kMillisecond);
  CHECK(order.empty());
  const auto done = [&] { return task.done(); };
  CHECK(executor.run(done, now + 10 * kSecond, true) == Executor::Outcome::kDone);
  CHECK(monotonic_ns() >= now + kSecond);
  CHECK(executor.run(never, monotonic_ns() - 1, true) == Executor::Outcome::kDeadline);
}

TEST_CASE("coro: sleepers that are given up wake at once") {
  Executor executor;
  const Executor::Scope scope(executor);
  std::vector<int> order;
  std::vector<Task<int>> tasks;
  for (int i = 0; i < 5; ++i) {
    tasks.push_back(sleep_and_note(executor, monotonic_ns() + 3600 * kSecond, i, order));
  }
  executor.expire_timers();
  const auto done = [&] { return order.size() == 5; };
  CHECK(executor.run(done, monotonic_ns() + 10 * kSecond, true) == Executor::Outcome::kDone);
}

TEST_CASE("coro: without leave to wait the executor says that it would have to") {
  Executor executor;
  const Executor::Scope scope(executor);
  std::vector<int> order;
  Task<int> task = sleep_and_note(executor, monotonic_ns() + kSecond, 1, order);
  const auto done = [&] { return task.done(); };
  const uint64_t began = monotonic_ns();
  CHECK(executor.run(done, UINT64_MAX, false) == Executor::Outcome::kWouldBlock);
  CHECK(monotonic_ns() - began < kSecond);
  executor.expire_timers();
  CHECK(executor.run(done, UINT64_MAX, false) == Executor::Outcome::kDone);
}

TEST_CASE("coro: a wake from another thread ends the wait, also one that came before it") {
  Executor executor;
  REQUIRE(executor.enable_wake());
  REQUIRE(executor.enable_wake());  // once more changes nothing
  executor.wake();
  executor.wake();
  const uint64_t far = monotonic_ns() + 60 * kSecond;
  CHECK(executor.run(never, far, true) == Executor::Outcome::kWoken);
  // Both wakes were one; the next wait really waits.
  CHECK(executor.run(never, monotonic_ns() + 5 * kMillisecond, true) ==
        Executor::Outcome::kDeadline);

  std::thread waker([&] {
    const timespec pause{0, 20'000'000};
    nanosleep(&pause, nullptr);
    executor.wake();
  });
  CHECK(executor.run(never, far, true) == Executor::Outcome::kWoken);
  waker.join();
}

TEST_CASE("coro: no wake is lost between many threads and one executor") {
  constexpr unsigned kThreads = 3;
  constexpr unsigned kPerThread = 2000;
  Executor executor;
  REQUIRE(executor.enable_wake());
  std::atomic<unsigned> submitted{0};
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < kThreads; ++t) {
    threads.emplace_back([&] {
      for (unsigned i = 0; i < kPerThread; ++i) {
        submitted.fetch_add(1);
        executor.wake();
        if (i % 64 == 0) std::this_thread::yield();
      }
    });
  }
  unsigned seen = 0;
  bool in_time = true;
  while (seen < kThreads * kPerThread && in_time) {
    const auto more = [&] { return submitted.load() > seen; };
    const auto outcome = executor.run(more, monotonic_ns() + 10 * kSecond, true);
    in_time = outcome != Executor::Outcome::kDeadline;
    seen = submitted.load();
  }
  CHECK(in_time);
  CHECK(seen == kThreads * kPerThread);
  for (std::thread& thread : threads) thread.join();
}

TEST_CASE("coro: the interrupt check ends a wait") {
  Executor executor;
  checks = 0;
  Executor::set_interrupt_check(check_says_stop);
  const uint64_t began = monotonic_ns();
  CHECK(executor.run(never, began + 60 * kSecond, true) == Executor::Outcome::kInterrupted);
  CHECK(monotonic_ns() - began < 30 * kSecond);
  CHECK(checks >= 2);
  Executor::set_interrupt_check(nullptr);
}

TEST_CASE("coro: a signal alone ends no wait") {
  Executor executor;
  struct sigaction ignore{};
  struct sigaction before{};
  ignore.sa_handler = [](int) {};
  REQUIRE(sigaction(SIGUSR1, &ignore, &before) == 0);
  const pthread_t self = pthread_self();
  std::thread signaller([&] {
    for (int i = 0; i < 5; ++i) {
      const timespec pause{0, 4'000'000};
      nanosleep(&pause, nullptr);
      pthread_kill(self, SIGUSR1);
    }
  });
  const uint64_t until = monotonic_ns() + 60 * kMillisecond;
  CHECK(executor.run(never, until, true) == Executor::Outcome::kDeadline);
  CHECK(monotonic_ns() >= until);
  signaller.join();
  sigaction(SIGUSR1, &before, nullptr);
}

TEST_CASE("coro: what is made ready while others run comes after them") {
  Executor executor;
  const Executor::Scope scope(executor);
  std::vector<int> order;
  const auto again = [&](int number) -> Task<int> {
    for (int round = 0; round < 3; ++round) {
      co_await executor.sleep_until(0);
      order.push_back(number);
    }
    co_return number;
  };
  std::vector<Task<int>> tasks;
  for (int i = 0; i < 3; ++i) tasks.push_back(again(i));
  const auto done = [&] { return order.size() == 9; };
  REQUIRE(executor.run(done, monotonic_ns() + 10 * kSecond, true) == Executor::Outcome::kDone);
  for (size_t round = 0; round < 3; ++round) {
    unsigned seen = 0;
    for (size_t i = 0; i < 3; ++i) seen |= 1u << order[round * 3 + i];
    CHECK(seen == 7);  // each once a round
  }
}

TEST_CASE("coro: the current executor is that of the innermost scope") {
  Executor outer, inner;
  CHECK(Executor::current() == nullptr);
  {
    const Executor::Scope a(outer);
    {
      const Executor::Scope b(inner);
      CHECK(Executor::current() == &inner);
      std::thread([] { CHECK(Executor::current() == nullptr); }).join();
    }
    CHECK(Executor::current() == &outer);
  }
  CHECK(Executor::current() == nullptr);
}

}  // namespace kvstore::test
