// A memory node of the experiments with locks, and the account of who holds which lock.

#pragma once

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "base/assert.hpp"
#include "lock/baselines/rival.hpp"
#include "node/region.hpp"
#include "node/registry.hpp"
#include "sim/lock_bench.hpp"

namespace kvstore::sim {

struct FreeMemory {
  void operator()(uint8_t* memory) const { std::free(memory); }
};

// A memory node: locks, and behind them a counter for each.
class BenchNode {
 public:
  static constexpr uint64_t kRegionRoomBytes = uint64_t{32} << 20;

  BenchNode(Schedule& schedule, const LockBenchOptions& options, const rivals::Kind* kind,
            uint64_t ring)
      : locks_((options.locks + options.memory_nodes - 1) / options.memory_nodes) {
    if (kind != nullptr) {
      stride_ = (kind->lock_bytes + 7) / 8 * 8;
      data_ = locks_ * stride_;
    } else {
      shape_ = {std::bit_ceil(std::max(locks_, layout::kLockCountMin)), ring};
      data_ = layout::round_up(shape_.bytes() + kRegionRoomBytes, layout::kPageBytes);
    }
    memory_.reset(static_cast<uint8_t*>(std::calloc(data_ + locks_ * 8, 1)));
    KV_ASSERT(memory_ != nullptr);
    if (kind == nullptr) {
      geometry_ = format_region(memory_.get(), data_, {1, 7, 0, 0, 200});
      registry_ = std::make_unique<Registry>(memory_.get(), geometry_);
    } else if (kind->fill != 0) {
      for (uint64_t lock = 0; lock < locks_; ++lock) {
        std::memset(memory_.get() + lock * stride_ + 8, kind->fill, kind->lock_bytes - 8);
      }
    }
    fabric_ =
        std::make_unique<SimNode>(schedule, memory_.get(), data_ + locks_ * 8, options.timing);
  }

  SimNode& fabric() { return *fabric_; }
  Registry& registry() { return *registry_; }
  const layout::Geometry& geometry() const { return geometry_; }
  const layout::LockTableShape& shape() const { return shape_; }
  uint64_t offset(uint64_t number) const { return number * stride_; }
  uint64_t counter_offset(uint64_t number) const { return data_ + number * 8; }
  uint64_t counter(uint64_t number) const {
    uint64_t word = 0;
    std::memcpy(&word, memory_.get() + counter_offset(number), 8);
    return word;
  }

 private:
  const uint64_t locks_;
  uint64_t stride_ = 0;
  uint64_t data_ = 0;
  layout::LockTableShape shape_;
  layout::Geometry geometry_;
  std::unique_ptr<uint8_t[], FreeMemory> memory_;
  std::unique_ptr<Registry> registry_;
  std::unique_ptr<SimNode> fabric_;
};

// Who holds each lock, and how many writers it has had.
class BenchLedger {
 public:
  explicit BenchLedger(uint64_t locks) : locks_(locks) {}

  void granted(uint64_t lock, bool exclusive) {
    Lock& entry = locks_[lock];
    if (entry.writers > 0 || (exclusive && entry.readers > 0)) {
      violate("lock " + std::to_string(lock) + " is held beside a writer");
    }
    ++(exclusive ? entry.writers : entry.readers);
    entry.count += exclusive ? 1 : 0;
  }
  void released(uint64_t lock, bool exclusive) {
    Lock& entry = locks_[lock];
    --(exclusive ? entry.writers : entry.readers);
  }
  // Of a holder that died: `count` is what it has left at the node.
  void died(uint64_t lock, bool exclusive, uint64_t count) {
    released(lock, exclusive);
    if (exclusive) locks_[lock].count = count;
  }
  uint64_t count(uint64_t lock) const { return locks_[lock].count; }
  void violate(const std::string& what) {
    if (violation_.empty()) violation_ = what;
  }
  const std::string& violation() const { return violation_; }

 private:
  struct Lock {
    uint32_t readers = 0;
    uint32_t writers = 0;
    uint64_t count = 0;
  };
  std::vector<Lock> locks_;
  std::string violation_;
};

}  // namespace kvstore::sim
