// The buckets in which a key can be, as read from the node.
//
// Normally two combined buckets. While a split is filling the key's subtable, the two of the
// sibling come first: an entry leaves the old place only after it stands in the new one, so a
// reader that looks at the old place first cannot miss it.

#pragma once

#include <bit>
#include <cstdint>
#include <span>

#include "base/status.hpp"
#include "coro/task.hpp"
#include "fabric/remote.hpp"
#include "index/directory.hpp"
#include "index/key.hpp"
#include "layout/layout.hpp"

namespace kvstore {

struct CombinedBucket {
  uint64_t offset = 0;  // of its first bucket, in the region
  layout::Bucket buckets[2];

  layout::BucketHeader header(unsigned bucket) const {
    return layout::BucketHeader{buckets[bucket].header};
  }
  layout::Slot slot(unsigned index) const {
    return layout::Slot{
        buckets[index / layout::kSlotsPerBucket].slots[index % layout::kSlotsPerBucket]};
  }
  uint64_t slot_offset(unsigned index) const {
    return offset + index / layout::kSlotsPerBucket * layout::kBucketBytes + 8 +
           index % layout::kSlotsPerBucket * 8;
  }
};
inline constexpr unsigned kSlotsPerCombined = 2 * layout::kSlotsPerBucket;

struct SlotRef {
  uint64_t offset = 0;
  layout::Slot slot;
};

class Places {
 public:
  // The combined buckets, those of a sibling first.
  std::span<const CombinedBucket> all() const { return {combined_, count_}; }
  // Those of the subtable that covers the key: where an insert may go.
  std::span<const CombinedBucket> own() const { return {combined_ + count_ - 2, 2}; }
  bool filling() const { return count_ == 4; }
  // The slot at this offset in the region; an empty one if it is not among them.
  layout::Slot at(uint64_t offset) const;
  uint64_t subtable() const { return subtable_; }  // offset of the covering subtable
  uint64_t sibling() const { return sibling_; }    // while filling

  // Slots that a reader may follow and that carry the fingerprint: bit n for the slot with that
  // number in reading order.
  uint64_t matches(unsigned fingerprint) const;
  SlotRef numbered(unsigned number) const {
    const CombinedBucket& combined = combined_[number / kSlotsPerCombined];
    const unsigned index = number % kSlotsPerCombined;
    return SlotRef{combined.slot_offset(index), combined.slot(index)};
  }
  // Whether somebody may be about to insert a key with this fingerprint.
  bool tentative(unsigned fingerprint) const;

 private:
  friend class PlacesReader;
  CombinedBucket combined_[4];
  unsigned count_ = 2;
  uint64_t subtable_ = 0;
  uint64_t sibling_ = 0;
};

inline constexpr unsigned kMatchesMax = 4 * kSlotsPerCombined;
static_assert(kMatchesMax <= 64);

// Takes the lowest number out of a set that is not empty.
inline unsigned take_lowest(uint64_t& numbers) {
  const unsigned lowest = unsigned(std::countr_zero(numbers));
  numbers &= numbers - 1;
  return lowest;
}

inline constexpr unsigned kFirstOpsMax = 4;
inline constexpr unsigned kLastOpsMax = 4;

// Reads the places of `hash`. `first`, at most kFirstOpsMax, is posted ahead of the READs, in the
// same batch, once; `last`, at most kLastOpsMax, behind them, each time: what it reads is no older
// than what `places` holds at the end.
Task<Status> read_places(Remote& remote, Directory& directory, uint64_t hash, Places& places,
                         std::span<kv_op> first = {}, std::span<kv_op> last = {});

// Slots with a fingerprint that a second look at the places has found.
struct Newcomers {
  SlotRef slots[kMatchesMax];  // readable, and not there at the first look
  unsigned count = 0;
  bool tentative = false;  // somebody may be about to insert the key
};

// Reads the places again, and after them their headers. kOk: of the slots that were not there at
// the first look only `newcomers` can lead to the key; if none of them does, it is absent. kAbsent:
// a header has changed, so that an entry may have been carried past the reader; look again.
// `first`, one at most, goes ahead, and knows its result then.
//
// A slot is known to belong to a header only if it was read between two readings of that header. In
// `places` both came by one READ, which may have brought the slots before the headers: from before
// the entry was carried there, and yet with a header that calls the bucket filled.
Task<Status> confirm_absence(Remote& remote, const Places& places, unsigned fingerprint,
                             Newcomers& newcomers, std::span<kv_op> first = {});

// Both headers of a combined bucket and what is between them.
struct HeaderSpan {
  uint64_t words[layout::kBucketBytes / 8 + 1];

  kv_op read_of(const CombinedBucket& combined) {
    return read_op(combined.offset, words, sizeof words);
  }
  bool same_as(const CombinedBucket& combined) const {
    return words[0] == combined.buckets[0].header &&
           words[layout::kBucketBytes / 8] == combined.buckets[1].header;
  }
};

}  // namespace kvstore
