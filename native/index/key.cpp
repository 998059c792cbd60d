#include "index/key.hpp"

#define XXH_INLINE_ALL
#include "third_party/xxhash.h"

namespace kvstore {

Key make_key(const void* data, uint64_t bytes) {
  return Key{static_cast<const uint8_t*>(data), uint32_t(bytes), XXH3_64bits(data, bytes)};
}

}  // namespace kvstore
