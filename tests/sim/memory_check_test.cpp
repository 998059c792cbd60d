// The account of memory at rest: each kind of wrong is found.

#include "sim/memory_check.hpp"

#include <doctest/doctest.h>

#include <cstring>
#include <memory>
#include <string>

#include "layout/object.hpp"
#include "node/region.hpp"

namespace kvstore::sim {
namespace {

using layout::SegmentEntry;
using layout::Slot;

constexpr uint64_t kSegment = 20;
constexpr unsigned kClass = 2;

// A deserted node: one extent of 128-byte blocks without an owner, in which objects are put.
struct Node {
  Node() {
    std::string error;
    region = Region::create(layout::kRegionBytesMin, false, error);
    REQUIRE(region);
    geometry = format_region(region->data(), region->bytes(), {1, 1, 0, 0, 500});
    shape = layout::extent_shape(layout::class_bytes(kClass), 1, geometry.segment_bytes);
    set_head(SegmentEntry::kAdoptable, 0);
    for (uint32_t i = 0; i < shape.blocks; ++i) set_free(i, true);
  }
  uint64_t word(uint64_t offset) const {
    uint64_t word = 0;
    std::memcpy(&word, region->data() + offset, 8);
    return word;
  }
  void set(uint64_t offset, uint64_t word) { std::memcpy(region->data() + offset, &word, 8); }
  void set_head(SegmentEntry::Kind kind, uint32_t owner) {
    set(geometry.entry_offset(kSegment), SegmentEntry{}.successor(kind, owner, 1, kClass).word);
  }
  void set_free(uint32_t index, bool is_free) {
    const uint64_t at = geometry.segment_offset(kSegment) + index / 64 * 8;
    const uint64_t bit = uint64_t{1} << (index % 64);
    set(at, is_free ? word(at) | bit : word(at) & ~bit);
  }
  uint64_t block(uint32_t index) const {
    return geometry.segment_offset(kSegment) + shape.first_block_offset +
           index * layout::class_bytes(kClass);
  }
  uint64_t slot_offset(unsigned slot) const { return geometry.segment_offset(0) + 8 + slot * 8; }
  void point(unsigned slot, uint32_t index, uint64_t flags = 0) {
    const uint64_t address = block(index) / layout::kUnitBytes;
    set(slot_offset(slot), Slot{}.successor(7, flags, kClass, address).word);
  }
  void put(unsigned slot, uint32_t index, const std::string& key) {
    layout::ObjectHeader header{};
    header.key_bytes = uint16_t(key.size());
    header.address_generation = block(index) / layout::kUnitBytes;
    layout::seal(header);
    std::memcpy(region->data() + block(index), &header, sizeof header);
    std::memcpy(region->data() + block(index) + sizeof header, key.data(), key.size());
    set_free(index, false);
    point(slot, index);
  }
  IndexView index() const { return IndexView(region->data(), geometry); }

  std::unique_ptr<Region> region;
  layout::Geometry geometry;
  layout::ExtentShape shape;
};

}  // namespace

TEST_CASE("memory check: objects, and everything else free") {
  Node node;
  node.put(0, 5, "one");
  node.put(1, 6, "two");
  CHECK(node.index().check(true) == "");
  CHECK(check_deserted(node.index()) == "");
}

TEST_CASE("memory check: a leaked block, and a free block that the index points at") {
  Node node;
  node.put(0, 5, "one");
  node.set_free(9, false);
  CHECK(check_deserted(node.index()).find("leaked") != std::string::npos);
  node.set_free(9, true);
  node.set_free(5, true);
  CHECK(check_deserted(node.index()).find("free block") != std::string::npos);
}

TEST_CASE("memory check: an extent of somebody who is gone") {
  Node node;
  node.set_head(SegmentEntry::kObjects, 3);
  CHECK(check_deserted(node.index()).find("gone") != std::string::npos);
  node.set_head(SegmentEntry::kClaiming, 3);
  CHECK(check_deserted(node.index()).find("gone") != std::string::npos);
}

TEST_CASE("memory check: slots that must not be") {
  Node node;
  node.put(0, 5, "one");
  node.point(1, 5);
  CHECK(node.index().check(true).find("two slots") != std::string::npos);
  node.put(1, 6, "one");
  CHECK(node.index().check(true).find("two objects") != std::string::npos);
  node.point(1, 6, Slot::kTentative);
  CHECK(node.index().check(true).find("tentative") != std::string::npos);
  node.point(1, 6, Slot::kMoving);
  CHECK(node.index().check(true).find("moving") != std::string::npos);
  node.put(1, 6, "two");
  node.region->data()[node.block(6) + 16] ^= 1;
  CHECK(node.index().check(true).find("no object") != std::string::npos);
}

TEST_CASE("memory check: a bucket that waits to be filled") {
  Node node;
  node.set(node.geometry.segment_offset(0), layout::BucketHeader::make(0, 0, true).word);
  CHECK(node.index().check(true).find("split") != std::string::npos);
  CHECK(node.index().check(false) == "");
}

TEST_CASE("memory check: the extents of a live client") {
  Node node;
  node.put(0, 5, "one");
  node.set_head(SegmentEntry::kObjects, 3);
  for (uint32_t i = 0; i < node.shape.blocks; ++i) node.set_free(i, false);
  BlockAllocator::ExtentView view{{kSegment, 1}, kClass, 1, node.shape, {}};
  view.free_bits.assign((node.shape.blocks + 63) / 64, 0);
  for (uint32_t i = 0; i < node.shape.blocks; ++i) {
    if (i != 5) view.free_bits[i / 64] |= uint64_t{1} << (i % 64);
  }
  CHECK(check_extents(node.index(), 3, {&view, 1}) == "");
  CHECK(check_extents(node.index(), 4, {&view, 1}).find("not its own") != std::string::npos);
  view.free_bits[0] ^= uint64_t{1} << 9;
  CHECK(check_extents(node.index(), 3, {&view, 1}).find("leaked") != std::string::npos);
  node.set_free(9, true);
  CHECK(check_extents(node.index(), 3, {&view, 1}) == "");
  node.set_free(10, true);
  CHECK(check_extents(node.index(), 3, {&view, 1}).find("free twice") != std::string::npos);
}

}  // namespace kvstore::sim
