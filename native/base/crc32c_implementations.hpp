// The implementations behind crc32c.hpp, for its dispatcher, tests and benchmarks only.
//
// Each implementation works on the raw shift register of the CRC (`state`), which the public
// functions complement on entry and on exit. Every implementation that is compiled in is listed,
// the fastest first; one that the processor does not support must not be called.

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

namespace kvstore {

#if defined(__SANITIZE_THREAD__)
inline constexpr bool kThreadSanitizer = true;
#elif defined(__has_feature)
inline constexpr bool kThreadSanitizer = __has_feature(thread_sanitizer);
#else
inline constexpr bool kThreadSanitizer = false;
#endif

using Crc32cUpdate = uint32_t (*)(uint32_t state, const void* data, size_t bytes) noexcept;
using Crc32cCopyUpdate = uint32_t (*)(uint32_t state, void* destination, const void* source,
                                      size_t bytes) noexcept;

struct Crc32cImplementation {
  const char* name;
  bool (*supported)() noexcept;
  Crc32cUpdate update;
  Crc32cCopyUpdate copy_update;
};

#if defined(__x86_64__)
extern const Crc32cImplementation kCrc32cAvx512;
extern const Crc32cImplementation kCrc32cSse42Pclmul;
extern const Crc32cImplementation kCrc32cSse42;
#endif
#if defined(__aarch64__) && defined(__linux__)
extern const Crc32cImplementation kCrc32cArm;
#endif
extern const Crc32cImplementation kCrc32cPortable;

// Fastest first; the last one is portable and always supported.
std::span<const Crc32cImplementation* const> crc32c_implementations() noexcept;

// What region_copy does under ThreadSanitizer, compiled into every build so that each tests it.
void region_copy_atomic(void* destination, const void* source, size_t bytes) noexcept;

// The generator polynomial 0x1EDC6F41, bit-reflected: bit 31 is the coefficient of x^0.
inline constexpr uint32_t kCrc32cPolynomial = 0x82F63B78u;

// The reflected product of two reflected polynomials modulo the generator.
constexpr uint32_t crc32c_multiply(uint32_t a, uint32_t b) {
  uint32_t product = 0;
  for (int bit = 31; bit >= 0; --bit) {
    if ((b >> bit) & 1) product ^= a;
    a = (a >> 1) ^ ((a & 1) ? kCrc32cPolynomial : 0);
  }
  return product;
}

// x^exponent modulo the generator, reflected.
constexpr uint32_t crc32c_power_of_x(uint64_t exponent) {
  uint32_t power = 0x80000000u;   // x^0
  uint32_t square = 0x40000000u;  // x^1
  for (; exponent != 0; exponent >>= 1) {
    if (exponent & 1) power = crc32c_multiply(power, square);
    square = crc32c_multiply(square, square);
  }
  return power;
}

}  // namespace kvstore
