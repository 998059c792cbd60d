#include "node/liveness.hpp"

#include "base/assert.hpp"
#include "layout/layout.hpp"

namespace kvstore {

static_assert(sizeof(pthread_mutex_t) <= layout::kLineBytes);

Liveness::Liveness(uint8_t* region)
    : mutex_(reinterpret_cast<pthread_mutex_t*>(region + layout::kLivenessOffset)) {
  pthread_mutexattr_t attributes;
  KV_ASSERT(::pthread_mutexattr_init(&attributes) == 0);
  KV_ASSERT(::pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED) == 0);
  KV_ASSERT(::pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST) == 0);
  KV_ASSERT(::pthread_mutex_init(mutex_, &attributes) == 0);
  ::pthread_mutexattr_destroy(&attributes);
  KV_ASSERT(::pthread_mutex_lock(mutex_) == 0);
}

Liveness::~Liveness() {
  ::pthread_mutex_unlock(mutex_);
}

}  // namespace kvstore
