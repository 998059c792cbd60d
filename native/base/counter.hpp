// A counter that one thread increments and any thread may read. No locked instruction: the owner's
// load and store are relaxed.

#pragma once

#include <atomic>
#include <cstdint>

namespace kvstore {

class Counter {
 public:
  void operator++() { *this += 1; }
  void operator+=(uint64_t n) {
    value_.store(value_.load(std::memory_order_relaxed) + n, std::memory_order_relaxed);
  }
  uint64_t get() const { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<uint64_t> value_{0};
};

}  // namespace kvstore
