#include "store/unreferenced.hpp"

#include <algorithm>
#include <bit>

#include "index/places.hpp"
#include "layout/object.hpp"
#include "store/operations.hpp"

namespace kvstore {

using layout::Slot;

namespace {

constexpr unsigned kHeadersPerBatch = 64;
constexpr unsigned kBatchesPerSlice = 8;
constexpr uint64_t kWhileNs = kMillisecond;
constexpr uint64_t kEntriesPerRead = 512;
// Reads of the buckets that a split under way may make vain.
constexpr unsigned kAttemptsMax = 16;

// Whether the index leads to the block. Tentative entries for it are emptied: their inserter is
// gone, or will find its commit refused and begin again.
Task<Status> referenced(Channel& channel, uint64_t key_hash, uint64_t address, bool& result) {
  Places places;
  result = true;  // until it is known to be otherwise
  for (unsigned attempt = 0; attempt < kAttemptsMax; ++attempt) {
    if (const Status s =
            co_await read_places(channel.remote, channel.attachment->directory, key_hash, places);
        s != Status::kOk) {
      co_return s;
    }
    for (const CombinedBucket& combined : places.all()) {
      for (unsigned i = 0; i < kSlotsPerCombined; ++i) {
        const Slot slot = combined.slot(i);
        if (slot.address() != address) continue;
        if (!slot.tentative()) co_return Status::kOk;
        kv_op op[1] = {cas_op(combined.slot_offset(i), slot.word, slot.emptied().word)};
        if (const uint32_t s = co_await channel.remote.batch(op); s != KV_FABRIC_OK) {
          co_return from_fabric(s);
        }
        if (op[0].result != slot.word) co_return Status::kOk;  // it has just committed
      }
    }
    const Status confirmed = co_await confirm_headers(channel.remote, places);
    if (confirmed == Status::kOk) {
      result = false;
      co_return Status::kOk;
    }
    if (confirmed != Status::kAbsent) co_return confirmed;
  }
  co_return Status::kOk;
}

bool has_bit(const std::vector<uint64_t>& bits, uint32_t index) {
  return index / 64 < bits.size() && (bits[index / 64] >> (index % 64) & 1) != 0;
}

// Up to kHeadersPerBatch blocks from `search.next` on; their look-ups overlap.
Task<Status> search_batch(Channel& channel, UnreferencedSearch& search) {
  const uint64_t block_bytes = layout::class_bytes(search.size_class);
  const uint64_t first = channel.attachment->geometry.segment_offset(search.extent.segment) +
                         search.shape.first_block_offset;
  layout::ObjectHeader headers[kHeadersPerBatch];
  uint32_t blocks[kHeadersPerBatch];
  kv_op ops[kHeadersPerBatch];
  unsigned count = 0;
  uint32_t at = search.next;
  for (; at < search.shape.blocks && count < kHeadersPerBatch; ++at) {
    if (has_bit(search.skip, at)) continue;
    ops[count] = read_op(first + at * block_bytes, &headers[count], layout::kHeaderBytes);
    blocks[count++] = at;
  }
  if (count > 0) {
    if (const uint32_t s = co_await channel.remote.batch({ops, count}); s != KV_FABRIC_OK) {
      co_return from_fabric(s);
    }
  }
  bool live[kHeadersPerBatch] = {};
  Status worst = Status::kOk;
  const Remote::FanOut fan_out(channel.remote, kHeadersPerBatch);
  for (unsigned i = 0; i < count;) {
    std::vector<Task<Status>> tasks;
    for (; i < count && tasks.size() < fan_out.width(); ++i) {
      const uint64_t address = (first + blocks[i] * block_bytes) / layout::kUnitBytes;
      if (!layout::sound(headers[i], address, search.size_class)) continue;
      tasks.push_back(referenced(channel, headers[i].key_hash, address, live[i]));
    }
    for (Task<Status>& task : tasks) {
      if (const Status s = co_await task; s != Status::kOk) worst = s;
    }
  }
  if (worst != Status::kOk) co_return worst;
  for (unsigned i = 0; i < count; ++i) {
    if (!live[i]) search.dead[blocks[i] / 64] |= uint64_t{1} << (blocks[i] % 64);
  }
  search.next = at;
  co_return Status::kOk;
}

}  // namespace

uint64_t UnreferencedSearch::dead_blocks() const {
  uint64_t count = 0;
  for (const uint64_t word : dead) count += uint64_t(std::popcount(word));
  return count;
}

void UnreferencedSearch::again() {
  skip.resize(dead.size());
  for (size_t w = 0; w < dead.size(); ++w) skip[w] = ~dead[w];
  std::fill(dead.begin(), dead.end(), 0);
  next = 0;
}

Task<Status> search_slice(Channel& channel, UnreferencedSearch& search) {
  search.dead.resize((search.shape.blocks + 63) / 64);
  for (unsigned batch = 0; batch < kBatchesPerSlice && !search.done(); ++batch) {
    if (const Status s = co_await search_batch(channel, search); s != Status::kOk) co_return s;
  }
  co_return Status::kOk;
}

Task<Status> search_for_a_while(Channel& channel, std::vector<UnreferencedSearch>& searches,
                                size_t& at) {
  const uint64_t until_ns = monotonic_ns() + kWhileNs;
  while (at < searches.size()) {
    if (searches[at].done()) {
      ++at;
      continue;
    }
    if (const Status s = co_await search_slice(channel, searches[at]); s != Status::kOk) {
      co_return s;
    }
    if (monotonic_ns() >= until_ns) co_return Status::kPending;
  }
  co_return Status::kOk;
}

UnreferencedSearch search_of(const layout::Geometry& geometry, uint64_t segment,
                             layout::SegmentEntry head) {
  UnreferencedSearch search;
  // An entry that can't be leaves nothing to be searched.
  const bool possible = head.size_class() != 0 && head.run() != 0 &&
                        segment < geometry.segment_count &&
                        head.run() <= geometry.segment_count - segment;
  if (!possible) return search;
  search.extent = {segment, head.run()};
  search.size_class = head.size_class();
  search.shape = layout::extent_shape(layout::class_bytes(head.size_class()), head.run(),
                                      geometry.segment_bytes);
  return search;
}

Task<Status> read_segment_table(Channel& channel, std::vector<uint64_t>& words) {
  const layout::Geometry& geometry = channel.attachment->geometry;
  words.resize(geometry.segment_count);
  for (uint64_t at = 0; at < words.size(); at += kEntriesPerRead) {
    const uint64_t count = std::min<uint64_t>(kEntriesPerRead, words.size() - at);
    kv_op op[1] = {read_op(geometry.entry_offset(at), words.data() + at, count * 8)};
    if (const uint32_t s = co_await channel.remote.batch(op); s != KV_FABRIC_OK) {
      co_return from_fabric(s);
    }
  }
  co_return Status::kOk;
}

}  // namespace kvstore
