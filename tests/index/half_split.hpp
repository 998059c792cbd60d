// An index in the middle of a split.

#pragma once

#include "tests/index/full_subtable.hpp"

namespace kvstore::test {

// The one that tests look at.
inline constexpr unsigned kHalfSplitGroup = 17;

// The directory shows the new subtable, and nothing has been carried yet.
class HalfSplit {
 public:
  HalfSplit() {
    const Snapshot fresh(full.region);
    bool shown = false;
    for (uint64_t batches = 8; !shown; ++batches) {
      KV_ASSERT(batches < 64);
      fresh.restore();
      RawClient splitter(full.region, 1);
      splitter.fault = {batches, 0, {}};
      KV_ASSERT(splitter.split(full.keys[full.count].hash) == Status::kNodeUnreachable);
      Directory& seen = full.client.directory;
      KV_ASSERT(full.client.run([&] { return seen.refresh(full.client.remote); }) == Status::kOk);
      shown = seen.depth() == 1 && seen.entry_at(0) != seen.entry_at(1);
    }
    source = full.client.directory.entry_at(0).offset();
    target = full.client.directory.entry_at(1).offset();
    for (const uint64_t at : {in_source(), in_target()}) {
      const uint8_t* bytes = full.region.data() + at;
      saved_.insert(saved_.end(), bytes, bytes + layout::kGroupBytes);
    }
  }

  uint64_t in_source() const { return source + kHalfSplitGroup * layout::kGroupBytes; }
  uint64_t in_target() const { return target + kHalfSplitGroup * layout::kGroupBytes; }
  void restore() {
    std::memcpy(full.region.data() + in_source(), saved_.data(), layout::kGroupBytes);
    std::memcpy(full.region.data() + in_target(), saved_.data() + layout::kGroupBytes,
                layout::kGroupBytes);
  }
  Status carry(RawClient& client) {
    return client.run([&] {
      return carry_group(client.remote, full.region.geometry(), source, target, kHalfSplitGroup,
                         monotonic_ns() + kSecond);
    });
  }
  Contents contents() const {
    Contents both;
    add_group(full.region, in_source(), both);
    add_group(full.region, in_target(), both);
    return both;
  }
  static uint64_t slot_offset(uint64_t group_offset, unsigned i) {
    return group_offset + i / 7 * layout::kBucketBytes + 8 + i % 7 * 8;
  }
  layout::Slot slot(uint64_t group_offset, unsigned i) const {
    return layout::Slot{full.region.word(slot_offset(group_offset, i))};
  }
  void set_slot(uint64_t group_offset, unsigned i, layout::Slot slot) {
    std::memcpy(full.region.data() + slot_offset(group_offset, i), &slot.word, 8);
  }

  FullSubtable full;
  uint64_t source = 0;
  uint64_t target = 0;

 private:
  std::vector<uint8_t> saved_;
};

}  // namespace kvstore::test
