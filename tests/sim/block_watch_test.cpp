// The watch over blocks tells of each misuse, and of nothing else.

#include "sim/block_watch.hpp"

#include <doctest/doctest.h>

#include <cstring>
#include <vector>

#include "node/region.hpp"

namespace kvstore::sim {
namespace {

using layout::SegmentEntry;
using layout::Slot;

// A region with one extent of 64-byte blocks, owned by client 1, and slots of the first subtable.
struct Watched final : BlockUsers {
  Watched() {
    std::string error;
    region = Region::create(layout::kRegionBytesMin, false, error);
    REQUIRE(region);
    geometry = format_region(region->data(), region->bytes(), {1, 1, 0, 0, 500});
    const SegmentEntry head = SegmentEntry{}.successor(SegmentEntry::kObjects, 1, 1, 1);
    set(geometry.entry_offset(kSegment), head.word);
    watch.emplace_back(schedule, region->data(), geometry, 0, *this);
  }
  void set(uint64_t offset, uint64_t word) { std::memcpy(region->data() + offset, &word, 8); }

  uint64_t block(uint32_t index) const {
    const layout::ExtentShape shape = layout::extent_shape(64, 1, geometry.segment_bytes);
    return geometry.segment_offset(kSegment) + shape.first_block_offset + index * 64;
  }
  Slot slot_of(uint32_t index, uint64_t flags = 0) const {
    return Slot{}.successor(7, flags, 1, block(index) / layout::kUnitBytes);
  }
  uint64_t slot_offset() const { return geometry.segment_offset(0) + 8; }
  void write(uint32_t index, uint32_t registration = 1, uint32_t lane = 0) {
    watch.front().written(registration, lane, block(index), 64);
  }
  void swap(Slot before, Slot after) {
    schedule.after(10, nothing, 0);
    schedule.run_next();
    watch.front().swapped(slot_offset(), before.word, after.word);
  }

  uint64_t operation_of(uint32_t, uint32_t registration, uint32_t) override {
    return registration == 1 ? operation : 0;
  }
  std::string holder_since(uint32_t, uint64_t instant_ns) override {
    return held_since_ns < instant_ns ? "somebody" : "";
  }
  void block_misused(const std::string& what) override { violations.push_back(what); }

  struct Nothing final : Timed {
    void fire(uint64_t) override {}
  } nothing;
  static constexpr uint64_t kSegment = 20;
  Schedule schedule{1};
  std::unique_ptr<Region> region;
  layout::Geometry geometry;
  std::vector<BlockWatch> watch;
  uint64_t operation = 5;
  uint64_t held_since_ns = UINT64_MAX;
  std::vector<std::string> violations;
};

}  // namespace

TEST_CASE("block watch: a block that was never published may be written again by its operation") {
  Watched watched;
  watched.write(3);
  watched.write(3);
  CHECK(watched.violations.empty());
}

TEST_CASE("block watch: a block that the index points at is not written to") {
  Watched watched;
  watched.write(3);
  watched.swap({}, watched.slot_of(3));
  watched.write(3);
  REQUIRE(watched.violations.size() == 1);
  CHECK(watched.violations[0].find("the index points at it") != std::string::npos);
}

TEST_CASE("block watch: a move keeps a block in use, a tentative slot does not make it so") {
  Watched watched;
  watched.swap({}, watched.slot_of(3, Slot::kTentative));
  watched.swap(watched.slot_of(3, Slot::kTentative), {});
  watched.write(3);
  CHECK(watched.violations.empty());
  watched.swap({}, watched.slot_of(3));
  watched.swap(watched.slot_of(3), watched.slot_of(3, Slot::kMoving));
  watched.write(3);
  CHECK(watched.violations.size() == 1);
}

TEST_CASE("block watch: a block is not reused while an operation from before its end goes on") {
  Watched watched;
  watched.swap({}, watched.slot_of(3));
  watched.held_since_ns = watched.schedule.now_ns();
  watched.swap(watched.slot_of(3), {});
  watched.write(3);
  REQUIRE(watched.violations.size() == 1);
  CHECK(watched.violations[0].find("somebody") != std::string::npos);
  watched.held_since_ns = UINT64_MAX;
  watched.write(3);
  CHECK(watched.violations.size() == 1);
}

TEST_CASE("block watch: a block has one owner until it is published or its operation ends") {
  Watched watched;
  watched.write(3, 1);
  watched.write(3, 2);
  CHECK(watched.violations.size() == 1);
  Watched ended;
  ended.write(3, 1);
  ended.operation = 6;
  ended.write(3, 2);
  CHECK(ended.violations.empty());
}

TEST_CASE("block watch: free blocks and free segments are not written to") {
  Watched watched;
  watched.set(watched.geometry.segment_offset(Watched::kSegment), uint64_t{1} << 4);
  watched.write(3);
  CHECK(watched.violations.empty());
  watched.write(4);
  CHECK(watched.violations.size() == 1);
  watched.set(watched.geometry.entry_offset(Watched::kSegment), 0);
  watched.write(3);
  CHECK(watched.violations.size() == 2);
}

}  // namespace kvstore::sim
