// Tasks and the memory of their frames: eager start, results, resumption by the executor alone,
// loss of what they await.

#include "coro/task.hpp"

#include <doctest/doctest.h>

#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "fabric/cpu/tcp.hpp"
#include "fabric/remote.hpp"

namespace kvstore::test {
namespace {

// Something to wait for: whoever awaits it goes on, by way of the executor, once it is opened.
class Gate {
 public:
  explicit Gate(Executor& executor) : executor_(executor) {}
  void open() {
    for (const std::coroutine_handle<> waiter : waiters_) executor_.make_ready(waiter);
    waiters_.clear();
    open_ = true;
  }
  size_t waiting() const { return waiters_.size(); }

  struct Awaiter {
    Gate& gate;
    bool await_ready() const { return gate.open_; }
    void await_suspend(std::coroutine_handle<> waiter) { gate.waiters_.push_back(waiter); }
    void await_resume() const {}
  };
  Awaiter operator co_await() { return Awaiter{*this}; }

 private:
  Executor& executor_;
  std::vector<std::coroutine_handle<>> waiters_;
  bool open_ = false;
};

Task<int> add(int a, int b) {
  co_return a + b;
}

Task<int> add_three(int a, int b, int c) {
  const int two = co_await add(a, b);
  co_return co_await add(two, c);
}

Task<int> pass(Gate& gate, int value) {
  co_await gate;
  co_return value;
}

Task<int> next_of(Task<int>& earlier) {
  co_return co_await earlier + 1;
}

bool run(Executor& executor, const auto& done) {
  return executor.run(done, monotonic_ns() + 10 * kSecond, true) == Executor::Outcome::kDone;
}

}  // namespace

TEST_CASE("coro: a task that waits for nothing is done when its call returns") {
  Task<int> task = add_three(1, 2, 3);
  REQUIRE(task.done());
  CHECK(task.take() == 6);
}

TEST_CASE("coro: results are moved, not copied") {
  const auto make = []() -> Task<std::unique_ptr<int>> { co_return std::make_unique<int>(7); };
  const auto forward = [&]() -> Task<std::unique_ptr<int>> { co_return co_await make(); };
  Task<std::unique_ptr<int>> task = forward();
  REQUIRE(task.done());
  CHECK(*task.take() == 7);
}

TEST_CASE("coro: a suspended task goes on when the executor resumes it") {
  Executor executor;
  const Executor::Scope scope(executor);
  Gate gate(executor);
  Task<int> inner = pass(gate, 5);
  Task<int> outer = next_of(inner);
  CHECK(!inner.done());
  CHECK(!outer.done());
  gate.open();
  CHECK(!inner.done());  // only made ready
  REQUIRE(run(executor, [&] { return outer.done(); }));
  CHECK(outer.take() == 6);
}

TEST_CASE("coro: a moved task keeps its frame") {
  Executor executor;
  const Executor::Scope scope(executor);
  Gate gate(executor);
  std::vector<Task<int>> tasks;
  for (int i = 0; i < 100; ++i) tasks.push_back(pass(gate, i));
  CHECK(gate.waiting() == 100);
  gate.open();
  REQUIRE(run(executor, [&] { return tasks.back().done(); }));
  int sum = 0;
  for (Task<int>& task : tasks) sum += task.take();
  CHECK(sum == 4950);
}

TEST_CASE("coro: a long chain of completions does not grow the stack") {
  // Each frame on the stack would take far more than the 8 MiB that a thread has.
  constexpr int kLinks = 200'000;
  Executor executor;
  const Executor::Scope scope(executor);
  Gate gate(executor);
  std::vector<Task<int>> chain;
  chain.reserve(kLinks);
  chain.push_back(pass(gate, 0));
  for (int i = 1; i < kLinks; ++i) chain.push_back(next_of(chain.back()));
  gate.open();
  REQUIRE(run(executor, [&] { return chain.back().done(); }));
  CHECK(chain.back().take() == kLinks - 1);
}

TEST_CASE("coro: what awaits a connection ends when it is closed") {
  std::vector<uint64_t> region(1 << 17);
  TcpAgentConfig config;
  config.listen_host = "127.0.0.1";
  config.region = region.data();
  config.region_bytes = region.size() * 8;
  config.authenticate = [](uint32_t, const std::array<uint8_t, 16>&) { return true; };
  config.last_connection_closed = [](uint32_t) {};
  std::string error;
  const std::unique_ptr<TcpAgent> agent = TcpAgent::start(std::move(config), error);
  REQUIRE(agent != nullptr);
  TcpTarget target;
  target.host = "127.0.0.1";
  target.port = agent->port();
  target.registration = 1;
  kv_connection* const connection = tcp_connect(target, monotonic_ns() + 10 * kSecond, error);
  REQUIRE(connection != nullptr);
  Executor executor;
  const Executor::Scope scope(executor);
  Remote remote;
  remote.bind(connection, &executor);
  executor.add_connection(connection);
  std::vector<uint64_t> words(1 << 15);
  const auto read = [&]() -> Task<uint32_t> {
    kv_op op[1] = {read_op(0, words.data(), words.size() * 8)};
    co_return co_await remote.batch(op);
  };
  Task<uint32_t> first = read();
  REQUIRE(run(executor, [&] { return first.done(); }));
  CHECK(first.take() == KV_FABRIC_OK);

  std::vector<Task<uint32_t>> pending;
  for (int i = 0; i < 8; ++i) pending.push_back(read());
  CHECK(remote.pending() == 8);
  connection->ops->close(connection);
  CHECK(remote.pending() == 0);
  CHECK(!pending.back().done());  // the completion only notes it
  REQUIRE(run(executor, [&] { return pending.back().done(); }));
  for (Task<uint32_t>& task : pending) CHECK(task.take() == KV_FABRIC_LOST);
  Task<uint32_t> late = read();
  REQUIRE(late.done());
  CHECK(late.take() == KV_FABRIC_DOWN);
  executor.remove_connection(connection);
  connection->ops->destroy(connection);
}

TEST_CASE("coro: frames of any size are whole and apart") {
  std::vector<std::pair<unsigned char*, size_t>> blocks;
  for (unsigned round = 0; round < 3; ++round) {
    for (size_t bytes = 1; bytes < 9000; bytes += bytes / 5 + 1) {
      for (int copy = 0; copy < 3; ++copy) {
        auto* memory = static_cast<unsigned char*>(FramePool::allocate(bytes));
        REQUIRE(reinterpret_cast<uintptr_t>(memory) % alignof(std::max_align_t) == 0);
        std::memset(memory, int(blocks.size() % 251), bytes);
        blocks.emplace_back(memory, bytes);
      }
    }
    for (size_t i = 0; i < blocks.size(); ++i) {
      const auto [memory, bytes] = blocks[i];
      bool whole = true;
      for (size_t b = 0; b < bytes; ++b) whole &= memory[b] == i % 251;
      REQUIRE(whole);
    }
    for (const auto& [memory, bytes] : blocks) FramePool::release(memory, bytes);
    blocks.clear();
  }
}

#if KV_POOL_FRAMES
TEST_CASE("coro: a released frame serves the next of its size") {
  void* const first = FramePool::allocate(100);
  FramePool::release(first, 100);
  void* const second = FramePool::allocate(128);  // rounds up to the same size
  CHECK(second == first);
  void* const third = FramePool::allocate(100);
  CHECK(third != first);
  FramePool::release(second, 128);
  FramePool::release(third, 100);
}
#endif

TEST_CASE("coro: frames may end on another thread than they began") {
  std::vector<Task<int>> tasks;
  for (int i = 0; i < 1000; ++i) tasks.push_back(add(i, 1));
  std::thread([moved = std::move(tasks)]() mutable {
    int sum = 0;
    for (Task<int>& task : moved) sum += task.take();
    CHECK(sum == 500'500);
    moved.clear();
    // What the other thread began is of use here, and drained when this thread ends.
    CHECK(add(1, 2).take() == 3);
  }).join();
}

}  // namespace kvstore::test
