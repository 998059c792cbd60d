#include "store/scrub.hpp"

#include <algorithm>

#include "index/places.hpp"
#include "layout/object.hpp"
#include "store/operations.hpp"

namespace kvstore {

using layout::Slot;

namespace {

constexpr unsigned kHeadersPerBatch = 64;

// Whether the index leads to the block. Tentative entries for it are emptied: their inserter is
// gone, or will find its commit refused and begin again.
Task<Status> referenced(Channel& channel, uint64_t key_hash, uint64_t address, bool& result) {
  Places places;
  for (unsigned attempt = 0; attempt < 16; ++attempt) {
    if (const Status s =
            co_await read_places(channel.remote, channel.attachment->directory, key_hash, places);
        s != Status::kOk) {
      co_return s;
    }
    for (const CombinedBucket& combined : places.all()) {
      for (unsigned i = 0; i < kSlotsPerCombined; ++i) {
        const Slot slot = combined.slot(i);
        if (slot.address() != address) continue;
        if (!slot.tentative()) {
          result = true;
          co_return Status::kOk;
        }
        kv_op op[1] = {cas_op(combined.slot_offset(i), slot.word, slot.emptied().word)};
        if (const uint32_t s = co_await channel.remote.batch(op); s != KV_FABRIC_OK) {
          co_return from_fabric(s);
        }
        if (op[0].result != slot.word) {
          result = true;  // it has just committed
          co_return Status::kOk;
        }
      }
    }
    const Status confirmed = co_await confirm_headers(channel.remote, places);
    if (confirmed == Status::kOk) {
      result = false;
      co_return Status::kOk;
    }
    if (confirmed != Status::kAbsent) co_return confirmed;
  }
  result = true;  // splits all the time: not now
  co_return Status::kOk;
}

}  // namespace

Task<Status> find_unreferenced(Channel& channel, const Extent& extent, unsigned size_class,
                               const layout::ExtentShape& shape, const std::vector<uint64_t>& skip,
                               std::vector<uint64_t>& dead) {
  const layout::Geometry& geometry = channel.attachment->geometry;
  const uint64_t first = geometry.segment_offset(extent.segment) + shape.first_block_offset;
  const uint64_t block_bytes = layout::class_bytes(size_class);
  dead.assign((shape.blocks + 63) / 64, 0);
  std::vector<layout::ObjectHeader> headers(kHeadersPerBatch);
  std::vector<kv_op> ops;
  for (uint32_t begin = 0; begin < shape.blocks; begin += kHeadersPerBatch) {
    const uint32_t end = std::min(shape.blocks, begin + kHeadersPerBatch);
    ops.clear();
    for (uint32_t i = begin; i < end; ++i) {
      ops.push_back(read_op(first + i * block_bytes, &headers[i - begin], layout::kHeaderBytes));
    }
    if (const uint32_t s = co_await channel.remote.batch(ops); s != KV_FABRIC_OK) {
      co_return from_fabric(s);
    }
    for (uint32_t i = begin; i < end; ++i) {
      const bool skipped = i / 64 < skip.size() && (skip[i / 64] >> (i % 64) & 1) != 0;
      if (skipped) continue;
      const layout::ObjectHeader& header = headers[i - begin];
      const uint64_t address = (first + i * block_bytes) / layout::kUnitBytes;
      bool live = false;
      if (layout::sound(header, address, size_class)) {
        if (const Status s = co_await referenced(channel, header.key_hash, address, live);
            s != Status::kOk) {
          co_return s;
        }
      }
      if (!live) dead[i / 64] |= uint64_t{1} << (i % 64);
    }
  }
  co_return Status::kOk;
}

Task<Status> Scrub::look(Channel& channel) {
  candidates_.clear();
  for (BlockAllocator::ExtentView& view : channel.attachment->allocator.begin_scrub()) {
    Candidate candidate;
    const Status s = co_await find_unreferenced(channel, view.extent, view.size_class, view.shape,
                                                view.free_bits, candidate.dead);
    if (s != Status::kOk) co_return s;
    const bool any = std::any_of(candidate.dead.begin(), candidate.dead.end(),
                                 [](uint64_t word) { return word != 0; });
    if (!any) continue;
    candidate.view = std::move(view);
    candidates_.push_back(std::move(candidate));
  }
  co_return Status::kOk;
}

Task<Status> Scrub::finish(Channel& channel) {
  BlockAllocator& allocator = channel.attachment->allocator;
  // What others gave back in the meantime is free, not dead.
  if (const Status s = co_await allocator.harvest(channel.remote, UINT32_MAX); s != Status::kOk) {
    co_return s;
  }
  for (Candidate& candidate : candidates_) {
    std::vector<uint64_t> skip(candidate.dead.size());
    for (size_t w = 0; w < skip.size(); ++w) skip[w] = ~candidate.dead[w];
    std::vector<uint64_t> still_dead;
    const Status s =
        co_await find_unreferenced(channel, candidate.view.extent, candidate.view.size_class,
                                   candidate.view.shape, skip, still_dead);
    if (s != Status::kOk) co_return s;
    freed_ += allocator.end_scrub(candidate.view.extent.segment, still_dead);
  }
  candidates_.clear();
  co_return Status::kOk;
}

Task<Status> Scrub::advance(Channel& channel, uint64_t global_epoch, uint64_t safe_epoch) {
  if (stage_ == 0) {
    if (!requested_) co_return Status::kOk;
    requested_ = false;
    if (const Status s = co_await look(channel); s != Status::kOk) {
      requested_ = true;
      co_return s;
    }
    if (candidates_.empty()) co_return Status::kOk;
    stage_ = 1;
    until_ = global_epoch + 1;
    co_return Status::kOk;
  }
  if (safe_epoch <= until_) co_return Status::kOk;
  if (stage_ < 3) {
    ++stage_;
    until_ = global_epoch + 1;
    co_return Status::kOk;
  }
  stage_ = 0;
  co_return co_await finish(channel);
}

}  // namespace kvstore
