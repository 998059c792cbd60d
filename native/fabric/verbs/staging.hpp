// Registered memory through which the bytes go of operations whose own memory is not registered. A
// ring: pieces are given out and given back in the same order.

#pragma once

#include <bit>
#include <cstdint>

#include "base/assert.hpp"

namespace kvstore::verbs {

template <uint32_t kBytes>
class Staging {
 public:
  static constexpr uint32_t kUnitBytes = 64;  // a cache line, so that pieces do not share one
  static_assert(std::has_single_bit(kBytes) && kBytes >= 2 * kUnitBytes);

  // The place of a contiguous piece, or false if there is no room now. `end` gives it back.
  bool take(uint32_t bytes, uint32_t& place, uint64_t& end) {
    const uint32_t rounded = (bytes + kUnitBytes - 1) / kUnitBytes * kUnitBytes;
    KV_ASSERT(rounded > 0);
    KV_ASSERT(rounded <= kBytes / 2);
    uint64_t begin = taken_;
    const uint32_t to_wrap = kBytes - uint32_t(begin % kBytes);
    if (to_wrap < rounded) begin += to_wrap;
    if (begin + rounded - given_back_ > kBytes) return false;
    place = uint32_t(begin % kBytes);
    taken_ = begin + rounded;
    end = taken_;
    return true;
  }

  // Gives back the piece that was taken with this end, and all before it.
  void give_back(uint64_t end) {
    KV_ASSERT(end >= given_back_ && end <= taken_);
    given_back_ = end;
  }

 private:
  uint64_t taken_ = 0;  // bytes ever, those skipped at the wrap included
  uint64_t given_back_ = 0;
};

}  // namespace kvstore::verbs
