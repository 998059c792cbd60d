// Fuzzes the parsers of the tcp wire format: request heads as an agent receives them, and response
// streams as a client does, in pieces of any size.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "base/assert.hpp"
#include "fabric/cpu/frame.hpp"

using namespace kvstore;

namespace {

void fuzz_request(const uint8_t* data, size_t bytes) {
  auto descriptors = std::make_unique<frame::OpDescriptor[]>(frame::kMaxBatchOps);
  frame::RequestHeader header;
  size_t head_bytes = 0;
  const frame::ParseResult result =
      frame::parse_request_head(data, bytes, header, descriptors.get(), head_bytes);
  if (result != frame::ParseResult::kComplete) return;
  KV_ASSERT(header.op_count >= 1 && header.op_count <= frame::kMaxBatchOps);
  KV_ASSERT(head_bytes <= bytes && head_bytes <= frame::kMaxRequestHeadBytes);
  constexpr uint64_t kRegionBytes = 1 << 20;
  for (uint32_t i = 0; i < header.op_count; ++i) {
    const frame::OpDescriptor& op = descriptors[i];
    if (!frame::operation_allowed(op, kRegionBytes)) continue;
    const bool atomic = op.kind == KV_OP_CAS || op.kind == KV_OP_FAA;
    const uint64_t length = atomic ? 8 : op.operand;
    KV_ASSERT(length >= 1 && op.offset < kRegionBytes && length <= kRegionBytes - op.offset);
    KV_ASSERT(!atomic || op.offset % 8 == 0);
  }
}

// A batch with a READ that must stay inside its guarded destination.
void fuzz_response(const uint8_t* data, size_t bytes) {
  if (bytes < 2) return;
  const size_t piece = data[0] % 64 + 1;
  const size_t read_bytes = data[1] % 100 + 1;
  std::vector<uint8_t> destination(read_bytes);
  kv_op ops[2] = {};
  ops[0].kind = KV_OP_CAS;
  ops[0].length = 8;
  ops[1].kind = KV_OP_READ;
  ops[1].length = read_bytes;
  ops[1].local = destination.data();
  kv_batch batch{};
  batch.ops = ops;
  batch.op_count = 2;
  batch.sequence = 1;
  frame::ResponseReader reader;
  reader.expect(&batch, true);
  size_t at = 2;
  for (size_t steps = 0; at < bytes && steps < 4096; ++steps) {
    size_t consumed = 0;
    const size_t available = std::min(piece, bytes - at);
    const frame::ResponseReader::Event event = reader.feed(data + at, available, consumed);
    KV_ASSERT(consumed <= available);
    at += consumed;
    if (event != frame::ResponseReader::Event::kNeedMore) return;
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  fuzz_request(data, bytes);
  fuzz_response(data, bytes);
  return 0;
}
