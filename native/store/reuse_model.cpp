#include "store/reuse_model.hpp"

#include <algorithm>
#include <bit>
#include <cmath>

#include "api/kvstore.h"
#include "base/assert.hpp"
#include "store/elapsed.hpp"

namespace kvstore {

namespace {

// How many observations of all categories each one is taken to have beside its own, so that a
// handful of its own says little.
constexpr double kPriorObservations = 200;
// What is remembered of a key should outlast what lies in the cache by so much.
constexpr double kHorizon = 8;
constexpr unsigned kEvictedShare = 64;
// Less than this of an observation is none: its category is one of which nothing is known.
constexpr double kLeastObserved = 1e-3;

// Whether what is a rank below counts for a category: there is one, and it says how often.
bool has_lower_rank(unsigned category) {
  return category % (KV_REUSE_RANKS * KV_REUSE_RANK) >= 2 * KV_REUSE_RANK;
}

}  // namespace

unsigned ReuseModel::age_of(uint32_t idle_ms) {
  if (idle_ms == 0) return 0;
  const unsigned octave = unsigned(std::bit_width(idle_ms)) - 1;
  const unsigned quarter = unsigned((uint64_t{idle_ms} << 2 >> octave) & 3);
  return std::min(1 + 4 * octave + quarter, kAges - 1);
}

double ReuseModel::age_begin_ms(unsigned age) {
  if (age == 0) return 0;
  return double(uint64_t{1} << ((age - 1) / 4)) * (1 + (age - 1) % 4 / 4.0);
}

bool ReuseModel::sampled(uint64_t key_hash) const {
  const uint64_t mixed = key_hash * 0x9e3779b97f4a7c15ull;
  return key_hash != 0 && (mixed >> 40 & ((uint64_t{1} << thinness_) - 1)) == 0;
}

void ReuseModel::used(uint64_t key_hash, unsigned category, uint32_t now_ms) {
  KV_ASSERT(category <= kSameCategory);
  ++uses_;
  if (!sampled(key_hash)) return;
  if (entries_.empty()) {
    entries_.resize(size_t{kSets} * kWays);
    observed_.resize(kCategories);
    last_lesson_ms_ = now_ms;
  }
  Entry* const set = &entries_[(key_hash >> 8) % kSets * kWays];
  Entry* oldest = set;
  for (Entry* entry = set; entry != set + kWays; ++entry) {
    if (entry->key_hash == key_hash) {
      Observed& before = observed_[entry->category];
      before.reused[age_of(elapsed_ms(entry->last_ms, now_ms))] += 1;
      entry->last_ms = now_ms;
      if (category != kSameCategory) entry->category = uint16_t(category);
      return;
    }
    const bool older = elapsed_ms(entry->last_ms, now_ms) > elapsed_ms(oldest->last_ms, now_ms);
    if (oldest->key_hash != 0 && (entry->key_hash == 0 || older)) oldest = entry;
  }
  if (oldest->key_hash != 0) {
    Observed& before = observed_[oldest->category];
    const uint32_t idle_ms = elapsed_ms(oldest->last_ms, now_ms);
    before.lost[age_of(idle_ms)] += 1;
    lost_ms_ += idle_ms;
    lost_ += 1;
  }
  *oldest = {key_hash, now_ms, uint16_t(category == kSameCategory ? 0 : category)};
}

void ReuseModel::evicted(uint32_t idle_ms) {
  // A racing update may be lost, which a moving average bears.
  const uint32_t before = evicted_idle_ms_.load(std::memory_order_relaxed);
  const int64_t step = (int64_t{idle_ms} - int64_t{before}) / kEvictedShare;
  evicted_idle_ms_.store(uint32_t(int64_t{before} + step), std::memory_order_relaxed);
}

float ReuseModel::worth(unsigned category, uint32_t idle_ms) const {
  const unsigned known = category < kCategories ? category : 0;
  return worth_[known * kAges + age_of(idle_ms)].load(std::memory_order_relaxed);
}

// Half of the keys, and what was seen of them, are forgotten; the others are seen twice as long.
void ReuseModel::thin_out() {
  ++thinness_;
  for (Entry& entry : entries_) {
    if (!sampled(entry.key_hash)) entry = {};
  }
  for (Observed& one : observed_) {
    for (unsigned a = 0; a < kAges; ++a) {
      one.reused[a] /= 2;
      one.lost[a] /= 2;
    }
  }
}

// Uses, not time, are forgotten: a node that rests learns nothing new.
void ReuseModel::forget(uint32_t now_ms) {
  const double uses = double(uses_ - last_lesson_uses_);
  const double kept = std::exp(-uses / double(kMemoryUses));
  for (Observed& one : observed_) {
    for (unsigned a = 0; a < kAges; ++a) {
      for (double* const seen : {&one.reused[a], &one.lost[a]}) {
        *seen = *seen * kept < kLeastObserved ? 0 : *seen * kept;
      }
    }
  }
  recent_uses_ = kept * recent_uses_ + uses;
  recent_ms_ = kept * recent_ms_ + elapsed_ms(last_lesson_ms_, now_ms);
  last_lesson_uses_ = uses_;
  last_lesson_ms_ = now_ms;
}

void ReuseModel::learn(uint32_t now_ms) {
  next_lesson_ = uses_ + std::max(kLessonUses, std::min(uses_, kMemoryUses) / 32);
  if (entries_.empty()) return;
  forget(now_ms);
  const double evicted_ms = evicted_idle_ms_.load(std::memory_order_relaxed);
  const bool short_memory = lost_ > 0 && lost_ms_ / lost_ < kHorizon * evicted_ms;
  if (short_memory && thinness_ < kThinnestSample) thin_out();
  lost_ms_ = lost_ = 0;

  std::vector<Exposure> exposures(kCategories);
  Exposure everything;
  double observations = 0;
  for (unsigned c = 0; c < kCategories; ++c) {
    const Observed& one = observed_[c];
    exposures[c].reused = one.reused;
    for (unsigned a = 0; a < kAges; ++a) exposures[c].ended[a] = one.reused[a] + one.lost[a];
  }
  for (const Entry& entry : entries_) {
    if (entry.key_hash == 0) continue;
    exposures[entry.category].ended[age_of(elapsed_ms(entry.last_ms, now_ms))] += 1;
  }
  for (const Exposure& one : exposures) {
    for (unsigned a = 0; a < kAges; ++a) {
      everything.reused[a] += one.reused[a];
      everything.ended[a] += one.ended[a];
      observations += one.ended[a];
    }
  }
  if (observations == 0) return;
  const Ages faded = faded_over_ages();
  const double share = kPriorObservations / double(uint64_t{1} << thinness_) / observations;
  for (unsigned c = 0; c < kCategories; ++c) {
    Exposure& one = exposures[c];
    const bool is_known =
        std::any_of(one.ended.begin(), one.ended.end(), [](double count) { return count > 0; });
    if (!is_known && has_lower_rank(c)) {
      publish(c, {});
      continue;
    }
    for (unsigned a = 0; a < kAges; ++a) {
      one.reused[a] += share * everything.reused[a];
      one.ended[a] += share * everything.ended[a];
    }
    publish(c, worths_of(one, faded));
  }
}

// How much of what came to the end of a bucket counts at its beginning, which was the longer ago.
ReuseModel::Ages ReuseModel::faded_over_ages() const {
  const double memory_ms = std::max(1.0, recent_ms_) / recent_uses_ * double(kMemoryUses);
  Ages faded;
  for (unsigned a = 0; a < kAges; ++a) {
    faded[a] = std::exp(-(age_begin_ms(a + 1) - age_begin_ms(a)) / memory_ms);
  }
  return faded;
}

ReuseModel::Worths ReuseModel::worths_of(const Exposure& exposure, const Ages& faded) {
  // at_risk[a]: those that came to bucket a.
  std::array<double, kAges + 1> at_risk;
  at_risk[kAges] = 0;
  for (unsigned a = kAges; a-- > 0;) at_risk[a] = exposure.ended[a] + faded[a] * at_risk[a + 1];
  // alive[a]: the share of keys that have not been used again when bucket a begins.
  std::array<double, kAges + 1> alive;
  alive[0] = 1;
  for (unsigned a = 0; a < kAges; ++a) {
    // Those that end within the bucket otherwise were at risk for half of it.
    const double exposed = at_risk[a] - (exposure.ended[a] - exposure.reused[a]) / 2;
    const double hazard = exposed > 0 ? std::min(1.0, exposure.reused[a] / exposed) : 0;
    alive[a + 1] = alive[a] * (1 - hazard);
  }
  Worths worths;
  for (unsigned a = 0; a < kAges; ++a) {
    double best = 0;
    double time_ms = 0;
    for (unsigned end = a; end + 1 < kAges && alive[a] > 1e-9; ++end) {
      const double width_ms = age_begin_ms(end + 1) - age_begin_ms(end);
      time_ms += width_ms * (alive[end] + alive[end + 1]) / 2;
      if (time_ms <= 0) break;
      best = std::max(best, (alive[a] - alive[end + 1]) / time_ms);
    }
    worths[a] = float(best);
  }
  return worths;
}

void ReuseModel::publish(unsigned category, Worths worths) {
  for (unsigned a = kAges - 1; a-- > 0;) {
    worths[a] = std::max(worths[a], worths[a + 1]);
  }
  for (unsigned a = 0; a < kAges; ++a) {
    std::atomic<float>* const own = &worth_[category * kAges + a];
    if (has_lower_rank(category)) {
      const float below = own[-int{KV_REUSE_RANK} * int{kAges}].load(std::memory_order_relaxed);
      worths[a] = std::max(worths[a], below);
    }
    own->store(worths[a], std::memory_order_relaxed);
  }
}

}  // namespace kvstore
