// Executors whose thread has another source of time, driven without waiting.

#include <doctest/doctest.h>

#include <algorithm>
#include <thread>
#include <vector>

#include "coro/executor.hpp"
#include "coro/task.hpp"

namespace kvstore::test {
namespace {

class SetTime final : public TimeSource {
 public:
  uint64_t monotonic_ns() noexcept override { return now_ns; }
  uint64_t boottime_ns() noexcept override { return now_ns + 7; }
  uint64_t now_ns = 1000;
};

// Puts a source in place for a scope.
struct InTime {
  explicit InTime(TimeSource& source) { time_source = &source; }
  ~InTime() { time_source = nullptr; }
};

class Backwards final : public ReadyOrder {
 public:
  void arrange(std::span<std::coroutine_handle<>> ready) override {
    std::reverse(ready.begin(), ready.end());
  }
};

Task<int> sleep_and_note(Executor& executor, uint64_t when_ns, int number,
                         std::vector<int>& order) {
  co_await executor.sleep_until(when_ns);
  order.push_back(number);
  co_return number;
}

}  // namespace

TEST_CASE("coro: a thread's time comes from its source, another thread's does not") {
  SetTime time;
  const uint64_t before_ns = monotonic_ns();
  {
    const InTime scope(time);
    CHECK(monotonic_ns() == 1000);
    CHECK(boottime_ns() == 1007);
    uint64_t elsewhere_ns = 0;
    std::thread([&] { elsewhere_ns = monotonic_ns(); }).join();
    CHECK(elsewhere_ns >= before_ns);
  }
  CHECK(monotonic_ns() >= before_ns);
}

TEST_CASE("coro: an executor that may not wait fires the timers that are due") {
  SetTime time;
  const InTime scope(time);
  Executor executor;
  const Executor::Scope current(executor);
  std::vector<int> order;
  std::vector<Task<int>> tasks;
  CHECK(executor.next_timer_ns() == UINT64_MAX);
  for (const int i : {3, 1, 2}) {
    tasks.push_back(sleep_and_note(executor, 1000 + uint64_t(i) * 3600 * kSecond, i, order));
  }
  const auto done = [&] { return order.size() == 3; };
  for (int i = 1; i <= 3; ++i) {
    const uint64_t due_ns = 1000 + uint64_t(i) * 3600 * kSecond;
    CHECK(executor.next_timer_ns() == due_ns);
    time.now_ns = due_ns - 1;
    CHECK(executor.run(done, UINT64_MAX, false) == Executor::Outcome::kWouldBlock);
    CHECK(order.size() == size_t(i - 1));
    time.now_ns = due_ns;
    const auto outcome = executor.run(done, UINT64_MAX, false);
    CHECK(outcome == (i == 3 ? Executor::Outcome::kDone : Executor::Outcome::kWouldBlock));
  }
  CHECK(order == std::vector<int>{1, 2, 3});
}

TEST_CASE("coro: coroutines that are ready together resume in the given order") {
  SetTime time;
  const InTime scope(time);
  std::vector<int> plain, turned;
  Backwards backwards;
  for (std::vector<int>* order : {&plain, &turned}) {
    Executor executor;
    const Executor::Scope current(executor);
    if (order == &turned) executor.set_ready_order(&backwards);
    std::vector<Task<int>> tasks;
    for (int i = 1; i <= 3; ++i) {
      tasks.push_back(sleep_and_note(executor, 2000 + uint64_t(i), i, *order));
    }
    executor.expire_timers();
    const auto done = [&] { return order->size() == 3; };
    CHECK(executor.run(done, UINT64_MAX, false) == Executor::Outcome::kDone);
  }
  CHECK(plain == std::vector<int>{1, 2, 3});
  CHECK(turned == std::vector<int>{3, 2, 1});
}

}  // namespace kvstore::test
