// Who holds and who awaits which lock of a node, for people: the headers say which locks are in
// use, and their clients say the rest, by the same question that recovery asks. What moves
// meanwhile may be seen or not.

#pragma once

#include <cstdint>
#include <vector>

#include "api/kvstore.h"
#include "lock/space.hpp"

namespace kvstore {

// Adds the locks in use, at most `locks_max`, and of each who has to do with it. A client that has
// not answered by `until_ns` is added as silent, once. `more`: there are more locks in use.
Task<Status> survey_locks(Remote& remote, LockSpace& space, size_t locks_max, uint64_t until_ns,
                          std::vector<kv_lock_sighting>& sightings, bool& more);

}  // namespace kvstore
