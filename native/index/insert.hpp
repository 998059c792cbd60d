// Two-phase insert of a key that was not found.
//
// RACE's rule, that everyone inserts and duplicates are removed later, is not linearizable. Here
// the entry goes in as tentative, which readers ignore; both buckets are read again; and only an
// inserter that finds no other live copy commits, by a CAS that is the linearization point. Anyone
// may kill a tentative entry, so an inserter that dies blocks nobody. Between the two phases the
// caller may see to whatever must have ended when the key appears. However long that takes, others
// do not lose what they have waited for: an inserter kills its rivals right before it commits.
//
// Of two inserters the later one has seen the earlier. Both can commit only if neither's entry was
// killed, and a kill that finds the rival committed makes the inserter give up.

#pragma once

#include "index/candidate.hpp"

namespace kvstore {

enum class InsertOutcome {
  kTentative,  // the entry stands and no other: commit or withdraw it
  kInserted,
  kConflict,  // somebody else was faster: look the key up again
  kFull,      // no empty slot in either combined bucket: split, or make room
  kFilling,   // a split has not finished these buckets: help it, then look the key up again
  kLost,      // the connection broke before the committing CAS was posted: nothing was applied
  kUnknown    // it broke with the committing CAS unanswered; `slot` says where to look
};

// Tentative entries that may be of the same key.
struct Rivals {
  SlotRef entries[2 * kSlotsPerCombined];
  unsigned count = 0;
};

struct InsertResult {
  InsertOutcome outcome;
  SlotRef slot;             // as tentative, then as committed
  bool met_others = false;  // entries that may be of this key had come: a conflict, and its price
};

// The first phase. `contents` has the class and the address of the object. `first` (the WRITE of
// its header, if that is still to be done) is posted ahead of the tentative CAS, `behind`, one READ
// at most, right behind it. `places` are as read when the key was not found, `examined` the slots
// known to hold other keys. kTentative, with its rivals, or why not.
Task<InsertResult> begin_insert(Remote& remote, Directory& directory,
                                const layout::Geometry& geometry, const Key& key,
                                const Places& places, layout::Slot contents,
                                std::span<const Candidate> examined, Rivals& rivals,
                                std::span<kv_op> first, std::span<const kv_op> behind = {});

// The second phase, of what has begun as kTentative. `behind`, one at most, goes with the commit.
Task<InsertResult> commit_insert(Remote& remote, InsertResult begun, const Rivals& rivals,
                                 std::span<const kv_op> behind = {});

// Gives a tentative entry up. False: it did not reach the node, and somebody else kills the entry,
// or has done so.
Task<bool> withdraw_insert(Remote& remote, SlotRef entry);

}  // namespace kvstore
