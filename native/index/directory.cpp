#include "index/directory.hpp"

#include <algorithm>
#include <vector>

namespace kvstore {

Task<Status> Directory::refresh(Remote& remote) {
  // The depth only grows, and entries below it are all in place before it does: a depth that was
  // read first never covers an entry that is missing.
  uint64_t depth = 0;
  kv_op depth_op[1] = {read_op(layout::kGlobalDepthOffset, &depth, 8)};
  if (const uint32_t s = co_await remote.batch(depth_op); s != KV_FABRIC_OK) {
    co_return from_fabric(s);
  }
  if (depth > geometry_.directory_depth_max) co_return Status::kCorrupt;

  const uint64_t count = uint64_t{1} << depth;
  std::vector<uint64_t> words(count);
  kv_op read[1] = {read_op(geometry_.directory_offset, words.data(), count * 8)};
  if (const uint32_t s = co_await remote.batch(read); s != KV_FABRIC_OK) {
    co_return from_fabric(s);
  }
  for (uint64_t i = 0; i < count; ++i) {
    if (!plausible(layout::DirectoryEntry{words[i]})) co_return Status::kCorrupt;
    // An answer that comes late must not take back what a later one has brought.
    uint64_t known = entries_[i].load(std::memory_order_relaxed);
    const unsigned depth_read = layout::DirectoryEntry{words[i]}.depth();
    while (layout::DirectoryEntry{known}.depth() <= depth_read && known != words[i] &&
           !entries_[i].compare_exchange_weak(known, words[i], std::memory_order_relaxed)) {
    }
  }
  // A slower refresh of another thread must not take the depth back.
  unsigned seen = depth_.load(std::memory_order_relaxed);
  while (seen < depth &&
         !depth_.compare_exchange_weak(seen, unsigned(depth), std::memory_order_release)) {
  }
  co_return Status::kOk;
}

}  // namespace kvstore
