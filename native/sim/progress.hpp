// How far a world has come, for whoever watches over it from another thread: a step of it that does
// not end has a name, and the world can be given up.

#pragma once

#include <unistd.h>

#include <atomic>
#include <cstdint>

namespace kvstore::sim {

struct Progress {
  std::atomic<const char*> stepping{"nothing"};
  std::atomic<uint64_t> now_ns{0};
  std::atomic<bool> given_up{false};
};

// Of the world that runs on this thread; nullptr if nobody watches.
inline constinit thread_local Progress* progress = nullptr;

inline void note_step(const char* name, uint64_t now_ns) {
  if (progress == nullptr) return;
  progress->stepping.store(name, std::memory_order_relaxed);
  progress->now_ns.store(now_ns, std::memory_order_relaxed);
}

// Stands still for ever in a world that was given up: its stack can't be left.
inline void stop_if_given_up() {
  if (progress == nullptr || !progress->given_up.load(std::memory_order_relaxed)) return;
  for (;;) ::pause();
}

}  // namespace kvstore::sim
