#include "fabric/cpu/tcp_gather.hpp"

#include <algorithm>
#include <cstring>

#include "base/assert.hpp"
#include "base/crc32c.hpp"

namespace kvstore {

namespace {

constexpr size_t kArenaBytes = 128 * 1024;
constexpr size_t kGatherBytes = 256 * 1024;
// A payload of at most this many bytes is cheaper to copy than to describe to the kernel.
constexpr uint64_t kCopyBytesMax = 2048;

static_assert(frame::kMaxRequestHeadBytes + 2 * frame::kAlignment <= kArenaBytes,
              "an empty arena takes the head of any request");
static_assert((frame::kMaxOutstanding & (frame::kMaxOutstanding - 1)) == 0);

constexpr uint64_t kNotEncoded = UINT64_MAX;

size_t slot_of(const kv_batch& batch) {
  return batch.sequence % frame::kMaxOutstanding;
}

}  // namespace

RequestGather::RequestGather() : arena_(new uint8_t[kArenaBytes]) {}

void RequestGather::enqueue(kv_batch* batch, bool well_formed) {
  request_end_[slot_of(*batch)] = kNotEncoded;
  if (closed_ || ill_formed_ != nullptr) return;
  if (!well_formed) ill_formed_ = batch;
  if (batch_ != nullptr) return;
  batch_ = batch;
  head_done_ = false;
}

bool RequestGather::fully_sent(const kv_batch& batch) const {
  return request_end_[slot_of(batch)] <= stream_sent_;
}

bool RequestGather::arena_has(size_t bytes) const {
  return kArenaBytes - arena_used_ >= bytes;
}

void RequestGather::append_vector(void* base, size_t bytes) {
  if (vector_count_ > 0) {
    iovec& last = vectors_[vector_count_ - 1];
    if (static_cast<uint8_t*>(last.iov_base) + last.iov_len == base) {
      last.iov_len += bytes;
      base = nullptr;
    }
  }
  if (base != nullptr) {
    KV_ASSERT(vector_count_ < kMaxVectors);
    vectors_[vector_count_++] = iovec{base, bytes};
  }
  unsent_bytes_ += bytes;
  stream_encoded_ += bytes;
}

uint8_t* RequestGather::extend_arena(size_t count) {
  KV_ASSERT(arena_has(count));
  uint8_t* place = arena_.get() + arena_used_;
  arena_used_ += count;
  append_vector(place, count);
  return place;
}

void RequestGather::append_arena(const void* bytes, size_t count) {
  std::memcpy(extend_arena(count), bytes, count);
}

// Returns false if the arena is too full for it.
bool RequestGather::encode_head() {
  const size_t bytes =
      sizeof(frame::RequestHeader) + batch_->op_count * sizeof(frame::OpDescriptor);
  if (!arena_has(bytes)) return false;
  const frame::RequestHeader header{frame::kRequestMagic, batch_->op_count, batch_->sequence};
  append_arena(&header, sizeof(header));
  for (uint32_t i = 0; i < batch_->op_count; ++i) {
    const frame::OpDescriptor descriptor = frame::describe(batch_->ops[i]);
    append_arena(&descriptor, sizeof(descriptor));
  }
  head_done_ = true;
  op_index_ = 0;
  begin_payload();
  return true;
}

void RequestGather::begin_payload() {
  op_bytes_ = 0;
  if (batch_ == ill_formed_) return;
  while (op_index_ < batch_->op_count && batch_->ops[op_index_].kind != KV_OP_WRITE) ++op_index_;
  if (op_index_ == batch_->op_count) return;
  kv_op& op = batch_->ops[op_index_];
  if ((op.flags & KV_OP_CRC32C) != 0) op.result = op.operand;
}

// Encodes a piece of a WRITE payload, and its padding with the last one. Returns false if the arena
// is too full.
bool RequestGather::encode_payload(const kv_op& op) {
  kv_op& result = batch_->ops[op_index_];
  const bool checksum = (op.flags & KV_OP_CRC32C) != 0;
  const size_t padding = static_cast<size_t>(frame::padding_bytes(op.length));
  auto* source = static_cast<uint8_t*>(op.local) + op_bytes_;
  uint64_t taken = op.length;
  if (op.length <= kCopyBytesMax) {
    if (!arena_has(static_cast<size_t>(op.length) + padding)) return false;
    uint8_t* place = extend_arena(static_cast<size_t>(taken));
    if (checksum) {
      result.result = crc32c_copy(static_cast<uint32_t>(op.result), place, source, taken);
    } else {
      std::memcpy(place, source, taken);
    }
  } else {
    if (!arena_has(frame::kAlignment)) return false;
    taken = std::min<uint64_t>(op.length - op_bytes_, kGatherBytes);
    if (checksum) result.result = crc32c(static_cast<uint32_t>(op.result), source, taken);
    append_vector(source, static_cast<size_t>(taken));
  }
  op_bytes_ += taken;
  if (op_bytes_ < op.length) return true;
  if (padding != 0) std::memset(extend_arena(padding), 0, padding);
  ++op_index_;
  begin_payload();
  return true;
}

void RequestGather::finish_batch() {
  request_end_[slot_of(*batch_)] = stream_encoded_;
  head_done_ = false;
  closed_ = batch_ == ill_formed_;
  batch_ = closed_ ? nullptr : batch_->next;
}

bool RequestGather::fill() {
  if (unsent_bytes_ > 0) return true;
  arena_used_ = 0;
  first_vector_ = 0;
  vector_count_ = 0;
  // A step appends at most two vectors: a payload and its padding.
  while (batch_ != nullptr && unsent_bytes_ < kGatherBytes && vector_count_ + 2 <= kMaxVectors) {
    if (!head_done_) {
      if (!encode_head()) break;
    } else if (batch_ != ill_formed_ && op_index_ < batch_->op_count) {
      if (!encode_payload(batch_->ops[op_index_])) break;
    } else {
      finish_batch();
    }
  }
  // A batch that is complete in the list must count as such even if the list is full.
  if (batch_ != nullptr && head_done_ && (batch_ == ill_formed_ || op_index_ == batch_->op_count)) {
    finish_batch();
  }
  return unsent_bytes_ > 0;
}

void RequestGather::sent(size_t bytes) {
  KV_ASSERT(bytes <= unsent_bytes_);
  unsent_bytes_ -= bytes;
  stream_sent_ += bytes;
  while (bytes > 0) {
    iovec& vector = vectors_[first_vector_];
    const size_t taken = std::min(bytes, vector.iov_len);
    vector.iov_base = static_cast<uint8_t*>(vector.iov_base) + taken;
    vector.iov_len -= taken;
    bytes -= taken;
    if (vector.iov_len == 0) ++first_vector_;
  }
}

}  // namespace kvstore
