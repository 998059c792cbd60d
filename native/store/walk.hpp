// Walks over all keys of a node: list, count, clear. They go from bucket to bucket of every
// subtable; keys that stay are seen at least once, also while splits go on.

#pragma once

#include "store/operations.hpp"

namespace kvstore {

// One page; see kv_scan. The cursor counts groups over the directory's subtables in order of their
// first entry.
Task<Status> scan_page(Channel& channel, uint64_t& cursor, kv_scan_entry* entries,
                       uint32_t capacity, uint32_t& count);
Task<Status> count_keys(Channel& channel, uint64_t& keys);
Task<Status> clear_keys(Channel& channel, uint64_t& deleted);

}  // namespace kvstore
