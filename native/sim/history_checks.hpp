// Checks of a history, or of one operation of it, beside its linearizability. Each returns an empty
// string, or one line about the first thing that is wrong.

#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "sim/linearizability.hpp"

namespace kvstore::sim {

// `last` are reads of every key after everything else had come to rest: each sees the last
// acknowledged change of its key, or one that may have come after it.
std::string check_acknowledged(std::span<const Operation> history, std::span<const Operation> last,
                               bool may_vanish);

// `last` are such reads, several of each key: those of one key agree, from copies or not. Not of
// keys that may vanish by themselves.
std::string check_agreement(std::span<const Operation> last);

// What was put with a time to live does not come back to a client that has found it gone, and is
// not returned long after its end. `slack_ns`: how much later than by the caller's own clock it may
// end.
std::string check_expiry(std::span<const Operation> history, uint64_t slack_ns);

// What one operation cost, and what it met.
struct OperationCost {
  OperationKind kind = OperationKind::kGet;
  OperationOutcome outcome = OperationOutcome::kOk;
  bool inserted = false;  // of a put that found no object of its key
  uint64_t reads = 0;
  uint64_t writes = 0;
  uint64_t atomics = 0;
  uint64_t round_trips = 0;
};
// The table of ARCHITECTURE.md, for operations without conflicts.
std::string check_cost(const OperationCost& cost);

}  // namespace kvstore::sim
