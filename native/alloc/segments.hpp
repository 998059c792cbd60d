// The first level of allocation: runs of segments, taken from the node by CAS on its segment table.
//
// The head of a run is claimed first and says `claiming` until all followers are taken; if one is
// not to be had everything is undone, lowest last. So whoever meets a `claiming` head of a client
// that is gone can free the run.

#pragma once

#include <atomic>
#include <cstdint>
#include <optional>
#include <span>

#include "base/status.hpp"
#include "coro/task.hpp"
#include "fabric/remote.hpp"
#include "layout/layout.hpp"

namespace kvstore {

struct Extent {
  uint64_t segment = 0;
  uint32_t run = 0;
};

// An extent, or kOutOfMemory when no run is free, or why the connection failed.
struct ClaimResult {
  Status status = Status::kOutOfMemory;
  Extent extent;
};

class SegmentTable {
 public:
  SegmentTable(const layout::Geometry& geometry, uint32_t registration)
      : geometry_(geometry), registration_(registration) {}

  const layout::Geometry& geometry() const { return geometry_; }
  uint32_t registration() const { return registration_; }

  // Takes `run` segments in a row. The first `clear_bytes` of the extent are zeroed before its head
  // says `kind`.
  Task<ClaimResult> claim(Remote& remote, uint32_t run, layout::SegmentEntry::Kind kind,
                          unsigned size_class, uint64_t clear_bytes);

  // Gives back an extent whose head entry is `head`. kAbsent if the head has changed: then somebody
  // else is at it.
  Task<Status> release(Remote& remote, uint64_t segment, layout::SegmentEntry head);

  Task<Status> read_entry(Remote& remote, uint64_t segment, layout::SegmentEntry& entry);

  // Frees the followers of `head` among its run, then the head, whose word is `head`.
  Task<Status> dissolve(Remote& remote, uint64_t segment, layout::SegmentEntry head);

 private:
  struct Run {
    uint64_t segment;
    layout::SegmentEntry head;
  };

  Task<std::optional<Run>> find_free(Remote& remote, uint32_t run, uint64_t from, uint64_t until,
                                     Status& status);
  Task<bool> take(Remote& remote, Run& found, uint32_t run);

  const layout::Geometry geometry_;
  const uint32_t registration_;
  std::atomic<uint64_t> hint_{0};
};

}  // namespace kvstore
