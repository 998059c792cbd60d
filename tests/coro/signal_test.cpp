// Signals: set before, while and after they are awaited, by this thread and by others.

#include "coro/signal.hpp"

#include <doctest/doctest.h>

#include <thread>
#include <vector>

#include "coro/task.hpp"

namespace kvstore::test {
namespace {

Task<bool> await_signal(Signal& signal, uint64_t until_ns) {
  co_return co_await signal.wait(until_ns);
}

bool run_to_end(Executor& executor, Task<bool>& task) {
  Executor::Outcome outcome;
  do {
    outcome = executor.run([&] { return task.done(); }, monotonic_ns() + 20 * kSecond, true);
  } while (outcome == Executor::Outcome::kWoken);
  REQUIRE(outcome == Executor::Outcome::kDone);
  return task.take();
}

}  // namespace

TEST_CASE("coro: a signal that was set before does not suspend") {
  Executor executor;
  const Executor::Scope scope(executor);
  Signal signal(executor);
  signal.set();
  Task<bool> task = await_signal(signal, 0);
  REQUIRE(task.done());
  CHECK(task.take());
}

TEST_CASE("coro: a signal that nobody sets ends with its time") {
  Executor executor;
  const Executor::Scope scope(executor);
  Signal signal(executor);
  const uint64_t until_ns = monotonic_ns() + 5 * kMillisecond;
  Task<bool> task = await_signal(signal, until_ns);
  CHECK(!run_to_end(executor, task));
  CHECK(monotonic_ns() >= until_ns);
  // It can be awaited again, and be set then.
  Task<bool> again = await_signal(signal, UINT64_MAX);
  signal.set();
  CHECK(run_to_end(executor, again));
}

TEST_CASE("coro: signals are set by another thread at any moment") {
  Executor executor;
  const Executor::Scope scope(executor);
  constexpr int kRounds = 2000;
  constexpr int kSignals = 3;
  for (int round = 0; round < kRounds; ++round) {
    CAPTURE(round);
    std::vector<std::unique_ptr<Signal>> signals;
    for (int i = 0; i < kSignals; ++i) signals.push_back(std::make_unique<Signal>(executor));
    std::atomic<bool> go{false};
    std::thread setter([&] {
      while (!go.load()) {
      }
      for (const auto& signal : signals) signal->set();
    });
    go.store(true);
    std::vector<Task<bool>> tasks;
    for (const auto& signal : signals) tasks.push_back(await_signal(*signal, UINT64_MAX));
    for (Task<bool>& task : tasks) REQUIRE(run_to_end(executor, task));
    setter.join();
  }
}

TEST_CASE("coro: giving up ends the waits for signals too") {
  Executor executor;
  const Executor::Scope scope(executor);
  Signal signal(executor);
  Task<bool> task = await_signal(signal, UINT64_MAX);
  CHECK(executor.run([&] { return task.done(); }, 0, false) == Executor::Outcome::kWouldBlock);
  executor.expire_timers();
  CHECK(!run_to_end(executor, task));
}

}  // namespace kvstore::test
