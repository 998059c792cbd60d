// CRC32C dispatch: the first supported implementation of the list serves every call.

#include "base/crc32c.hpp"

#include <atomic>

#include "base/assert.hpp"
#include "base/crc32c_implementations.hpp"

namespace kvstore {

namespace {

constexpr const Crc32cImplementation* kImplementations[] = {
#if defined(__x86_64__)
    &kCrc32cAvx512,   &kCrc32cSse42Pclmul, &kCrc32cSse42,
#endif
#if defined(__aarch64__) && defined(__linux__)
    &kCrc32cArm,
#endif
    &kCrc32cPortable,
};

const Crc32cImplementation& fastest_supported() noexcept {
  for (const Crc32cImplementation* implementation : kImplementations) {
    if (implementation->supported()) return *implementation;
  }
  KV_ASSERT(false);
  __builtin_unreachable();
}

uint32_t resolve_update(uint32_t state, const void* data, size_t bytes) noexcept;
uint32_t resolve_copy_update(uint32_t state, void* destination, const void* source,
                             size_t bytes) noexcept;

// Constant-initialised to resolvers, so that a call from another static initialiser works too.
// Relaxed is enough: whichever value a thread sees is a function that gives the right answer.
constinit std::atomic<Crc32cUpdate> update_function{&resolve_update};
constinit std::atomic<Crc32cCopyUpdate> copy_update_function{&resolve_copy_update};

// Under ThreadSanitizer region bytes must move as atomics; the checksum then reads what was stored.
uint32_t copy_update_atomic(uint32_t state, void* destination, const void* source,
                            size_t bytes) noexcept {
  region_copy_atomic(destination, source, bytes);
  return update_function.load(std::memory_order_relaxed)(state, destination, bytes);
}

void resolve() noexcept {
  const Crc32cImplementation& implementation = fastest_supported();
  update_function.store(implementation.update, std::memory_order_relaxed);
  copy_update_function.store(kThreadSanitizer ? &copy_update_atomic : implementation.copy_update,
                             std::memory_order_relaxed);
}

uint32_t resolve_update(uint32_t state, const void* data, size_t bytes) noexcept {
  resolve();
  return update_function.load(std::memory_order_relaxed)(state, data, bytes);
}

uint32_t resolve_copy_update(uint32_t state, void* destination, const void* source,
                             size_t bytes) noexcept {
  resolve();
  return copy_update_function.load(std::memory_order_relaxed)(state, destination, source, bytes);
}

[[maybe_unused]] const bool resolved_at_load = (resolve(), true);

}  // namespace

uint32_t crc32c(uint32_t crc, const void* data, size_t bytes) noexcept {
  return ~update_function.load(std::memory_order_relaxed)(~crc, data, bytes);
}

uint32_t crc32c_copy(uint32_t crc, void* destination, const void* source, size_t bytes) noexcept {
  return ~copy_update_function.load(std::memory_order_relaxed)(~crc, destination, source, bytes);
}

const char* crc32c_implementation() noexcept {
  return fastest_supported().name;
}

std::span<const Crc32cImplementation* const> crc32c_implementations() noexcept {
  return kImplementations;
}

}  // namespace kvstore
