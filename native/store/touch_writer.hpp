// Turns uses of keys into the WRITEs and FAAs that bring them into the eviction metadata, and tells
// the reuse model of them. Of the service thread.

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "api/kvstore.h"
#include "fabric/remote.hpp"
#include "layout/layout.hpp"
#include "store/attachment.hpp"
#include "store/eviction_policy.hpp"
#include "store/lane.hpp"

namespace kvstore {

class TouchWriter {
 public:
  explicit TouchWriter(Attachment& attachment) : attachment_(attachment) {}

  // Adds operations for what is in a ring; true if it holds more than there is room for. The
  // operations refer to this object until `clear`.
  bool take(TouchRing& ring, std::vector<kv_op>& ops) {
    Touch touch;
    while (count_ < kTouches) {
      if (!ring.pop(touch)) return false;
      if (touch.incarnation == attachment_.superblock.incarnation) add(touch, ops);
    }
    return true;
  }
  void clear() { count_ = 0; }

 private:
  // Three operations at most come from one: together they are within every fabric's batch.
  static constexpr unsigned kTouches = 200;
  static_assert(3 * kTouches < KV_FABRIC_BATCH_OPS_LEAST);

  void add(const Touch& touch, std::vector<kv_op>& ops) {
    const uint32_t policy = attachment_.superblock.eviction;
    layout::EvictionMetadata& metadata = metadata_[count_++];
    metadata = told_metadata(touch.reuse, touch.when_ms);
    if (touch.pin_s != 0) {
      const uint64_t until_s = attachment_.node_clock_at_ms(monotonic_ns()) / 1000 + touch.pin_s;
      // 0 says that there is no pin.
      metadata.pinned_until_s = uint16_t(until_s) == 0 ? 1 : uint16_t(until_s);
      ops.push_back(
          write_op(touch.metadata_offset + offsetof(layout::EvictionMetadata, pinned_until_s),
                   &metadata.pinned_until_s, sizeof metadata.pinned_until_s));
      return;
    }
    if (policy == KV_EVICTION_ADAPTIVE) {
      attachment_.reuse.used(
          touch.key_hash,
          touch.reuse != 0 || touch.written ? metadata.category : ReuseModel::kSameCategory,
          touch.when_ms);
    }
    const uint64_t bytes = touch.written      ? sizeof metadata
                           : touch.reuse != 0 ? offsetof(layout::EvictionMetadata, insert_ms)
                                              : sizeof metadata.last_access_ms;
    ops.push_back(write_op(touch.metadata_offset, &metadata, bytes));
    const bool counts = policy == KV_EVICTION_LFU || policy == KV_EVICTION_GDSF;
    if (counts && !touch.written) {
      ops.push_back(faa_op(touch.metadata_offset + offsetof(layout::EvictionMetadata, insert_ms),
                           layout::kOneRead));
    }
  }
  Attachment& attachment_;
  unsigned count_ = 0;
  std::array<layout::EvictionMetadata, kTouches> metadata_;  // not initialised
};

}  // namespace kvstore
