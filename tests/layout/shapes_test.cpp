// Sizes and places: classes of blocks, where values stand, extents, the geometry of regions, and
// headers that verify only where they are whole.

#include <doctest/doctest.h>

#include <cstring>
#include <string>

#include "layout/object.hpp"

namespace kvstore::layout {
namespace {

constexpr uint64_t kGiB = uint64_t{1} << 30;

ObjectHeader sealed_header(uint64_t address, uint64_t key_bytes, uint64_t value_bytes) {
  ObjectHeader header{};
  header.key_bytes = uint16_t(key_bytes);
  header.value_bytes = value_bytes;
  header.key_hash = 0x0123456789abcdef;
  header.version = make_version(5, 6);
  header.address_generation = address;
  seal(header);
  return header;
}

}  // namespace

TEST_CASE("layout: every size has the smallest class that holds it") {
  CHECK(class_of(0) == 0);
  for (unsigned c = 1; c < kSizeClasses; ++c) {
    CAPTURE(c);
    const uint64_t bytes = class_bytes(c);
    REQUIRE(bytes % kUnitBytes == 0);
    REQUIRE(bytes > class_bytes(c - 1));
    REQUIRE(class_of(bytes) == c);
    REQUIRE(class_of(class_bytes(c - 1) + 1) == c);
    REQUIRE(class_of(bytes + 1) == (c + 1 < kSizeClasses ? c + 1 : 0));
    // Below eight units the unit itself is the step.
    if (c >= 8 && c + 1 < kSizeClasses) REQUIRE((class_bytes(c + 1) - bytes) * 8 <= bytes);
  }
  CHECK(class_of(UINT64_MAX / 2) == 0);
  for (uint64_t bytes = 64; bytes <= kGiB; bytes *= 2) {
    for (const uint64_t near : {bytes - 1, bytes, bytes + 1}) {
      CAPTURE(near);
      const unsigned c = class_of(near);
      REQUIRE(c > 0);
      REQUIRE(class_bytes(c) >= near);
      REQUIRE(class_bytes(c - 1) < near);
    }
  }
}

TEST_CASE("layout: an object fits its class and no smaller one") {
  for (const uint64_t key_bytes : {1, 16, 80, 81, 1023, 1024}) {
    uint64_t value_bytes = 0;
    for (; value_bytes <= kGiB; value_bytes += 1 + value_bytes / 7) {
      CAPTURE(key_bytes);
      CAPTURE(value_bytes);
      const unsigned c = object_class(key_bytes, value_bytes);
      REQUIRE(c > 0);
      const uint64_t at = value_offset(c, key_bytes);
      REQUIRE(at >= kHeaderBytes + key_bytes);
      REQUIRE(at + value_bytes <= class_bytes(c));
      if (c > kLinearClasses) {
        REQUIRE(at % kUnitBytes == 0);
      } else {
        REQUIRE(at == kHeaderBytes + key_bytes);
      }
      if (c > 1) REQUIRE(value_offset(c - 1, key_bytes) + value_bytes > class_bytes(c - 1));
    }
  }
  // Values of a power of two with keys of up to 80 bytes waste nothing.
  for (uint64_t value_bytes = 4096; value_bytes <= kGiB; value_bytes *= 2) {
    CHECK(class_bytes(object_class(80, value_bytes)) == value_bytes + kHeaderRoomBytes);
  }
  CHECK(object_class(16, uint64_t{1} << 40) == 0);
}

TEST_CASE("layout: an object with a fence has room for it, aligned, behind its value") {
  for (const uint64_t key_bytes : {1, 16, 81, 1024}) {
    for (uint64_t value_bytes = 0; value_bytes <= kGiB; value_bytes += 1 + value_bytes / 7) {
      CAPTURE(key_bytes);
      CAPTURE(value_bytes);
      const unsigned c = object_class(key_bytes, value_bytes, true);
      REQUIRE(c > 0);
      const uint64_t at = extension_offset(c, key_bytes, value_bytes);
      REQUIRE(at % 8 == 0);
      REQUIRE(at >= value_offset(c, key_bytes) + value_bytes);
      REQUIRE(at + sizeof(FenceExtension) <= class_bytes(c));
    }
  }
}

TEST_CASE("layout: fences of one lock are ordered, by era before token") {
  const auto fence = [](uint64_t name, uint64_t era, uint64_t token) {
    return Fence{FenceLock::make(name, era).word, token};
  };
  CHECK(fence(1, 5, 7).same_lock(fence(1, 6, 2)));
  CHECK(!fence(1, 5, 7).same_lock(fence(2, 5, 7)));
  CHECK(!fence(1, 5, 7).same_lock(Fence{0, 7}));
  CHECK(fence(1, 5, 7).is_older_than(fence(1, 5, 8)));
  CHECK(!fence(1, 5, 7).is_older_than(fence(1, 5, 7)));
  CHECK(fence(1, 5, 7).is_older_than(fence(1, 6, 2)));
  CHECK(!fence(1, 6, 2).is_older_than(fence(1, 5, 7)));
  CHECK(Fence{0, 1}.is_older_than(Fence{0, 2}));
}

TEST_CASE("layout: the blocks of an extent lie behind its bitmap and inside it") {
  for (const uint64_t segment_bytes : {kSegmentBytesMin, 4 * kSegmentBytesMin}) {
    for (unsigned c = 1; c < kSizeClasses; ++c) {
      const uint64_t block_bytes = class_bytes(c);
      for (const uint32_t run : {1u, 2u, 3u, 15u, 16u, 17u, 31u, 256u, 20000u}) {
        CAPTURE(c);
        CAPTURE(run);
        const ExtentShape shape = extent_shape(block_bytes, run, segment_bytes);
        REQUIRE(shape.segments == run);
        if (!shares_extent(block_bytes, segment_bytes)) {
          REQUIRE(shape.blocks == 1);
          REQUIRE(shape.first_block_offset == 0);
          continue;
        }
        const uint64_t bytes = run * segment_bytes;
        if (shape.blocks > 0) {
          REQUIRE(shape.first_block_offset * 8 >= shape.blocks);
          REQUIRE(shape.first_block_offset % kUnitBytes == 0);
          REQUIRE(shape.first_block_offset + shape.blocks * block_bytes <= bytes);
        }
        // One block more would not fit.
        const uint64_t more = uint64_t{shape.blocks} + 1;
        REQUIRE((more + 511) / 512 * 64 + more * block_bytes > bytes);
      }
    }
  }
}

TEST_CASE("layout: the parts of a region follow one another and end with it") {
  for (uint64_t bytes = kRegionBytesMin; bytes <= uint64_t{1} << 46; bytes += bytes / 3 + 4096) {
    CAPTURE(bytes);
    const Geometry g = make_geometry(bytes);
    REQUIRE(g.registry_offset == kClientLinesOffset + kClientsMax * kLineBytes);
    REQUIRE(g.postboxes_offset == g.registry_offset + kClientsMax * kLineBytes);
    REQUIRE(g.directory_offset == g.postboxes_offset + kClientsMax * kLineBytes);
    REQUIRE(g.present_records_offset ==
            g.directory_offset + (uint64_t{8} << g.directory_depth_max));
    REQUIRE(g.absent_records_offset == g.present_records_offset + g.record_count * 8);
    REQUIRE(g.segment_table_offset >= g.absent_records_offset + g.record_count * 8);
    REQUIRE(g.first_segment_offset >= g.segment_table_offset + g.segment_count * 8);
    REQUIRE(g.first_segment_offset % kPageBytes == 0);
    REQUIRE(g.segment_offset(g.segment_count) <= bytes);
    REQUIRE(g.segment_offset(g.segment_count) + g.segment_bytes + kPageBytes + 8 > bytes);
    REQUIRE(g.segment_count <= kSegmentsMax);
    REQUIRE(std::has_single_bit(g.record_count));
    REQUIRE(g.directory_depth_max <= 32);
    // Addresses of the last block still fit their field, and the directory holds every subtable.
    REQUIRE(bytes / kUnitBytes <= kAddressMask + 1);
    REQUIRE((uint64_t{1} << g.directory_depth_max) * kSubtableBytes > bytes);
  }
}

TEST_CASE("layout: a slot may point only at whole blocks inside the segments") {
  const Geometry g = make_geometry(uint64_t{32} << 20);
  const uint64_t end = g.segment_offset(g.segment_count);
  CHECK(g.holds_block(g.first_segment_offset, 1));
  CHECK(g.holds_block(end - 64, 1));
  CHECK(!g.holds_block(g.first_segment_offset, 0));
  CHECK(!g.holds_block(g.first_segment_offset - 64, 1));
  CHECK(!g.holds_block(end - 64, 2));
  CHECK(!g.holds_block(end, 1));
  CHECK(!g.holds_block(kAddressMask * kUnitBytes, 1));
  CHECK(!g.holds_block(g.first_segment_offset, kSizeClasses - 1));
  CHECK(g.segment_of(g.segment_offset(3) + g.segment_bytes - 1) == 3);
}

TEST_CASE("layout: a header verifies only at its place, in its block, and whole") {
  const uint64_t address = 0x123456;
  const ObjectHeader header = sealed_header(address, 10, 70);
  REQUIRE(sound(header, address, 2));
  CHECK(!sound(header, address + 1, 2));
  CHECK(!sound(header, address, 1));  // the value would leave the block
  CHECK(!sound(sealed_header(address, 0, 70), address, 2));
  CHECK(!sound(sealed_header(address, 1025, 0), address, 60));
  CHECK(!sound(sealed_header(address, 10, UINT64_MAX - 57), address, 2));
  for (unsigned bit = 0; bit < 8 * sizeof header; ++bit) {
    uint8_t bytes[sizeof header];
    std::memcpy(bytes, &header, sizeof header);
    bytes[bit / 8] = uint8_t(bytes[bit / 8] ^ 1u << bit % 8);
    CAPTURE(bit);
    REQUIRE(!sound(load_header(bytes), address, 2));
  }
}

}  // namespace kvstore::layout
