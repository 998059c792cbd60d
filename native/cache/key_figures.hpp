// What became of the copies of single keys, for people who ask why a key is served from a copy or
// is not. Nothing is decided by it.
//
// A table of a few thousand lines, one a key, in which newer keys displace older ones: a key's
// figures begin anew when it comes back. Any thread; what threads do to one line at once may be
// lost, or go to the key that displaces another just then.

#pragma once

#include <array>
#include <atomic>
#include <cstdint>

#include "base/table.hpp"

namespace kvstore {

class KeyFigures {
 public:
  enum What : unsigned { kHits, kFills, kSpoiled, kInvalidated, kOverwritten, kBypassed, kWhats };
  // What the last read that might have made a copy found in the way.
  enum class Obstacle : uint32_t { kNone, kTooLarge, kMortal };
  using Counts = std::array<uint32_t, kWhats>;

  KeyFigures() : lines_(kLines) {}

  void note(uint64_t hash, What what, uint32_t times = 1) {
    std::atomic<uint32_t>& count = line_for(hash).counts[what];
    count.store(count.load(std::memory_order_relaxed) + times, std::memory_order_relaxed);
  }
  void note(uint64_t hash, Obstacle obstacle) {
    line_for(hash).obstacle.store(uint32_t(obstacle), std::memory_order_relaxed);
  }
  void prefetch(uint64_t hash) const { __builtin_prefetch(&lines_[number_of(hash)], 1); }
  // It is in the way no more, if it was.
  void forget(uint64_t hash, Obstacle obstacle) {
    Line& line = lines_[number_of(hash)];
    if (line.hash.load(std::memory_order_relaxed) != hash) return;
    if (line.obstacle.load(std::memory_order_relaxed) != uint32_t(obstacle)) return;
    line.obstacle.store(uint32_t(Obstacle::kNone), std::memory_order_relaxed);
  }
  Obstacle read(uint64_t hash, Counts& counts) const {
    const Line& line = lines_[number_of(hash)];
    counts = {};
    if (line.hash.load(std::memory_order_relaxed) != hash) return Obstacle::kNone;
    for (unsigned i = 0; i < kWhats; ++i) {
      counts[i] = line.counts[i].load(std::memory_order_relaxed);
    }
    return Obstacle(line.obstacle.load(std::memory_order_relaxed));
  }

 private:
  static constexpr uint64_t kLines = 1 << 13;
  struct Line {
    std::atomic<uint64_t> hash{0};
    std::array<std::atomic<uint32_t>, kWhats> counts{};
    std::atomic<uint32_t> obstacle{0};
  };

  static uint64_t number_of(uint64_t hash) {
    return (hash * 0x9e3779b97f4a7c15ull) >> 40 & (kLines - 1);
  }
  Line& line_for(uint64_t hash) {
    Line& line = lines_[number_of(hash)];
    if (line.hash.load(std::memory_order_relaxed) == hash) return line;
    for (std::atomic<uint32_t>& count : line.counts) count.store(0, std::memory_order_relaxed);
    line.obstacle.store(0, std::memory_order_relaxed);
    line.hash.store(hash, std::memory_order_relaxed);
    return line;
  }

  const Table<Line> lines_;
};

}  // namespace kvstore
