// What a client learns about the reuse of keys: for each category, how long after a use the next
// one comes, if one comes. From that follows what a key is worth that has been idle for so long.
//
// The worth is the best ratio of the chance of a reuse to the time that the key is kept for it,
// over all times after which one could give it up: the Gittins index of its remaining idle time. It
// generalises the priority of KVCache in the Wild (arXiv 2506.02634, section 4), which assumes
// exponential times and one horizon, and hit density (LHD, NSDI'18), which has no horizon.
//
// Worths are ordered. What was used more recently is worth no less than what is idle for longer in
// the same category: where the sample has it otherwise, that is how far apart requests are, as seen
// from a request that comes in between and makes room. And what was used more often, see
// `kv_reuse`, is worth no less than what was used less often and is idle for as long. What many
// chains begin with is a key in a category of its own that the sample may never see, and who gave
// it up for that would lose all those chains: so a category without observations is worth what the
// rank below it is.
//
// Uses are remembered of a sample of keys, those with certain hashes, whether their objects were
// evicted meanwhile or not. Keys that have not been used again yet count as what they are,
// observations that end early (Kaplan and Meier, 1958); otherwise categories that are new would
// look as if nobody ever came back to them. What was seen long ago counts less and less: hazards
// are those of a period (as in a period life table), for sessions end and others behave
// differently.
//
// `used` and `learn` are called by one thread, `worth` and `evicted` by any.

#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

namespace kvstore {

class ReuseModel {
 public:
  // A caller's word for what a use was; 0: nothing said.
  static constexpr unsigned kCategories = 256;
  // Buckets of idle time: below a millisecond, then four an octave, up to some four hours.
  static constexpr unsigned kAges = 96;
  static constexpr unsigned kSameCategory = kCategories;

  // A key is used at `now_ms`, of a clock that wraps. `kSameCategory`: as at its last use.
  void used(uint64_t key_hash, unsigned category, uint32_t now_ms);
  // Derives the worths from what has been seen.
  void learn(uint32_t now_ms);
  bool wants_to_learn() const { return uses_ >= next_lesson_; }
  // An entry was evicted that had been idle for so long.
  void evicted(uint32_t idle_ms);

  // Expected reuses a millisecond of keeping; 0: none is known.
  float worth(unsigned category, uint32_t idle_ms) const;

  static unsigned age_of(uint32_t idle_ms);
  static double age_begin_ms(unsigned age);

 private:
  static constexpr unsigned kWays = 4;
  static constexpr unsigned kSets = 16384;
  static constexpr unsigned kThinnestSample = 10;  // one key in 2^10
  static constexpr uint64_t kLessonUses = 2048;
  // What was seen so many uses ago counts by 1/e.
  static constexpr uint64_t kMemoryUses = 1 << 20;

  struct Entry {
    uint64_t key_hash;  // 0: none
    uint32_t last_ms;
    uint16_t category;
  };
  using Ages = std::array<double, kAges>;
  using Worths = std::array<float, kAges>;
  struct Observed {
    Ages reused{};
    Ages lost{};  // not seen again until the entry made room for another one
  };
  // Of one lesson: a category's observations with those that have not ended.
  struct Exposure {
    Ages reused{};
    Ages ended{};  // reused, lost, or still waiting
  };

  bool sampled(uint64_t key_hash) const;
  void thin_out();
  void forget(uint32_t now_ms);
  Ages faded_over_ages() const;
  static Worths worths_of(const Exposure& exposure, const Ages& faded);
  void publish(unsigned category, Worths worths);

  std::vector<Entry> entries_;
  std::vector<Observed> observed_;
  uint64_t uses_ = 0;
  uint64_t next_lesson_ = 256;
  unsigned thinness_ = 0;  // one key in 2^thinness is sampled
  uint32_t last_lesson_ms_ = 0;
  uint64_t last_lesson_uses_ = 0;
  double recent_ms_ = 0;  // that recent_uses_ took, both forgotten like what was seen
  double recent_uses_ = 0;
  double lost_ms_ = 0;  // since the last lesson
  double lost_ = 0;
  std::atomic<uint32_t> evicted_idle_ms_{0};  // a moving average
  std::array<std::atomic<float>, kCategories * kAges> worth_{};
};

}  // namespace kvstore
