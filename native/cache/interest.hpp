// Which keys are worth a copy, judged by what earlier copies have brought.
//
// A copy pays if it is read often enough before a write takes it away: what its reads save must
// make up for the write, which waits for the answers of those who have copies. How many reads that
// takes is measured: over shared memory a get costs less than a hundredth of such a write, over a
// network about as much.
//
// A key is first copied when it is read for the second time. A copy that did not pay makes its key
// wait for twice as many reads as before, up to 1,024; one that did makes it wait half as long the
// next time. So a key that is written all the time is tried once in a thousand reads. Where most
// copies do not pay, keys of which nothing is known wait as well. All of it is this client's own
// opinion: nobody else needs to know it, so it can change at any moment.
//
// A table of words, one a key, in which newer keys displace older ones. Any thread; what threads
// do to one word at once may be lost.

#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>

namespace kvstore {

// A mean of the last few dozen figures that any thread notes.
class RecentMean {
 public:
  explicit RecentMean(uint64_t first) : mean_(first) {}
  void note(uint64_t figure) {
    const int64_t mean = int64_t(mean_.load(std::memory_order_relaxed));
    mean_.store(uint64_t(mean + (int64_t(figure) - mean) / kWeight), std::memory_order_relaxed);
  }
  uint64_t get() const { return mean_.load(std::memory_order_relaxed); }

 private:
  static constexpr int64_t kWeight = 32;
  std::atomic<uint64_t> mean_;
};

class Interest {
 public:
  Interest() : words_(std::make_unique<std::atomic<uint32_t>[]>(kWords)) {}

  // A read that missed: whether to make a copy now.
  bool read(uint64_t hash) {
    std::atomic<uint32_t>& word = word_of(hash);
    const uint32_t seen = word.load(std::memory_order_relaxed);
    if (tag_in(seen) != tag_of(hash)) {
      const uint32_t level = doubt_.load(std::memory_order_relaxed) / kDoubtPerLevel;
      word.store(make(hash, level, 1u << level), std::memory_order_relaxed);
      return false;
    }
    const uint32_t wait = wait_in(seen);
    if (wait <= 1) return true;
    word.store(make(hash, level_in(seen), wait - 1), std::memory_order_relaxed);
    return false;
  }
  // How many reads from the node pass before one makes a copy.
  uint32_t reads_to_wait(uint64_t hash) const {
    const uint32_t seen = words_[number_of(hash)].load(std::memory_order_relaxed);
    if (tag_in(seen) != tag_of(hash)) {
      return 1u << doubt_.load(std::memory_order_relaxed) / kDoubtPerLevel;
    }
    return std::max(wait_in(seen), 1u) - 1;
  }
  // A write has taken the copy away.
  void taken(uint64_t hash, bool paid) {
    std::atomic<uint32_t>& word = word_of(hash);
    const uint32_t seen = word.load(std::memory_order_relaxed);
    uint32_t level = tag_in(seen) == tag_of(hash) ? level_in(seen) : 0;
    if (paid) {
      level -= level > 0 ? 1 : 0;
    } else if (level < kLevelMax) {
      ++level;
    }
    word.store(make(hash, level, paid ? 1 : 1u << level), std::memory_order_relaxed);
    const uint32_t doubt = doubt_.load(std::memory_order_relaxed);
    const uint32_t lighter = doubt - std::min(doubt, kReliefByOne);
    const uint32_t heavier = std::min(doubt + 1, kLevelMax * kDoubtPerLevel);
    doubt_.store(paid ? lighter : heavier, std::memory_order_relaxed);
  }

 private:
  static constexpr uint64_t kWords = 1 << 16;
  static constexpr uint32_t kLevelMax = 10;
  static constexpr uint32_t kWaitBits = 11;
  static constexpr uint32_t kLevelBits = 4;
  // Copies in a row that did not pay, for every key to wait twice as long; one that did counts for
  // several.
  static constexpr uint32_t kDoubtPerLevel = 8;
  static constexpr uint32_t kReliefByOne = 4;

  // tag 17, level 4, reads to wait for 11
  static uint32_t tag_of(uint64_t hash) { return uint32_t(hash >> 40) & 0x1ffff; }
  static uint32_t tag_in(uint32_t word) { return word >> (kLevelBits + kWaitBits); }
  static uint32_t level_in(uint32_t word) { return word >> kWaitBits & ((1u << kLevelBits) - 1); }
  static uint32_t wait_in(uint32_t word) { return word & ((1u << kWaitBits) - 1); }
  static uint32_t make(uint64_t hash, uint32_t level, uint32_t wait) {
    return tag_of(hash) << (kLevelBits + kWaitBits) | level << kWaitBits | wait;
  }
  static uint64_t number_of(uint64_t hash) {
    return (hash * 0x9e3779b97f4a7c15ull) >> 48 & (kWords - 1);
  }
  std::atomic<uint32_t>& word_of(uint64_t hash) { return words_[number_of(hash)]; }

  std::unique_ptr<std::atomic<uint32_t>[]> words_;
  std::atomic<uint32_t> doubt_{0};
};

}  // namespace kvstore
