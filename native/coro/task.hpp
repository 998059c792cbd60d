// Task<T>: a protocol step as a coroutine.
//
// A task starts eagerly. Where everything it awaits completes inline (shm), it is done when the
// call returns and awaiting it costs no suspension. A suspended task is resumed only by the
// executor, never by the one that completes it: no chain of completions can grow the stack, at any
// optimisation level.
//
// A task is owned by the Task object; dropping the object of an unfinished task is a defect.
// Protocol code does not throw: what escapes a coroutine ends the process.

#pragma once

#include <coroutine>
#include <exception>
#include <optional>
#include <utility>

#include "base/assert.hpp"
#include "coro/executor.hpp"
#include "coro/frame_pool.hpp"

namespace kvstore {

class TaskPromiseBase {
 public:
  static void* operator new(size_t bytes) { return FramePool::allocate(bytes); }
  static void operator delete(void* memory, size_t bytes) { FramePool::release(memory, bytes); }

  std::suspend_never initial_suspend() noexcept { return {}; }

  struct FinalAwaiter {
    bool await_ready() noexcept { return false; }
    template <class Promise>
    void await_suspend(std::coroutine_handle<Promise> finished) noexcept {
      TaskPromiseBase& promise = finished.promise();
      if (promise.continuation_) Executor::current()->make_ready(promise.continuation_);
    }
    void await_resume() noexcept {}
  };
  FinalAwaiter final_suspend() noexcept { return {}; }
  void unhandled_exception() noexcept { std::terminate(); }

  void continue_with(std::coroutine_handle<> continuation) { continuation_ = continuation; }

 private:
  std::coroutine_handle<> continuation_;
};

template <class T>
class [[nodiscard]] Task {
 public:
  struct promise_type : TaskPromiseBase {
    Task get_return_object() {
      return Task(std::coroutine_handle<promise_type>::from_promise(*this));
    }
    template <class U>
    void return_value(U&& result) {
      value.emplace(std::forward<U>(result));
    }
    std::optional<T> value;
  };

  Task() = default;
  Task(Task&& other) noexcept : handle_(std::exchange(other.handle_, {})) {}
  Task& operator=(Task&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~Task() {
    if (!handle_) return;
    KV_ASSERT(handle_.done());
    handle_.destroy();
  }

  bool done() const { return handle_.done(); }
  T take() {
    KV_ASSERT(handle_.done());
    return std::move(*handle_.promise().value);
  }

  bool await_ready() const noexcept { return handle_.done(); }
  void await_suspend(std::coroutine_handle<> awaiting) noexcept {
    handle_.promise().continue_with(awaiting);
  }
  T await_resume() { return std::move(*handle_.promise().value); }

 private:
  explicit Task(std::coroutine_handle<promise_type> handle) : handle_(handle) {}
  std::coroutine_handle<promise_type> handle_;
};

}  // namespace kvstore
