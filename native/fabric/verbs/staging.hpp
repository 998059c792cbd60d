// Registered memory through which the bytes go of operations whose own memory is not registered. A
// ring: pieces are given out and given back in the same order.

#pragma once

#include <cstdint>

#include "base/assert.hpp"

namespace kvstore::verbs {

class Staging {
 public:
  static constexpr uint32_t kUnitBytes = 64;  // a cache line, so that pieces do not share one

  explicit Staging(uint32_t bytes) : bytes_(bytes) { KV_ASSERT(bytes % kUnitBytes == 0); }

  // The place of a contiguous piece, or false if there is no room now. `end` gives it back.
  bool take(uint32_t bytes, uint32_t& place, uint64_t& end) {
    const uint32_t rounded = (bytes + kUnitBytes - 1) / kUnitBytes * kUnitBytes;
    KV_ASSERT(rounded > 0 && rounded <= bytes_ / 2);
    uint64_t begin = taken_;
    const uint32_t to_wrap = bytes_ - uint32_t(begin % bytes_);
    if (to_wrap < rounded) begin += to_wrap;
    if (begin + rounded - given_back_ > bytes_) return false;
    place = uint32_t(begin % bytes_);
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
  const uint32_t bytes_;
  uint64_t taken_ = 0;  // bytes ever, those skipped at the wrap included
  uint64_t given_back_ = 0;
};

}  // namespace kvstore::verbs
