#include "lock/table.hpp"

#include <algorithm>
#include <vector>

#include "base/crc32c.hpp"
#include "coro/clock.hpp"

namespace kvstore {

using layout::LockTableHead;
using layout::LockTableShape;
using layout::SegmentEntry;

namespace {

constexpr uint64_t kClearBytesAtOnce = 256 << 10;
constexpr uint64_t kRootOffset = layout::kRootsOffset + layout::kLockRoot * 8;

// Tables of a node that restarts come one after the other, in wall-clock time.
uint64_t fence_era() {
  constexpr uint64_t kFirstMs = 1'704'067'200'000;  // 2024 began, since 1970
  const uint64_t now_ms = wall_clock_ms();
  return now_ms > kFirstMs ? std::min(now_ms - kFirstMs, layout::FenceLock::kEraMax) : 0;
}

uint64_t checksum_of(const LockTableHead& head) {
  return crc32c(0, &head, offsetof(LockTableHead, checksum));
}

}  // namespace

Task<Status> LockTable::fill(Remote& remote, uint64_t offset, const LockTableShape& shape) {
  const std::vector<uint8_t> zeros(std::min(kClearBytesAtOnce, shape.bytes()), 0);
  for (uint64_t at = 0; at < shape.bytes(); at += zeros.size()) {
    kv_op op[1] = {
        write_op(offset + at, zeros.data(), std::min<uint64_t>(zeros.size(), shape.bytes() - at))};
    if (const uint32_t s = co_await remote.batch(op); s != KV_FABRIC_OK) co_return from_fabric(s);
  }
  LockTableHead head{layout::kLockTableMagic,
                     uint32_t(shape.lock_count),
                     uint32_t(shape.ring_capacity),
                     fence_era(),
                     {},
                     0};
  head.checksum = checksum_of(head);
  kv_op op[1] = {write_op(offset, &head, sizeof head)};
  co_return from_fabric(co_await remote.batch(op));
}

Task<Status> LockTable::make(Remote& remote, SegmentTable& segments) {
  LockTableShape shape = wanted_;
  ClaimResult claimed;
  for (;; shape.lock_count /= 2) {
    claimed = co_await segments.claim(remote, geometry_.segments_for(shape.bytes()),
                                      SegmentEntry::kLocks, 0, 0);
    if (claimed.status != Status::kOutOfMemory || shape.lock_count <= layout::kLockCountMin) break;
  }
  if (claimed.status != Status::kOk) co_return claimed.status;
  const uint64_t segment = claimed.extent.segment;
  const uint64_t offset = geometry_.segment_offset(segment);
  if (const Status s = co_await fill(remote, offset, shape); s != Status::kOk) co_return s;
  kv_op op[1] = {cas_op(kRootOffset, 0, offset)};
  if (const uint32_t s = co_await remote.batch(op); s != KV_FABRIC_OK) co_return from_fabric(s);
  if (op[0].result == 0) co_return Status::kOk;
  SegmentEntry head;
  const Status s = co_await segments.read_entry(remote, segment, head);
  if (s != Status::kOk) co_return s;
  co_await segments.release(remote, segment, head);
  co_return remote.broken() ? Status::kNodeUnreachable : Status::kOk;
}

Task<Status> LockTable::adopt(Remote& remote, uint64_t offset) {
  const uint64_t end = geometry_.segment_offset(geometry_.segment_count);
  const bool possible = offset >= geometry_.first_segment_offset && offset < end &&
                        (offset - geometry_.first_segment_offset) % geometry_.segment_bytes == 0;
  if (!possible) co_return Status::kCorrupt;
  LockTableHead head;
  kv_op op[1] = {read_op(offset, &head, sizeof head)};
  if (const uint32_t s = co_await remote.batch(op); s != KV_FABRIC_OK) co_return from_fabric(s);
  const LockTableShape shape{head.lock_count, head.ring_capacity};
  if (head.magic != layout::kLockTableMagic || head.checksum != checksum_of(head) ||
      !shape.sound() || shape.bytes() > end - offset) {
    co_return Status::kCorrupt;
  }
  // The shape is written once; whoever comes second waits for nothing but a store.
  if (adopting_.exchange(true, std::memory_order_acq_rel)) co_return Status::kPending;
  shape_ = shape;
  era_ = head.era;
  offset_.store(offset, std::memory_order_release);
  co_return Status::kOk;
}

Task<Status> LockTable::open(Remote& remote, SegmentTable& segments) {
  while (!is_open()) {
    uint64_t root = 0;
    kv_op op[1] = {read_op(kRootOffset, &root, 8)};
    if (const uint32_t s = co_await remote.batch(op); s != KV_FABRIC_OK) co_return from_fabric(s);
    Status s = Status::kOk;
    if (root == 0) {
      s = co_await make(remote, segments);
    } else {
      s = co_await adopt(remote, root);
    }
    if (s != Status::kOk && s != Status::kPending) co_return s;
  }
  co_return Status::kOk;
}

Task<Status> has_lock_table(Remote& remote, bool& has) {
  uint64_t root = 0;
  kv_op op[1] = {read_op(kRootOffset, &root, 8)};
  const uint32_t s = co_await remote.batch(op);
  has = root != 0;
  co_return from_fabric(s);
}

Task<Status> is_lock_table(Remote& remote, const layout::Geometry& geometry, uint64_t segment,
                           bool& is) {
  uint64_t root = 0;
  kv_op op[1] = {read_op(kRootOffset, &root, 8)};
  const uint32_t s = co_await remote.batch(op);
  is = root == geometry.segment_offset(segment);
  co_return from_fabric(s);
}

}  // namespace kvstore
