// Two-phase insert of a key that was not found.
//
// RACE's rule, that everyone inserts and duplicates are removed later, is not linearizable. Here
// the entry goes in as tentative, which readers ignore; both buckets are read again; and only an
// inserter that finds no other live copy commits, by a CAS that is the linearization point. Anyone
// may kill a tentative entry, so an inserter that dies blocks nobody.

#pragma once

#include "index/candidate.hpp"

namespace kvstore {

enum class InsertOutcome {
  kInserted,
  kConflict,  // somebody else was faster: look the key up again
  kFull,      // no empty slot in either combined bucket: split, or make room
  kFilling,   // a split has not finished these buckets: help it, then look the key up again
  kLost,      // the connection broke before the committing CAS was posted: nothing was applied
  kUnknown    // it broke with the committing CAS unanswered; `slot` says where to look
};

struct InsertResult {
  InsertOutcome outcome;
  SlotRef slot;             // as committed
  bool met_others = false;  // entries that may be of this key had come: a conflict, and its price
};

// `contents` has the class and the address of the object. `first` (the WRITE of its header, if that
// is still to be done) is posted ahead of the tentative CAS. `places` are as read when the key was
// not found, `examined` the slots known to hold other keys.
Task<InsertResult> insert(Remote& remote, Directory& directory, const layout::Geometry& geometry,
                          const Key& key, const Places& places, layout::Slot contents,
                          std::span<const Candidate> examined, std::span<kv_op> first);

}  // namespace kvstore
