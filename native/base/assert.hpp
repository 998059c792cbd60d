// Assertions on our own invariants. They stay on in production: a store that goes on after one of
// its invariants broke serves garbage. What comes from remote memory, the wire or the caller is
// checked and reported instead, never asserted.

#pragma once

#include <cstdio>
#include <cstdlib>

namespace kvstore {

[[noreturn]] inline void assertion_failed(const char* condition, const char* file, int line) {
  std::fprintf(stderr, "kvstore: invariant broken: %s (%s:%d)\n", condition, file, line);
  std::abort();
}

}  // namespace kvstore

#define KV_ASSERT(condition)          \
  (__builtin_expect(!!(condition), 1) \
       ? void(0)                      \
       : ::kvstore::assertion_failed(#condition, __FILE__, __LINE__))
