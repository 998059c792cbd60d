// Which keys are worth a copy, judged by how often they are read between two changes.
//
// A copy pays if it is read often enough before a write takes it away: what its reads save must
// make up for its making, and for the write, which waits for the answers of those on other hosts
// who have copies. How many reads that takes is measured: over shared memory a get costs less than
// a hundredth of such a write, over a network about as much.
//
// Of each key a mean of its reads between changes is kept, over some sixteen changes. It needs no
// copies: a read from the node that finds what was seen before would have been served by one. A key
// is copied while its mean pays, and in any case once it was read four times as often as would pay
// since it changed, for what was written much may have come to rest. A key of which no change is
// known is copied when it is read for the second time; where most such keys turn out not to pay,
// later, after up to 1,024 reads.
//
// Writers of a key wait one behind the other while its copies end: the more of the time they do so,
// the longer each waits. Readers see how much of the time that is, by the share of their reads that
// meet a writer at it. Such a read takes back what copies have brought.
//
// All of it is this client's own opinion: nobody else needs to know it, so it can change at any
// moment.
//
// A table of words, one a key, in which newer keys displace older ones. Any thread; what threads
// do to one word at once may be lost.

#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "base/table.hpp"

namespace kvstore {

// A mean of the last hundred figures that any thread notes, or of all as long as they are fewer.
class RecentMean {
 public:
  void note(uint64_t figure) {
    const int64_t weight = std::min(figures_.load(std::memory_order_relaxed) + 1, kFiguresMax);
    figures_.store(weight, std::memory_order_relaxed);
    const int64_t mean = mean_.load(std::memory_order_relaxed);
    mean_.store(mean + (int64_t(figure) * kUnit - mean) / weight, std::memory_order_relaxed);
  }
  // As long as there are few figures a guess counts as two of them.
  uint64_t get(uint64_t guess) const {
    const int64_t figures = figures_.load(std::memory_order_relaxed);
    const int64_t mean = mean_.load(std::memory_order_relaxed) / kUnit;
    if (figures >= kFiguresMax) return uint64_t(mean);
    return uint64_t((mean * figures + int64_t(guess) * kGuessWeighs) / (figures + kGuessWeighs));
  }

 private:
  static constexpr int64_t kGuessWeighs = 2;
  static constexpr int64_t kFiguresMax = 128;
  static constexpr int64_t kUnit = kFiguresMax;  // so that small differences count too
  std::atomic<int64_t> mean_{0};
  std::atomic<int64_t> figures_{0};
};

class Interest {
 public:
  Interest() : words_(kWords) {}

  // A read that missed: whether to make a copy now.
  bool read(uint64_t hash, uint32_t uses_that_pay) {
    std::atomic<uint64_t>& word = word_of(hash);
    State seen(word.load(std::memory_order_relaxed));
    if (seen.tag != tag_of(hash)) {
      word.store(fresh(hash).word(), std::memory_order_relaxed);
      return false;
    }
    if (reads_left(seen, uses_that_pay) == 0) return true;
    if (seen.mean == kUnknown) {
      --seen.count;
      word.store(seen.word(), std::memory_order_relaxed);
    }
    return false;
  }
  void prefetch(uint64_t hash) const { __builtin_prefetch(&words_[number_of(hash)], 1); }
  // Whether it has been read lately.
  bool knows(uint64_t hash) const {
    return State(words_[number_of(hash)].load(std::memory_order_relaxed)).tag == tag_of(hash);
  }
  // A read that told nothing of earlier ones: the next one is not the first.
  void met(uint64_t hash) {
    std::atomic<uint64_t>& word = word_of(hash);
    if (State(word.load(std::memory_order_relaxed)).tag == tag_of(hash)) return;
    word.store(fresh(hash).word(), std::memory_order_relaxed);
  }
  // A read from the node found what was seen before.
  void unchanged(uint64_t hash, uint32_t uses_that_pay) {
    std::atomic<uint64_t>& word = word_of(hash);
    State seen(word.load(std::memory_order_relaxed));
    if (seen.tag != tag_of(hash) || seen.run == kRunMax) return;
    ++seen.run;
    word.store(seen.word(), std::memory_order_relaxed);
    if (seen.mean == kUnknown && seen.run == uses_that_pay) relieve();
  }
  // A read met a writer that waits for copies to end: behind it another one would wait as long, so
  // it takes back what as many reads bring as pay for a wait.
  void met_writer(uint64_t hash, uint32_t uses_that_pay) {
    std::atomic<uint64_t>& word = word_of(hash);
    State seen(word.load(std::memory_order_relaxed));
    if (seen.tag != tag_of(hash) || seen.mean == kUnknown) return;
    seen.mean -= std::min(seen.mean, uses_that_pay * kUnit / kChangesMax);
    word.store(seen.word(), std::memory_order_relaxed);
  }
  // A read found the key changed, or it has been written here. Of what nobody has read in between
  // this tells nothing.
  void changed(uint64_t hash, uint32_t uses_that_pay) {
    std::atomic<uint64_t>& word = word_of(hash);
    const State seen(word.load(std::memory_order_relaxed));
    if (seen.tag == tag_of(hash) && seen.run > 0) learn(word, seen, 0, uses_that_pay);
  }
  // A write has taken a copy away that was read so often, or came before it was there.
  void taken(uint64_t hash, uint32_t uses, uint32_t uses_that_pay) {
    std::atomic<uint64_t>& word = word_of(hash);
    const State seen(word.load(std::memory_order_relaxed));
    learn(word, seen.tag == tag_of(hash) ? seen : fresh(hash), uses, uses_that_pay);
  }
  // A write has ended a copy that was read so often, but another one took its place at no cost: no
  // change as far as it matters here.
  void went_on(uint64_t hash, uint32_t uses) {
    std::atomic<uint64_t>& word = word_of(hash);
    State seen(word.load(std::memory_order_relaxed));
    if (seen.tag != tag_of(hash)) return;
    seen.run = std::min(seen.run + uses, kRunMax);
    word.store(seen.word(), std::memory_order_relaxed);
  }
  // Whether its copies have paid lately.
  bool pays(uint64_t hash, uint32_t uses_that_pay) const {
    const State seen(words_[number_of(hash)].load(std::memory_order_relaxed));
    return seen.tag == tag_of(hash) && pays(seen, uses_that_pay);
  }
  // How many reads from the node pass before one makes a copy.
  uint32_t reads_to_wait(uint64_t hash, uint32_t uses_that_pay) const {
    const State seen(words_[number_of(hash)].load(std::memory_order_relaxed));
    return seen.tag == tag_of(hash) ? reads_left(seen, uses_that_pay) : 1 + wait_of_unknown();
  }

