#include "fabric/cpu/frame.hpp"

#include <algorithm>

#include "base/assert.hpp"
#include "base/crc32c.hpp"

namespace kvstore::frame {

namespace {

// A READ of at least this many bytes is received in place; a smaller one is cheaper to copy.
constexpr uint64_t kDirectBytesMin = 4096;

// A checksum is taken of pieces of at most this size, while they are in the cache.
constexpr size_t kChecksumBytesMax = 512 * 1024;

bool moves_bytes(uint32_t kind) {
  return kind == KV_OP_READ || kind == KV_OP_WRITE;
}

bool is_atomic(uint32_t kind) {
  return kind == KV_OP_CAS || kind == KV_OP_FAA;
}

// The bytes that an operation has in a response.
uint64_t result_bytes(const kv_op& op) {
  if (op.kind == KV_OP_READ) return op.length + padding_bytes(op.length);
  return is_atomic(op.kind) ? sizeof(uint64_t) : 0;
}

}  // namespace

OpDescriptor describe(const kv_op& op) {
  OpDescriptor descriptor{};
  // The format has no length for atomics; kind 0 has the agent refuse one that is not of a word.
  const bool odd_atomic = is_atomic(op.kind) && op.length != sizeof(uint64_t);
  descriptor.kind = odd_atomic ? 0 : op.kind;
  descriptor.flags = op.flags;
  descriptor.offset = op.offset;
  descriptor.operand = is_atomic(op.kind) ? op.operand : op.length;
  descriptor.desire = op.kind == KV_OP_CAS ? op.desire : 0;
  return descriptor;
}

bool operation_allowed(const OpDescriptor& op, uint64_t region_bytes) {
  if ((op.flags & ~uint32_t{KV_OP_CRC32C}) != 0) return false;
  if (op.kind != KV_OP_CAS && op.desire != 0) return false;
  uint64_t length = op.operand;
  if (is_atomic(op.kind)) {
    if (op.offset % sizeof(uint64_t) != 0) return false;
    length = sizeof(uint64_t);
  } else if (!moves_bytes(op.kind)) {
    return false;
  }
  return length != 0 && length <= region_bytes && op.offset <= region_bytes - length;
}

bool hello_well_formed(const Hello& hello) {
  return hello.magic == kHelloMagic && hello.reserved == 0;
}

ParseResult parse_request_head(const uint8_t* bytes, size_t available, RequestHeader& header,
                               OpDescriptor* descriptors, size_t& head_bytes) {
  if (available < sizeof(header)) return ParseResult::kNeedMore;
  std::memcpy(&header, bytes, sizeof(header));
  if (header.magic != kRequestMagic) return ParseResult::kMalformed;
  if (header.op_count == 0 || header.op_count > kMaxBatchOps) return ParseResult::kMalformed;
  const size_t descriptor_bytes = header.op_count * sizeof(OpDescriptor);
  if (available - sizeof(header) < descriptor_bytes) return ParseResult::kNeedMore;
  std::memcpy(descriptors, bytes + sizeof(header), descriptor_bytes);
  head_bytes = sizeof(header) + descriptor_bytes;
  return ParseResult::kComplete;
}

void ResponseReader::expect(kv_batch* batch, bool may_succeed) {
  KV_ASSERT(staged_bytes_ == 0);
  batch_ = batch;
  may_succeed_ = may_succeed;
  header_done_ = false;
  op_index_ = 0;
  op_bytes_ = 0;
}

void ResponseReader::begin_op() {
  op_bytes_ = 0;
  if (op_index_ == batch_->op_count) return;
  kv_op& op = batch_->ops[op_index_];
  if (op.kind == KV_OP_READ && (op.flags & KV_OP_CRC32C) != 0) op.result = op.operand;
}

// Collects `wanted` bytes in `staged_`; returns true once it has them.
bool ResponseReader::stage(size_t wanted, const uint8_t*& cursor, const uint8_t* end) {
  const size_t taken = std::min(wanted - staged_bytes_, static_cast<size_t>(end - cursor));
  std::memcpy(staged_ + staged_bytes_, cursor, taken);
  cursor += taken;
  staged_bytes_ += taken;
  if (staged_bytes_ < wanted) return false;
  staged_bytes_ = 0;
  return true;
}

// Returns true once the header is complete and good; otherwise `event` says why not.
bool ResponseReader::feed_header(const uint8_t*& cursor, const uint8_t* end, Event& event) {
  event = Event::kNeedMore;
  ResponseHeader header;
  if (!stage(sizeof(header), cursor, end)) return false;
  std::memcpy(&header, staged_, sizeof(header));
  event = Event::kGarbled;
  if (header.magic != kResponseMagic || header.sequence != batch_->sequence) return false;
  if (header.status == KV_FABRIC_REFUSED) event = Event::kRefused;
  if (header.status != KV_FABRIC_OK || !may_succeed_) return false;
  header_done_ = true;
  begin_op();
  return true;
}

ResponseReader::Event ResponseReader::feed_end(const uint8_t*& cursor, const uint8_t* end) {
  ResponseEnd mark;
  if (!stage(sizeof(mark), cursor, end)) return Event::kNeedMore;
  std::memcpy(&mark, staged_, sizeof(mark));
  const bool good =
      mark.magic == kEndMagic && mark.sequence == static_cast<uint32_t>(batch_->sequence);
  return good ? Event::kCompleted : Event::kGarbled;
}

// Returns kCompleted once payload and padding of a READ have been consumed.
ResponseReader::Event ResponseReader::feed_payload(kv_op& op, const uint8_t*& cursor,
                                                   const uint8_t* end) {
  if (op_bytes_ < op.length) {
    const size_t taken = static_cast<size_t>(
        std::min<uint64_t>(op.length - op_bytes_, static_cast<uint64_t>(end - cursor)));
    uint8_t* destination = static_cast<uint8_t*>(op.local) + op_bytes_;
    if (taken != 0 && (op.flags & KV_OP_CRC32C) != 0) {
      op.result = crc32c_copy(static_cast<uint32_t>(op.result), destination, cursor, taken);
    } else if (taken != 0) {
      std::memcpy(destination, cursor, taken);
    }
    cursor += taken;
    op_bytes_ += taken;
    if (op_bytes_ < op.length) return Event::kNeedMore;
  }
  const uint64_t total = result_bytes(op);
  for (; op_bytes_ < total && cursor != end; ++cursor, ++op_bytes_) {
    if (*cursor != 0) return Event::kGarbled;
  }
  return op_bytes_ == total ? Event::kCompleted : Event::kNeedMore;
}

ResponseReader::Event ResponseReader::feed(const uint8_t* bytes, size_t available,
                                           size_t& consumed) {
  const uint8_t* cursor = bytes;
  const uint8_t* const end = bytes + available;
  Event event = Event::kNeedMore;
  if (batch_ == nullptr) {
    consumed = 0;
    return available == 0 ? Event::kNeedMore : Event::kGarbled;
  }
  if (!header_done_ && !feed_header(cursor, end, event)) {
    consumed = static_cast<size_t>(cursor - bytes);
    return event;
  }
  event = Event::kCompleted;
  for (; op_index_ < batch_->op_count; ++op_index_, begin_op()) {
    kv_op& op = batch_->ops[op_index_];
    if (op.kind == KV_OP_READ) event = feed_payload(op, cursor, end);
    if (is_atomic(op.kind)) {
      event = stage(sizeof(op.result), cursor, end) ? Event::kCompleted : Event::kNeedMore;
      if (event == Event::kCompleted) std::memcpy(&op.result, staged_, sizeof(op.result));
    }
    if (event != Event::kCompleted) break;
  }
  if (event == Event::kCompleted) event = feed_end(cursor, end);
  consumed = static_cast<size_t>(cursor - bytes);
  return event;
}

ResponseReader::Plan ResponseReader::plan(size_t lead_limit, size_t direct_limit) const {
  Plan plan;
  if (batch_ == nullptr || !may_succeed_) return plan;
  uint64_t lead = header_done_ ? 0 : sizeof(ResponseHeader) - staged_bytes_;
  uint64_t done = header_done_ ? op_bytes_ : 0;
  if (header_done_ && is_atomic(batch_->ops[std::min(op_index_, batch_->op_count - 1)].kind)) {
    done = staged_bytes_;
  }
  for (uint32_t i = op_index_; i < batch_->op_count && lead <= lead_limit; ++i, done = 0) {
    const kv_op& op = batch_->ops[i];
    if (op.kind == KV_OP_READ && done < op.length && op.length - done >= kDirectBytesMin) {
      plan.lead_bytes = static_cast<size_t>(lead);
      plan.destination = static_cast<uint8_t*>(op.local) + done;
      const bool checksum = (op.flags & KV_OP_CRC32C) != 0;
      const uint64_t limit = checksum ? std::min(direct_limit, kChecksumBytesMax) : direct_limit;
      plan.direct_bytes = static_cast<size_t>(std::min<uint64_t>(op.length - done, limit));
      plan.payload_bytes = op.length;
      plan.ends_payload = plan.direct_bytes == op.length - done;
      return plan;
    }
    lead += result_bytes(op) - done;
  }
  return plan;
}

void ResponseReader::credit(size_t bytes) {
  KV_ASSERT(header_done_ && op_index_ < batch_->op_count);
  kv_op& op = batch_->ops[op_index_];
  KV_ASSERT(op.kind == KV_OP_READ && bytes <= op.length - op_bytes_);
  if ((op.flags & KV_OP_CRC32C) != 0) {
    op.result = crc32c(static_cast<uint32_t>(op.result),
                       static_cast<const uint8_t*>(op.local) + op_bytes_, bytes);
  }
  op_bytes_ += bytes;
}

}  // namespace kvstore::frame
