// The one routine that moves region bytes without a checksum.
//
// An aligned word is never torn. In a release build it is memcpy. Under ThreadSanitizer it is a
// loop of relaxed atomics in the widest unit to which both sides can be aligned together, because a
// concurrent access to region bytes is part of the protocol (a reader may see a torn object, and
// rejects it by its checksum).

#include <cstring>

#include "base/crc32c.hpp"
#include "base/crc32c_implementations.hpp"

namespace kvstore {

namespace {

// The bytes of a region have no declared type, so the unit may alias anything.
template <typename Unit>
void copy_unit(uint8_t* destination, const uint8_t* source) {
  using AnyUnit [[gnu::may_alias]] = Unit;
  const Unit value = __atomic_load_n(reinterpret_cast<const AnyUnit*>(source), __ATOMIC_RELAXED);
  __atomic_store_n(reinterpret_cast<AnyUnit*>(destination), value, __ATOMIC_RELAXED);
}

// Precondition: source and destination are equal modulo the size of a unit.
template <typename Unit>
void copy_in_units(uint8_t* destination, const uint8_t* source, size_t bytes) {
  const size_t misaligned = reinterpret_cast<uintptr_t>(destination) % sizeof(Unit);
  size_t offset = 0;
  const size_t head = misaligned == 0 ? 0 : sizeof(Unit) - misaligned;
  for (; offset < head && offset < bytes; ++offset) {
    copy_unit<uint8_t>(destination + offset, source + offset);
  }
  for (; offset + sizeof(Unit) <= bytes; offset += sizeof(Unit)) {
    copy_unit<Unit>(destination + offset, source + offset);
  }
  for (; offset < bytes; ++offset) {
    copy_unit<uint8_t>(destination + offset, source + offset);
  }
}

}  // namespace

void region_copy_atomic(void* destination, const void* source, size_t bytes) noexcept {
  auto* to = static_cast<uint8_t*>(destination);
  const auto* from = static_cast<const uint8_t*>(source);
  const uintptr_t distance =
      reinterpret_cast<uintptr_t>(destination) - reinterpret_cast<uintptr_t>(source);
  if (distance % 8 == 0) return copy_in_units<uint64_t>(to, from, bytes);
  if (distance % 4 == 0) return copy_in_units<uint32_t>(to, from, bytes);
  if (distance % 2 == 0) return copy_in_units<uint16_t>(to, from, bytes);
  copy_in_units<uint8_t>(to, from, bytes);
}

void region_copy(void* destination, const void* source, size_t bytes) noexcept {
  if (bytes == 0) return;
  if constexpr (kThreadSanitizer) {
    region_copy_atomic(destination, source, bytes);
  } else {
    // In pieces: for long copies memcpy may use `rep movs`, which tears words; of a length that the
    // compiler does not know, or it uses that itself.
    constexpr size_t kPieceBytes = 1024;
    size_t piece_bytes = kPieceBytes;
    asm volatile("" : "+r"(piece_bytes));
    auto* to = static_cast<uint8_t*>(destination);
    const auto* from = static_cast<const uint8_t*>(source);
    for (; bytes > kPieceBytes; bytes -= kPieceBytes, to += kPieceBytes, from += kPieceBytes) {
      std::memcpy(to, from, piece_bytes);
    }
    std::memcpy(to, from, bytes);
  }
}

}  // namespace kvstore
