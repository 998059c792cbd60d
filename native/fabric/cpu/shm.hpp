// The shm fabric: the region is mapped into this process, operations complete inline with the
// processor's own atomics (the `cpu` atomic domain, shared with tcp).

#pragma once

#include <atomic>
#include <cstdint>

#include "fabric/fabric.h"

namespace kvstore {

// `region_dead` turns nonzero when the node has gone: memory that outlives it must not be taken for
// the store, so every batch looks at it before and after. Both pointers outlive the connection.
// `holder`, if given, is a futex word that the node holds while it lives.
kv_connection* shm_connection(void* region, uint64_t region_bytes,
                              const std::atomic<uint32_t>* region_dead,
                              const uint32_t* holder = nullptr);

}  // namespace kvstore
