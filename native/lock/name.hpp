// The name of a lock as its hash. 128 bits: two names of a cluster never share one.

#pragma once

#include <cstdint>

namespace kvstore {

struct LockName {
  uint64_t low = 0;   // chooses the node, and the lock in the node's table
  uint64_t high = 0;  // tells apart names that share a lock

  bool operator==(const LockName&) const = default;
  // The place in a table of `lock_count` locks, a power of two. Not of the bits that choose the
  // node.
  uint64_t number(uint64_t lock_count) const { return high & (lock_count - 1); }
  // The same for every size of the table: equal numbers stand together, because the bits that make
  // a number come first.
  uint64_t order() const {
    uint64_t reversed = 0;
    for (unsigned bit = 0; bit < 64; ++bit) reversed |= (high >> bit & 1) << (63 - bit);
    return reversed;
  }
};

LockName make_lock_name(const void* data, uint64_t bytes);

}  // namespace kvstore
