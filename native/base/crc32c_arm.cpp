// CRC32C with the crc32c instructions of ARMv8, one chain.

#if defined(__aarch64__) && defined(__linux__)

#include <arm_acle.h>
#include <sys/auxv.h>

#include <cstring>

#include "base/crc32c_implementations.hpp"

#if defined(__clang__)
#define KV_TARGET_CRC __attribute__((target("crc")))
#else
#define KV_TARGET_CRC __attribute__((target("+crc")))
#endif

namespace kvstore {

namespace {

// HWCAP_CRC32 of <asm/hwcap.h>.
constexpr unsigned long kHardwareCapabilityCrc32 = 1ul << 7;

template <bool kCopy>
KV_TARGET_CRC uint32_t update(uint32_t state, uint8_t* destination, const uint8_t* source,
                              size_t bytes) {
  for (; bytes >= 8; bytes -= 8, source += 8) {
    uint64_t word;
    std::memcpy(&word, source, 8);
    if constexpr (kCopy) {
      std::memcpy(destination, &word, 8);
      destination += 8;
    }
    state = __crc32cd(state, word);
  }
  for (; bytes != 0; --bytes, ++source) {
    const uint8_t byte = *source;
    if constexpr (kCopy) *destination++ = byte;
    state = __crc32cb(state, byte);
  }
  return state;
}

bool supported() noexcept {
  return (getauxval(AT_HWCAP) & kHardwareCapabilityCrc32) != 0;
}

KV_TARGET_CRC uint32_t update_only(uint32_t state, const void* data, size_t bytes) noexcept {
  return update<false>(state, nullptr, static_cast<const uint8_t*>(data), bytes);
}

KV_TARGET_CRC uint32_t copy_update(uint32_t state, void* destination, const void* source,
                                   size_t bytes) noexcept {
  return update<true>(state, static_cast<uint8_t*>(destination),
                      static_cast<const uint8_t*>(source), bytes);
}

}  // namespace

constinit const Crc32cImplementation kCrc32cArm{"arm-crc32", supported, update_only, copy_update};

}  // namespace kvstore

#endif  // __aarch64__ && __linux__
