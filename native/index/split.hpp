// Growing the index online: a client splits one subtable in two while others read and write.
//
//   1. Take the directory lock {client, era}. Write the split record.
//   2. Make the new subtable, every bucket header `filling`.
//   3. Publish it in the directory, doubling the directory first where it must be.
//   4. For each group: raise the depth in the old headers, carry the entries that belong to the new
//      subtable over, clear `filling`.
//   5. Clear the record, give the lock back.
//
// Every step may be done again, so whoever fences the holder can finish, and whoever needs a group
// that is still filling carries that group itself. An entry is carried by: freeze the old slot
// (moving), copy it into the same place of the new subtable (moving), empty the old, commit the
// new.

#pragma once

#include <atomic>

#include "alloc/segments.hpp"
#include "base/status.hpp"
#include "coro/task.hpp"
#include "fabric/remote.hpp"
#include "index/directory.hpp"
#include "index/key.hpp"

namespace kvstore {

struct SplitEnvironment {
  SegmentTable& segments;
  Directory& directory;
  uint32_t registration;
  // Whether a thread of this client is at a split: a lock that carries our registration while none
  // is was left behind by a broken connection.
  std::atomic<bool>& running;
  uint64_t deadline_ns;
  // False while operations of that connection may still be on their way to the node.
  bool may_resume = true;
};

// Splits the subtable that covers `hash`, or waits for the split that is under way.
// kOk: there may be room now. kOutOfMemory: no segments, or the directory is at its full depth.
Task<Status> split_subtable(Remote& remote, SplitEnvironment environment, uint64_t hash);

// Finishes the split that the client `holder`, which has been fenced, may have left behind.
Task<Status> resume_split(Remote& remote, SplitEnvironment environment, uint32_t holder);

// Carries the entries of one group from the subtable at `source` to the one at `target`, both
// offsets, and marks it filled. Anyone may, at any time while the group is filling.
Task<Status> carry_group(Remote& remote, const layout::Geometry& geometry, uint64_t source,
                         uint64_t target, unsigned group, uint64_t deadline_ns);

}  // namespace kvstore
