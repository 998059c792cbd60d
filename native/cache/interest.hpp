// Which keys are worth a copy, judged by what earlier copies have brought.
//
// A copy pays if it is read often enough before a write takes it away: what its reads save must
// make up for the write, which waits for the answers of those who have copies. How many reads that
// takes is measured: over shared memory a get costs less than a hundredth of such a write, over a
// network about as much.
//
// A key is first copied when it is read for the second time. A copy that did not pay, or that a
// write came before, makes its key wait for twice as many reads as before, up to a million; one
// that did pay, half as many. Few reads from the node between two changes that they meet count as a
// copy that did not pay, so what is written much is hardly ever tried. Where most do not pay, keys
// of which nothing is known wait as well, up to 1,024 reads. All of it is this client's own
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
  Interest() : words_(std::make_unique<std::atomic<uint64_t>[]>(kWords)) {}

  // A read that missed: whether to make a copy now.
  bool read(uint64_t hash) {
    std::atomic<uint64_t>& word = word_of(hash);
    State seen(word.load(std::memory_order_relaxed));
    if (seen.tag != tag_of(hash)) {
      const uint32_t level = doubt_.load(std::memory_order_relaxed) / kDoubtPerLevel;
      word.store(State(tag_of(hash), level, 1u << level).word(), std::memory_order_relaxed);
      return false;
    }
    const bool now = seen.wait <= 1;
    if (!now) --seen.wait;
    if (seen.run < kRunMax) ++seen.run;
    word.store(seen.word(), std::memory_order_relaxed);
    return now;
  }
  // How many reads from the node pass before one makes a copy.
  uint32_t reads_to_wait(uint64_t hash) const {
    const State seen(words_[number_of(hash)].load(std::memory_order_relaxed));
    if (seen.tag != tag_of(hash)) {
      return 1u << doubt_.load(std::memory_order_relaxed) / kDoubtPerLevel;
    }
    return std::max(seen.wait, 1u) - 1;
  }
  // A write has taken the copy away, or came before it was there.
  void taken(uint64_t hash, bool paid) {
    std::atomic<uint64_t>& word = word_of(hash);
    State seen(word.load(std::memory_order_relaxed));
    if (seen.tag != tag_of(hash)) seen = State(tag_of(hash), 0, 1);
    judge(word, seen, paid, kRunTold);
  }
  // The key was found changed by the read that `read` was told of last, or has been written here.
  // Reads that met no change would have been hits. That they were many is no proof: several writes
  // may have come while they were under way.
  void changed(uint64_t hash, uint32_t uses_that_pay) {
    std::atomic<uint64_t>& word = word_of(hash);
    State seen(word.load(std::memory_order_relaxed));
    if (seen.tag != tag_of(hash)) return;
    if (seen.run == 0) return;
    if (seen.run != kRunTold && seen.run <= std::min(uses_that_pay, kRunMax - 1)) {
      judge(word, seen, false, 0);
      return;
    }
    seen.run = 0;
    word.store(seen.word(), std::memory_order_relaxed);
  }

 private:
  static constexpr uint64_t kWords = 1 << 16;
  static constexpr uint32_t kLevelMax = 20;
  static constexpr uint32_t kWaitBits = 21;
  static constexpr uint32_t kLevelBits = 5;
  static constexpr uint32_t kRunBits = 8;
  static constexpr uint32_t kRunTold = (1u << kRunBits) - 1;  // of its next change it is known
  static constexpr uint32_t kRunMax = kRunTold - 1;
  // Copies in a row that did not pay, for every key to wait twice as long; one that did counts for
  // several.
  static constexpr uint32_t kDoubtPerLevel = 8;
  static constexpr uint32_t kReliefByOne = 4;
  static constexpr uint32_t kDoubtLevelMax = 10;

  struct State {
    // tag 30, reads since it changed 8, level 5, reads to wait for 21
    explicit State(uint64_t word)
        : tag(uint32_t(word >> (kRunBits + kLevelBits + kWaitBits))),
          run(uint32_t(word >> (kLevelBits + kWaitBits)) & kRunTold),
          level(uint32_t(word >> kWaitBits) & ((1u << kLevelBits) - 1)),
          wait(uint32_t(word) & ((1u << kWaitBits) - 1)) {}
    State(uint32_t of, uint32_t at, uint32_t reads) : tag(of), run(1), level(at), wait(reads) {}
    uint64_t word() const {
      const uint64_t high = uint64_t{tag} << kRunBits | run;
      return (high << kLevelBits | level) << kWaitBits | wait;
    }

    uint32_t tag;
    uint32_t run;
    uint32_t level;
    uint32_t wait;
  };

  void judge(std::atomic<uint64_t>& word, State seen, bool paid, uint32_t run) {
    if (paid) {
      seen.level -= seen.level > 0 ? 1 : 0;
    } else if (seen.level < kLevelMax) {
      ++seen.level;
    }
    seen.wait = paid ? 1 : 1u << seen.level;
    seen.run = run;
    word.store(seen.word(), std::memory_order_relaxed);
    const uint32_t doubt = doubt_.load(std::memory_order_relaxed);
    const uint32_t lighter = doubt - std::min(doubt, kReliefByOne);
    const uint32_t heavier = std::min(doubt + 1, kDoubtLevelMax * kDoubtPerLevel);
    doubt_.store(paid ? lighter : heavier, std::memory_order_relaxed);
  }

  static uint32_t tag_of(uint64_t hash) {
    return uint32_t(hash >> (kRunBits + kLevelBits + kWaitBits));
  }
  static uint64_t number_of(uint64_t hash) {
    return (hash * 0x9e3779b97f4a7c15ull) >> 48 & (kWords - 1);
  }
  std::atomic<uint64_t>& word_of(uint64_t hash) { return words_[number_of(hash)]; }

  std::unique_ptr<std::atomic<uint64_t>[]> words_;
  std::atomic<uint32_t> doubt_{0};
};

}  // namespace kvstore
