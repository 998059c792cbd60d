// Whether copies of absence pay, for all keys of a client together.
//
// A key that is absent is one of very many, and the records in which readers of absence stand are
// shared by all of them: a writer that inserts a key asks whoever has a copy of any other's absence
// under its record. So what counts is not the single key, but how many reads the copies save, or
// would have saved, for each time that somebody asked.
//
// Any thread; what threads note at once may be lost.

#pragma once

#include <atomic>
#include <cstdint>

namespace kvstore {

class AbsenceBalance {
 public:
  // Reads of absent keys that copies have served, or would have.
  void note_saved(uint64_t reads) { raise(saved_, reads); }
  // A writer has waited for this client's answer.
  void note_asked() {
    if (raise(asked_, 1) < kAskedMax) return;
    // What is long past fades.
    asked_.store(kAskedMax / 2, std::memory_order_relaxed);
    saved_.store(saved_.load(std::memory_order_relaxed) / 2, std::memory_order_relaxed);
  }
  bool pays(uint32_t uses_that_pay) const {
    const uint64_t asked = asked_.load(std::memory_order_relaxed);
    const uint64_t excused = asked < kExcused ? asked : kExcused;
    return saved_.load(std::memory_order_relaxed) >= (asked - excused) * uses_that_pay;
  }

 private:
  static constexpr uint64_t kAskedMax = 256;
  static constexpr uint64_t kExcused = 16;  // nothing is known yet

  static uint64_t raise(std::atomic<uint64_t>& count, uint64_t by) {
    const uint64_t now = count.load(std::memory_order_relaxed) + by;
    count.store(now, std::memory_order_relaxed);
    return now;
  }

  std::atomic<uint64_t> saved_{0};
  std::atomic<uint64_t> asked_{0};
};

}  // namespace kvstore
