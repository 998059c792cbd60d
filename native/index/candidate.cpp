#include "index/candidate.hpp"

#include <cstring>

#include "base/assert.hpp"

namespace kvstore {

// Of a sound header and a key that is not the one looked for: whether it should be, by its hash,
// and its bytes have changed. To call it another key would make the right one absent although there
// is an object of it.
static bool key_is_damaged(const unsigned char* object, const layout::ObjectHeader& header,
                           const Key& key) {
  if (header.key_hash != key.hash || header.key_bytes != key.bytes) return false;
  return make_key(object + layout::kHeaderBytes, key.bytes).hash != header.key_hash;
}

Candidate::Verdict verdict_on(const unsigned char* object, layout::Slot slot, const Key& key,
                              layout::ObjectHeader& header) {
  header = layout::load_header(object);
  if (!layout::sound(header, slot.address(), slot.size_class())) {
    return Candidate::Verdict::kUnsound;
  }
  const bool same = header.key_bytes == key.bytes && header.key_hash == key.hash &&
                    std::memcmp(object + layout::kHeaderBytes, key.data, key.bytes) == 0;
  if (same) return Candidate::Verdict::kMatch;
  return key_is_damaged(object, header, key) ? Candidate::Verdict::kUnsound
                                             : Candidate::Verdict::kOther;
}

Task<Status> examine(Remote& remote, const layout::Geometry& geometry, const Key& key,
                     std::span<Candidate> candidates, std::span<kv_op> first) {
  constexpr unsigned kFirstMax = 4;
  KV_ASSERT(candidates.size() <= kCandidatesMax && first.size() <= kFirstMax);
  const size_t bytes = layout::kHeaderBytes + key.bytes;
  const Scratch scratch(bytes * kCandidatesMax);
  kv_op ops[kFirstMax + kCandidatesMax];
  unsigned count = 0;
  for (const kv_op& op : first) ops[count++] = op;
  bool read[kCandidatesMax] = {};
  for (size_t i = 0; i < candidates.size(); ++i) {
    const layout::Slot slot = candidates[i].ref.slot;
    if (!geometry.holds_block(slot.offset(), slot.size_class())) {
      candidates[i].verdict = Candidate::Verdict::kUnsound;
    } else if (layout::class_bytes(slot.size_class()) < bytes) {
      candidates[i].verdict = Candidate::Verdict::kOther;  // too small to hold the key
    } else {
      read[i] = true;
      ops[count++] = read_op(slot.offset(), scratch.data() + i * bytes, bytes);
    }
  }
  if (count > 0) {
    if (const uint32_t s = co_await remote.batch({ops, count}); s != KV_FABRIC_OK) {
      co_return from_fabric(s);
    }
    for (size_t i = 0; i < first.size(); ++i) first[i].result = ops[i].result;
  }
  for (size_t i = 0; i < candidates.size(); ++i) {
    if (!read[i]) continue;
    Candidate& candidate = candidates[i];
    candidate.verdict =
        verdict_on(scratch.data() + i * bytes, candidate.ref.slot, key, candidate.header);
  }
  co_return Status::kOk;
}

}  // namespace kvstore
