// Telling whether a slot with the right fingerprint holds the key: one READ of the object's header
// and key. Never believes anything that does not verify.

#pragma once

#include <span>

#include "base/status.hpp"
#include "coro/task.hpp"
#include "fabric/remote.hpp"
#include "index/key.hpp"
#include "index/places.hpp"
#include "layout/object.hpp"

namespace kvstore {

struct Candidate {
  enum class Verdict {
    kOther,   // a sound object of another key
    kMatch,   // the key's object; `header` is valid
    kUnsound  // what is there does not verify: the slot has changed meanwhile, or is corrupt
  };
  SlotRef ref;
  Verdict verdict = Verdict::kUnsound;
  layout::ObjectHeader header;
};

// Of an object's header and the key behind it, as read from where a slot leads.
Candidate::Verdict verdict_on(const unsigned char* object, layout::Slot slot, const Key& key,
                              layout::ObjectHeader& header);

// At most this many are examined in one batch.
inline constexpr unsigned kCandidatesMax = 8;

// Examines the candidates, `first` being posted ahead in the same batch.
Task<Status> examine(Remote& remote, const layout::Geometry& geometry, const Key& key,
                     std::span<Candidate> candidates, std::span<kv_op> first = {});

}  // namespace kvstore
