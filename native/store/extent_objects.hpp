// Going through the objects of an extent: reading the headers of its blocks, and one step for each
// of them.

#pragma once

#include <cstdint>
#include <vector>

#include "fabric/overlapped.hpp"
#include "layout/object.hpp"
#include "store/lane.hpp"

namespace kvstore {

struct ExtentBlocks {
  Extent extent;
  unsigned size_class = 0;
  layout::ExtentShape shape{};
  std::vector<uint64_t> skip;  // bitmap of blocks that are not looked at
  uint32_t next = 0;           // the first block that has not been looked at

  bool done() const { return next >= shape.blocks; }
  bool skips(uint32_t block) const {
    return block / 64 < skip.size() && (skip[block / 64] >> (block % 64) & 1) != 0;
  }
};

// A block and what its header says; `sound` if that can be an object's at this address.
struct BlockHeader {
  uint32_t block;
  uint64_t address;
  uint64_t key_hash;
  bool sound;
};

// Reads the headers of up to 64 blocks from `blocks.next` on and runs `visit` on each, a
// Task<Status> of a BlockHeader; their round trips overlap. `next` goes on only if all went well.
template <class Visit>
Task<Status> visit_blocks(Channel& channel, ExtentBlocks& blocks, const Visit& visit) {
  constexpr unsigned kAtOnce = 64;
  const uint64_t block_bytes = layout::class_bytes(blocks.size_class);
  const uint64_t first = channel.attachment->geometry.segment_offset(blocks.extent.segment) +
                         blocks.shape.first_block_offset;
  layout::ObjectHeader headers[kAtOnce];
  BlockHeader found[kAtOnce];
  kv_op ops[kAtOnce];
  unsigned count = 0;
  uint32_t at = blocks.next;
  for (; at < blocks.shape.blocks && count < kAtOnce; ++at) {
    if (blocks.skips(at)) continue;
    const uint64_t offset = first + at * block_bytes;
    found[count] = {at, offset / layout::kUnitBytes, 0, false};
    ops[count] = read_op(offset, &headers[count], layout::kHeaderBytes);
    ++count;
  }
  if (count > 0) {
    if (const uint32_t s = co_await channel.remote.batch({ops, count}); s != KV_FABRIC_OK) {
      co_return from_fabric(s);
    }
  }
  for (unsigned i = 0; i < count; ++i) {
    found[i].sound = layout::sound(headers[i], found[i].address, blocks.size_class);
    found[i].key_hash = headers[i].key_hash;
  }
  const auto step = [&](size_t i) { return visit(found[i]); };
  const Status s = co_await overlapped(channel.remote, count, kAtOnce, step);
  if (s == Status::kOk) blocks.next = at;
  co_return s;
}

// The blocks of an extent of the segment table; none if its head entry says what cannot be.
inline ExtentBlocks blocks_of(const layout::Geometry& geometry, uint64_t segment,
                              layout::SegmentEntry head) {
  return {{segment, head.run()}, head.size_class(), geometry.shape_of(segment, head), {}, 0};
}

}  // namespace kvstore
