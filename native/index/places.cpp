#include "index/places.hpp"

#include <algorithm>

#include "base/assert.hpp"
#include "base/variant.hpp"

namespace kvstore {

using layout::BucketHeader;
using layout::DirectoryEntry;
using layout::Slot;

namespace {

// Each attempt that fails has seen a split in progress go on; far fewer happen in a row.
constexpr unsigned kAttemptsMax = 64;

}  // namespace

class PlacesReader {
 public:
  static void aim(Places& places, unsigned index, uint64_t subtable, const Position& position) {
    places.combined_[index].offset = subtable + position.offset_in_subtable();
  }
  static kv_op read(Places& places, unsigned index) {
    CombinedBucket& combined = places.combined_[index];
    return read_op(combined.offset, combined.buckets, layout::kCombinedBytes);
  }
  static void set_plain(Places& places, uint64_t subtable) {
    places.count_ = 2;
    places.subtable_ = subtable;
    places.sibling_ = 0;
  }
  static void set_filling(Places& places, uint64_t subtable, uint64_t sibling) {
    places.count_ = 4;
    places.subtable_ = subtable;
    places.sibling_ = sibling;
  }

  // All four headers of the covering subtable are right for the key.
  static bool covered(const Places& places, uint64_t hash) {
    if (KV_VARIANT(trust_stale_directory)) return true;
    for (const CombinedBucket& combined : places.own()) {
      if (!combined.header(0).covers(hash) || !combined.header(1).covers(hash)) return false;
    }
    return true;
  }
  // The buckets read as the sibling's are: same keys but for the highest bit of the depth, and not
  // of an older generation, which a stale directory may lead to.
  static bool sibling_of(const Places& places, unsigned depth, uint64_t hash) {
    const uint64_t low = hash & ((uint64_t{1} << (depth - 1)) - 1);
    for (unsigned c = 0; c < 2; ++c) {
      for (unsigned b = 0; b < 2; ++b) {
        const BucketHeader header = places.combined_[c].header(b);
        const bool raised = header.depth() == depth;
        if (header.suffix() != low || (!raised && header.depth() + 1 != depth)) return false;
      }
    }
    return true;
  }
  static bool any_filling(const Places& places) {
    for (const CombinedBucket& combined : places.own()) {
      if (combined.header(0).filling() || combined.header(1).filling()) return true;
    }
    return false;
  }
};

uint64_t Places::matches(unsigned fingerprint) const {
  uint64_t numbers = 0;
  unsigned number = 0;
  for (const CombinedBucket& combined : all()) {
    for (const layout::Bucket& bucket : combined.buckets) {
      for (unsigned i = 0; i < layout::kSlotsPerBucket; ++i) {
        const Slot slot{bucket.slots[i]};
        // Hardly any has it, so that is asked first.
        if (slot.fingerprint() == fingerprint && slot.readable()) [[unlikely]]
          numbers |= uint64_t{1} << (number + i);
      }
      number += layout::kSlotsPerBucket;
    }
  }
  return numbers;
}

bool Places::tentative(unsigned fingerprint) const {
  for (const CombinedBucket& combined : all()) {
    for (unsigned i = 0; i < kSlotsPerCombined; ++i) {
      const Slot slot = combined.slot(i);
      if (slot.tentative() && slot.fingerprint() == fingerprint) return true;
    }
  }
  return false;
}

Slot Places::at(uint64_t offset) const {
  for (const CombinedBucket& combined : all()) {
    for (unsigned i = 0; i < kSlotsPerCombined; ++i) {
      if (combined.slot_offset(i) == offset) return combined.slot(i);
    }
  }
  return {};
}

// Of the operations that were posted last.
static void take_results(std::span<const kv_op> posted, std::span<kv_op> last) {
  for (size_t i = 0; i < last.size(); ++i) {
    last[i].result = posted[posted.size() - last.size() + i].result;
  }
}

Task<Status> read_places(Remote& remote, Directory& directory, uint64_t hash, Places& places,
                         std::span<kv_op> first, std::span<kv_op> last) {
  KV_ASSERT(first.size() <= kFirstOpsMax && last.size() <= kLastOpsMax);
  const Positions positions = positions_of(hash);
  kv_op ops[kFirstOpsMax + 4 + kLastOpsMax];
  for (unsigned attempt = 0; attempt < kAttemptsMax; ++attempt) {
    const DirectoryEntry entry = directory.entry_of(hash);
    PlacesReader::set_plain(places, entry.offset());
    unsigned count = 0;
    for (const kv_op& op : first) ops[count++] = op;
    for (unsigned i = 0; i < 2; ++i) {
      PlacesReader::aim(places, i, entry.offset(), positions.at[i]);
      ops[count++] = PlacesReader::read(places, i);
    }
    for (const kv_op& op : last) ops[count++] = op;
    if (const uint32_t s = co_await remote.batch({ops, count}); s != KV_FABRIC_OK) {
      co_return from_fabric(s);
    }
    for (size_t i = 0; i < first.size(); ++i) first[i].result = ops[i].result;
    take_results({ops, count}, last);
    first = {};
    if (!PlacesReader::covered(places, hash)) {
      if (const Status s = co_await directory.refresh(remote); s != Status::kOk) co_return s;
      continue;
    }
    const bool filling = PlacesReader::any_filling(places) && !KV_VARIANT(ignore_sibling);
    if (!filling) co_return Status::kOk;

    // The sibling is where the suffix without its highest bit leads. Entries of both were
    // published before the first header said `filling`.
    const unsigned depth = places.own()[0].header(0).depth();
    if (depth == 0 || directory.depth() < depth) {
      if (const Status s = co_await directory.refresh(remote); s != Status::kOk) co_return s;
      continue;
    }
    const DirectoryEntry sibling = directory.entry_of(hash ^ (uint64_t{1} << (depth - 1)));
    if (sibling.offset() == entry.offset()) {
      if (const Status s = co_await directory.refresh(remote); s != Status::kOk) co_return s;
      continue;
    }
    PlacesReader::set_filling(places, entry.offset(), sibling.offset());
    for (unsigned i = 0; i < 2; ++i) {
      PlacesReader::aim(places, i, sibling.offset(), positions.at[i]);
      PlacesReader::aim(places, i + 2, entry.offset(), positions.at[i]);
    }
    count = 0;
    for (unsigned i = 0; i < 4; ++i) ops[count++] = PlacesReader::read(places, i);
    for (const kv_op& op : last) ops[count++] = op;
    if (const uint32_t s = co_await remote.batch({ops, count}); s != KV_FABRIC_OK) {
      co_return from_fabric(s);
    }
    take_results({ops, count}, last);
    const bool right = PlacesReader::sibling_of(places, depth, hash);
    if (right && PlacesReader::covered(places, hash)) co_return Status::kOk;
    if (right) continue;
    if (const Status s = co_await directory.refresh(remote); s != Status::kOk) co_return s;
  }
  co_return Status::kCorrupt;
}

Task<Status> confirm_absence(Remote& remote, const Places& places, unsigned fingerprint,
                             Newcomers& newcomers, std::span<kv_op> first) {
  KV_ASSERT(first.size() <= 1);
  newcomers.count = 0;
  newcomers.tentative = false;
  const std::span<const CombinedBucket> seen = places.all();
  CombinedBucket again[4];
  HeaderSpan after[4];
  kv_op ops[9];
  unsigned count = 0;
  for (const kv_op& op : first) ops[count++] = op;
  for (size_t i = 0; i < seen.size(); ++i) {
    ops[count++] = read_op(seen[i].offset, again[i].buckets, layout::kCombinedBytes);
  }
  for (size_t i = 0; i < seen.size(); ++i) ops[count++] = after[i].read_of(seen[i]);
  if (const uint32_t s = co_await remote.batch({ops, count}); s != KV_FABRIC_OK) {
    co_return from_fabric(s);
  }
  for (size_t i = 0; i < first.size(); ++i) first[i].result = ops[i].result;
  for (size_t i = 0; i < seen.size(); ++i) {
    if (!after[i].same_as(seen[i])) co_return Status::kAbsent;
    for (unsigned n = 0; n < kSlotsPerCombined; ++n) {
      const Slot slot = again[i].slot(n);
      newcomers.tentative |= slot.tentative() && slot.fingerprint() == fingerprint;
      if (slot == seen[i].slot(n) || !slot.readable() || KV_VARIANT(absent_by_headers)) continue;
      if (slot.fingerprint() != fingerprint) continue;
      newcomers.slots[newcomers.count++] = {seen[i].slot_offset(n), slot};
    }
  }
  co_return Status::kOk;
}

}  // namespace kvstore
