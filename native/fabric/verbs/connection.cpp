#include "fabric/verbs/connection.hpp"

#include <poll.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/assert.hpp"
#include "base/crc32c.hpp"

namespace kvstore::verbs {
namespace {

bool is_atomic(const kv_op& op) {
  return op.kind == KV_OP_CAS || op.kind == KV_OP_FAA;
}

bool has_crc(const kv_op& op) {
  return (op.flags & KV_OP_CRC32C) != 0;
}

}  // namespace

// ---- Posting --------------------------------------------------------------------------------

bool Connection::allowed(const kv_op& op) const {
  if (op.length == 0 || op.offset > region_bytes || op.length > region_bytes - op.offset) {
    return false;
  }
  if (is_atomic(op)) return op.length == 8 && op.offset % 8 == 0;
  return op.kind == KV_OP_READ || op.kind == KV_OP_WRITE;
}

uint32_t Connection::post(kv_batch* batch) {
  if (broken != 0) return KV_FABRIC_DOWN;
  if (batch->op_count == 0 || batch->op_count > max_batch_ops) {
    close();
    return KV_FABRIC_REFUSED;
  }
  KV_ASSERT(outstanding_ < max_outstanding);
  batch->status = KV_FABRIC_PENDING;
  batch->next = nullptr;
  batch->sequence = ++last_sequence_;
  // Checked before the device sees it: some refuse a misaligned atomic, others break the
  // connection, and a key of huge pages may cover more than the region.
  bool fine = true;
  for (uint32_t i = 0; i < batch->op_count && fine; ++i) fine = allowed(batch->ops[i]);
  if (!fine) refused_sequence_ = std::min(refused_sequence_, batch->sequence);
  (oldest_ == nullptr ? oldest_ : newest_->next) = batch;
  newest_ = batch;
  ++outstanding_;
  if (cursor_.batch == nullptr) cursor_ = Cursor{batch};
  // A failure to post is met again by the poll, which may complete batches.
  if (++held_back_ >= kHeldBackMax) flush();
  return KV_FABRIC_PENDING;
}

// The order that RC does not keep by itself: a READ and an atomic may be overtaken by what follows
// them, except that an atomic is not by READs and atomics (InfiniBand specification, volume 1,
// table of work request ordering). Between batches nobody is promised more.
bool Connection::needs_fence(const kv_op& op) const {
  if (op.kind == KV_OP_READ) return false;
  return cursor_.after_read || (op.kind == KV_OP_WRITE && cursor_.after_atomic);
}

// Decides where the bytes of the next piece are; false if there is no room for them now.
bool Connection::place_piece(kv_op& op, Slot& slot, ibv_sge& piece) {
  const uint64_t left = op.length - cursor_.at;
  uint8_t* const local = static_cast<uint8_t*>(op.local) + cursor_.at;
  uint32_t key = 0;
  slot.staged = is_atomic(op) || op.length < kDirectBytesLeast ||
                !port_.memory.find(op.local, op.length, key);
  slot.bytes = uint32_t(std::min<uint64_t>(left, slot.staged ? kStagedBytesMax : kDirectBytesMax));
  if (!slot.staged) {
    piece = ibv_sge{reinterpret_cast<uint64_t>(local), slot.bytes, key};
    return true;
  }
  if (!staging_.take(slot.bytes, slot.staging_place, slot.staging_end)) return false;
  uint8_t* const staged = staging_memory_.get() + slot.staging_place;
  piece = ibv_sge{reinterpret_cast<uint64_t>(staged), slot.bytes, staging_key_->lkey};
  if (op.kind != KV_OP_WRITE) return true;
  if (has_crc(op)) {
    op.result =
        crc32c_copy(uint32_t(slot.first ? op.operand : op.result), staged, local, slot.bytes);
  } else {
    std::memcpy(staged, local, slot.bytes);
  }
  return true;
}

void Connection::fill_request(const kv_op& op, const Slot& slot, bool fenced,
                              ibv_send_wr& request) {
  request.wr_id = posted_;
  request.send_flags = fenced ? unsigned(IBV_SEND_FENCE) : 0u;
  const uint64_t remote = region_address_ + op.offset + slot.at;
  if (is_atomic(op)) {
    request.opcode = op.kind == KV_OP_CAS ? IBV_WR_ATOMIC_CMP_AND_SWP : IBV_WR_ATOMIC_FETCH_AND_ADD;
    request.wr.atomic.remote_addr = remote;
    request.wr.atomic.rkey = remote_key_;
    request.wr.atomic.compare_add = op.operand;
    request.wr.atomic.swap = op.desire;
    return;
  }
  request.opcode = op.kind == KV_OP_READ ? IBV_WR_RDMA_READ : IBV_WR_RDMA_WRITE;
  request.wr.rdma.remote_addr = remote;
  request.wr.rdma.rkey = remote_key_;
  if (op.kind == KV_OP_WRITE && slot.bytes <= inline_bytes_) {
    request.send_flags |= unsigned(IBV_SEND_INLINE);
  }
}

// Moves the cursor behind the piece.
void Connection::advance(const kv_op& op, uint32_t bytes, bool fenced) {
  if (fenced) cursor_.after_read = cursor_.after_atomic = false;
  cursor_.after_read |= op.kind == KV_OP_READ;
  cursor_.after_atomic |= is_atomic(op);
  cursor_.at += bytes;
  if (cursor_.at < op.length) return;
  cursor_.at = 0;
  if (++cursor_.op == cursor_.batch->op_count) cursor_ = Cursor{cursor_.batch->next};
}

// Appends the next piece to the chain. False if there is none, or no room for it now.
bool Connection::issue_piece() {
  kv_batch* const batch = cursor_.batch;
  if (batch == nullptr || batch->sequence >= refused_sequence_) return false;
  if (posted_ - retired_ == kSlots) return false;
  kv_op& op = batch->ops[cursor_.op];
  Slot& slot = slot_of(posted_);
  slot.first = cursor_.at == 0;
  const uint32_t place = uint32_t(posted_ % kSlots);
  if (!place_piece(op, slot, pieces_[place])) return false;
  slot.batch = batch;
  slot.op = &op;
  slot.at = cursor_.at;
  slot.ends_batch = cursor_.op + 1 == batch->op_count && cursor_.at + slot.bytes == op.length;
  ibv_send_wr& request = requests_[place];
  const bool fenced = needs_fence(op);
  fill_request(op, slot, fenced, request);
  ++unsignalled_;
  unsignalled_bytes_ += slot.bytes;
  if (unsignalled_ >= kUnsignalledMax || unsignalled_bytes_ >= kUnsignalledBytesMax) {
    signal(request);
  }
  ++posted_;
  advance(op, slot.bytes, fenced);
  return true;
}

void Connection::signal(ibv_send_wr& request) {
  request.send_flags |= unsigned(IBV_SEND_SIGNALED);
  unsignalled_ = unsignalled_bytes_ = 0;
}

void Connection::flush() {
  held_back_ = 0;
  uint32_t count = 0;
  while (count < kSlots && issue_piece()) ++count;
  if (count > 0) post_chain(count);
}

// Posts the last `count` requests with one doorbell. The last one is signalled, so that what has
// been posted always comes to an end that is noticed.
void Connection::post_chain(uint32_t count) {
  ibv_send_wr& last = requests_[(posted_ - 1) % kSlots];
  signal(last);
  ibv_send_wr* const behind = std::exchange(last.next, nullptr);
  ibv_send_wr* bad = nullptr;
  const int failed = ibv_post_send(queue_pair_.get(), &requests_[(posted_ - count) % kSlots], &bad);
  last.next = behind;
  if (failed != 0) {
    // Only a device in trouble does this. The poll finds the connection unusable.
    ibv_qp_attr attributes{};
    attributes.qp_state = IBV_QPS_ERR;
    ibv_modify_qp(queue_pair_.get(), &attributes, IBV_QP_STATE);
    post_failed_ = true;
  }
}

// ---- Completion -----------------------------------------------------------------------------

void Connection::complete_oldest(uint32_t status) {
  kv_batch* const batch = oldest_;
  oldest_ = batch->next;
  if (oldest_ == nullptr) newest_ = nullptr;
  --outstanding_;
  ++completed_;
  batch->next = nullptr;
  batch->status = status;
  batch->complete(batch);
}

void Connection::retire(Slot& slot) {
  kv_op& op = *slot.op;
  const uint8_t* const staged = staging_memory_.get() + slot.staging_place;
  uint8_t* const local = static_cast<uint8_t*>(op.local) + slot.at;
  if (is_atomic(op)) {
    std::memcpy(&op.result, staged, sizeof op.result);
  } else if (has_crc(op) && (op.kind == KV_OP_READ || !slot.staged)) {
    const uint32_t before = uint32_t(slot.first ? op.operand : op.result);
    op.result = slot.staged ? crc32c_copy(before, local, staged, slot.bytes)
                            : crc32c(before, local, slot.bytes);
  } else if (op.kind == KV_OP_READ && slot.staged) {
    std::memcpy(local, staged, slot.bytes);
  }
  if (slot.staged) staging_.give_back(slot.staging_end);
  if (slot.ends_batch) {
    KV_ASSERT(oldest_ == slot.batch);
    complete_oldest(KV_FABRIC_OK);
  }
}

// Returns false if the connection is over.
bool Connection::take_in(const ibv_wc& completion) {
  // Requests complete in order: that one failed means that those before it did not.
  const bool failed = completion.status != IBV_WC_SUCCESS;
  const uint64_t end = completion.wr_id + (failed ? 0 : 1);
  if (end > posted_ || end < retired_) return false;
  while (retired_ < end) retire(slot_of(retired_++));
  return !failed;
}

// An operation that is not allowed ends the connection in its turn, after what was posted before
// it.
void Connection::refuse_oldest() {
  if (oldest_ == nullptr || oldest_->sequence != refused_sequence_) return;
  broken = 1;
  complete_oldest(KV_FABRIC_REFUSED);
  break_connection();
}

uint32_t Connection::poll() {
  completed_ = 0;
  if (broken != 0) return 0;
  if (armed_) drain_events();
  flush();
  constexpr unsigned kRounds = 64;  // so that a poll stays short
  for (unsigned round = 0; round < kRounds; ++round) {
    if (found_count_ == 0) {
      found_count_ = ibv_poll_cq(queue_.get(), kCompletionsAtOnce, found_.data());
    }
    if (found_count_ == 0 && !post_failed_) break;
    const int count = std::exchange(found_count_, 0);
    bool alive = count > 0;
    for (int i = 0; i < count && alive; ++i) alive = take_in(found_[size_t(i)]);
    if (!alive) {
      break_connection();
      return completed_;
    }
    flush();
    // There were no more. What has been posted since is for the next poll.
    if (count < kCompletionsAtOnce && !post_failed_) break;
  }
  refuse_oldest();
  return completed_;
}

// ---- Waiting --------------------------------------------------------------------------------

int Connection::wait_descriptor(short* events) {
  *events = broken != 0 ? short(0) : short(POLLIN);
  if (broken != 0) return -1;
  if (!armed_) {
    if (ibv_req_notify_cq(queue_.get(), 0) != 0) return ready_descriptor_;
    armed_ = true;
  }
  // What completed before the queue was armed raises no event.
  if (found_count_ == 0) {
    found_count_ = ibv_poll_cq(queue_.get(), kCompletionsAtOnce, found_.data());
  }
  return found_count_ != 0 ? ready_descriptor_ : channel_->fd;
}

void Connection::drain_events() {
  ibv_cq* queue = nullptr;
  void* context = nullptr;
  while (ibv_get_cq_event(channel_.get(), &queue, &context) == 0) {
    armed_ = false;
    // Acknowledging takes a lock, so it is done for many at once.
    constexpr uint32_t kAcknowledgedAtOnce = 64;
    if (++events_unacknowledged_ < kAcknowledgedAtOnce) continue;
    ibv_ack_cq_events(queue_.get(), events_unacknowledged_);
    events_unacknowledged_ = 0;
  }
}

// ---- The end --------------------------------------------------------------------------------

void Connection::break_connection() {
  broken = 1;
  // The device must not touch local memory once its owner has been told.
  queue_pair_.reset();
  cursor_ = Cursor{};
  while (oldest_ != nullptr) complete_oldest(KV_FABRIC_LOST);
}

void Connection::close() {
  if (broken == 0) break_connection();
}

}  // namespace kvstore::verbs
