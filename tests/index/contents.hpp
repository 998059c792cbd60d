// What stands in the index of a region at rest, read past all protocols.

#pragma once

#include <map>
#include <set>

#include "tests/index/fixture.hpp"

namespace kvstore::test {

struct Contents {
  std::map<uint64_t, unsigned> addresses;  // readable slots that point there
  unsigned slots = 0;                      // readable ones
  unsigned moving = 0;
  unsigned tentative = 0;
  unsigned filling = 0;
};

inline void add_group(const FormattedRegion& region, uint64_t group_offset, Contents& contents) {
  for (unsigned b = 0; b < layout::kBucketsPerGroup; ++b) {
    const uint64_t bucket = group_offset + b * layout::kBucketBytes;
    contents.filling += layout::BucketHeader{region.word(bucket)}.filling();
    for (unsigned s = 1; s <= layout::kSlotsPerBucket; ++s) {
      const layout::Slot slot{region.word(bucket + s * 8)};
      if (slot.empty()) continue;
      contents.moving += slot.moving();
      contents.tentative += slot.tentative();
      if (!slot.readable()) continue;
      ++contents.slots;
      ++contents.addresses[slot.address()];
    }
  }
}

inline Contents contents_of(const FormattedRegion& region, const Directory& directory) {
  Contents contents;
  std::set<uint64_t> seen;
  for (uint64_t i = 0; i < directory.size(); ++i) {
    const uint64_t subtable = directory.entry_at(i).offset();
    if (!seen.insert(subtable).second) continue;
    for (unsigned g = 0; g < layout::kGroupsPerSubtable; ++g) {
      add_group(region, subtable + g * layout::kGroupBytes, contents);
    }
  }
  return contents;
}

}  // namespace kvstore::test
