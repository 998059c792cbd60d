#include "lock/name.hpp"

#define XXH_INLINE_ALL
#include "third_party/xxhash.h"

namespace kvstore {

LockName make_lock_name(const void* data, uint64_t bytes) {
  const XXH128_hash_t hash = XXH3_128bits(data, bytes);
  return LockName{hash.low64, hash.high64};
}

}  // namespace kvstore