 private:
  static constexpr uint64_t kWords = 1 << 16;
  static constexpr uint32_t kTagBits = 24;
  static constexpr uint32_t kMeanBits = 14;
  static constexpr uint32_t kRunBits = 14;
  static constexpr uint32_t kCountBits = 12;
  static_assert(kTagBits + kMeanBits + kRunBits + kCountBits == 64);
  static constexpr uint32_t kRunMax = (1u << kRunBits) - 1;
  static constexpr uint32_t kUnit = 16;  // of a mean
  static constexpr uint32_t kChangesMax = 16;
  static constexpr uint32_t kUnknown = (1u << kMeanBits) - 1;
  static constexpr uint32_t kMeanMax = kUnknown - 1;
  // A key's first change says little, and what came before it began in the middle: it weighs as
  // one of four, the others being what would just pay. If it did not, not many: what pays may fall
  // soon, and then each key would have to unlearn it.
  static constexpr uint32_t kPriorChanges = 3;
  static constexpr uint32_t kPriorReadsMax = 8;
  // Reads in a row, in what would pay, after which a key is taken to have come to rest.
  static constexpr uint32_t kRestingRuns = 4;
  // Keys in a row that turned out not to pay, for unknown ones to wait twice as long; one that did
  // counts for several.
  static constexpr uint32_t kDoubtPerLevel = 8;
  static constexpr uint32_t kReliefByOne = 4;
  static constexpr uint32_t kDoubtLevelMax = 10;

  struct State {
    explicit State(uint64_t word)
        : tag(uint32_t(word >> (kMeanBits + kRunBits + kCountBits))),
          mean(uint32_t(word >> (kRunBits + kCountBits)) & kUnknown),
          run(uint32_t(word >> kCountBits) & kRunMax),
          count(uint32_t(word) & ((1u << kCountBits) - 1)) {}
    State(uint32_t of, uint32_t reads) : tag(of), mean(kUnknown), run(0), count(reads) {}
    uint64_t word() const {
      const uint64_t high = uint64_t{tag} << kMeanBits | mean;
      return (high << kRunBits | run) << kCountBits | count;
    }

    uint32_t tag;
    uint32_t mean;   // reads between changes
    uint32_t run;    // reads from the node since it changed
    uint32_t count;  // reads to wait for while no change is known; then changes, up to sixteen
  };

  static bool pays(const State& seen, uint32_t uses_that_pay) {
    return seen.mean == kUnknown || seen.mean >= uses_that_pay * kUnit;
  }
  static uint32_t reads_left(const State& seen, uint32_t uses_that_pay) {
    if (seen.mean == kUnknown) return seen.count;
    if (pays(seen, uses_that_pay)) return 0;
    const uint32_t resting = uses_that_pay * kRestingRuns;
    return resting - std::min(resting, seen.run);
  }
  uint32_t wait_of_unknown() const {
    return (1u << doubt_.load(std::memory_order_relaxed) / kDoubtPerLevel) - 1;
  }
  State fresh(uint64_t hash) const { return State(tag_of(hash), wait_of_unknown()); }

  void learn(std::atomic<uint64_t>& word, State seen, uint32_t uses, uint32_t uses_that_pay) {
    const uint32_t reads = seen.run + uses;
    if (seen.mean == kUnknown) {
      const bool paid = reads >= uses_that_pay;
      paid ? relieve() : doubt();
      seen.mean = (paid ? uses_that_pay : std::min(uses_that_pay, kPriorReadsMax)) * kUnit;
      seen.count = kPriorChanges;
    }
    seen.count = std::min(seen.count + 1, kChangesMax);
    const int32_t away = int32_t(reads * kUnit) - int32_t(seen.mean);
    seen.mean = std::min(uint32_t(int32_t(seen.mean) + away / int32_t(seen.count)), kMeanMax);
    seen.run = 0;
    word.store(seen.word(), std::memory_order_relaxed);
  }
  void doubt() {
    const uint32_t now = doubt_.load(std::memory_order_relaxed);
    doubt_.store(std::min(now + 1, kDoubtLevelMax * kDoubtPerLevel), std::memory_order_relaxed);
  }
  void relieve() {
    const uint32_t now = doubt_.load(std::memory_order_relaxed);
    doubt_.store(now - std::min(now, kReliefByOne), std::memory_order_relaxed);
  }

  static uint32_t tag_of(uint64_t hash) { return uint32_t(hash >> (64 - kTagBits)); }
  static uint64_t number_of(uint64_t hash) {
    return (hash * 0x9e3779b97f4a7c15ull) >> 48 & (kWords - 1);
  }
  std::atomic<uint64_t>& word_of(uint64_t hash) { return words_[number_of(hash)]; }

  const Table<std::atomic<uint64_t>> words_;
  std::atomic<uint32_t> doubt_{0};
};

}  // namespace kvstore
