// Atomics of 16 bytes and with masks, as some devices have them ("extended atomics"). The fabric
// contract does not: plain RDMA and Soft-RoCE have CAS and FAA of one word. Only the simulator
// knows these, for published protocols that can't do without.

#pragma once

#include <cstdint>

#include "fabric/fabric.h"

namespace kvstore::sim {

enum MaskedOpKind : uint32_t { kOpMaskedSwap = 64, kOpWideAdd = 65 };

// Where the words equal `compare` under its mask, the bits of the swap mask are replaced.
struct MaskedSwap {
  uint64_t compare[2] = {};
  uint64_t compare_mask[2] = {};
  uint64_t swap[2] = {};
  uint64_t swap_mask[2] = {};
  uint64_t old[2] = {};

  bool swapped() const {
    return ((old[0] ^ compare[0]) & compare_mask[0]) == 0 &&
           ((old[1] ^ compare[1]) & compare_mask[1]) == 0;
  }
};

// Each word its own sum, both at once.
struct WideAdd {
  uint64_t add[2] = {};
  uint64_t old[2] = {};
};

inline kv_op masked_swap_op(uint64_t offset, MaskedSwap& swap) {
  return kv_op{offset, 16, &swap, 0, 0, 0, kOpMaskedSwap, 0};
}
inline kv_op wide_add_op(uint64_t offset, WideAdd& add) {
  return kv_op{offset, 16, &add, 0, 0, 0, kOpWideAdd, 0};
}

}  // namespace kvstore::sim
