// An index at the moment when its only subtable must split.

#pragma once

#include "tests/index/contents.hpp"

namespace kvstore::test {

// A copy of a region's bytes, to begin again from.
class Snapshot {
 public:
  explicit Snapshot(const FormattedRegion& region)
      : region_(region), bytes_(region.data(), region.data() + region.bytes()) {}
  void restore() const { std::memcpy(region_.data(), bytes_.data(), bytes_.size()); }

 private:
  const FormattedRegion& region_;
  std::vector<uint8_t> bytes_;
};

// A region whose only subtable is full, and the key that would not go in any more.
struct FullSubtable {
  FormattedRegion region{uint64_t{8} << 20};
  KeySet keys{7200};
  Entries entries{region};
  RawClient client{region, 1};
  uint64_t count = 0;

  FullSubtable() {
    for (; count < keys.size(); ++count) {
      const uint64_t address = entries.write_object(client, keys[count]);
      const layout::Slot slot = layout::Slot{}.successor(0, 0, Entries::kClass, address);
      if (entries.try_insert(client, keys[count], slot) != InsertOutcome::kInserted) break;
    }
    KV_ASSERT(count > 3000 && count < keys.size());
  }
};

}  // namespace kvstore::test
