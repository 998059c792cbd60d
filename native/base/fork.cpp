#include "base/fork.hpp"

#include <pthread.h>

#include <atomic>

namespace kvstore {
namespace {

std::atomic<uint64_t> generation{0};

void in_child() {
  generation.fetch_add(1, std::memory_order_relaxed);
}

const int registered = pthread_atfork(nullptr, nullptr, in_child);

}  // namespace

uint64_t fork_generation() noexcept {
  (void)registered;
  return generation.load(std::memory_order_relaxed);
}

}  // namespace kvstore
