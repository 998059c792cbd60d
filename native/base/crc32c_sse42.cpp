// CRC32C with the crc32 instruction of SSE4.2, alone ("sse42") and, where PCLMULQDQ exists too, in
// three interleaved lanes ("sse42-pclmul"): the instruction has a latency of three cycles and a
// throughput of one per cycle, so three independent chains keep it busy.
//
// A stretch of 3 * n words is checksummed as three lanes of n words. With A, B and C the states of
// the lanes (B and C starting from zero), the state of the whole is
// A * x^(128 n) + B * x^(64 n) + C.

#if defined(__x86_64__)

#include <immintrin.h>

#include <cstring>

#include "base/crc32c_implementations.hpp"

#define KV_TARGET_SSE42 __attribute__((target("sse4.2")))
#define KV_TARGET_PCLMUL __attribute__((target("sse4.2,pclmul")))
#define KV_INLINE __attribute__((always_inline)) inline

namespace kvstore {

namespace {

constexpr size_t kLaneCount = 3;
constexpr size_t kLaneWordsMax = 128;
// Below this, joining the lanes costs more than interleaving them saves.
constexpr size_t kLaneWordsMin = 6;

// kShifts[n] multiplies a state by x^(64 n): a carry-less product of two reflected 32-bit values is
// short by x^1 of their product as a reflected 64-bit word, and crc32 of that word multiplies by
// x^32, so the constant is x^(64 n - 33).
constexpr auto kShifts = [] {
  std::array<uint32_t, 2 * kLaneWordsMax + 1> shifts{};
  for (size_t words = 1; words < shifts.size(); ++words) {
    shifts[words] = crc32c_power_of_x(64 * words - 33);
  }
  return shifts;
}();

template <bool kCopy>
KV_INLINE uint64_t take_word(uint8_t* destination, const uint8_t* source, size_t offset) {
  uint64_t word;
  std::memcpy(&word, source + offset, 8);
  if constexpr (kCopy) std::memcpy(destination + offset, &word, 8);
  return word;
}

template <bool kCopy>
KV_TARGET_SSE42 KV_INLINE uint32_t serial(uint32_t state, uint8_t* destination,
                                          const uint8_t* source, size_t bytes) {
  uint64_t wide = state;
  size_t offset = 0;
  for (; offset + 8 <= bytes; offset += 8) {
    wide = _mm_crc32_u64(wide, take_word<kCopy>(destination, source, offset));
  }
  state = static_cast<uint32_t>(wide);
  for (; offset < bytes; ++offset) {
    const uint8_t byte = source[offset];
    if constexpr (kCopy) destination[offset] = byte;
    state = _mm_crc32_u8(state, byte);
  }
  return state;
}

KV_TARGET_PCLMUL KV_INLINE uint64_t shift_unreduced(uint32_t state, size_t words) {
  const __m128i product =
      _mm_clmulepi64_si128(_mm_cvtsi32_si128(static_cast<int>(state)),
                           _mm_cvtsi32_si128(static_cast<int>(kShifts[words])), 0);
  return static_cast<uint64_t>(_mm_cvtsi128_si64(product));
}

template <bool kCopy>
KV_TARGET_PCLMUL KV_INLINE uint32_t interleaved(uint32_t state, uint8_t* destination,
                                                const uint8_t* source, size_t bytes) {
  while (bytes >= kLaneCount * kLaneWordsMin * 8) {
    const size_t available = bytes / (kLaneCount * 8);
    const size_t lane_words = available < kLaneWordsMax ? available : kLaneWordsMax;
    const size_t lane_bytes = lane_words * 8;
    uint64_t a = state;
    uint64_t b = 0;
    uint64_t c = 0;
    for (size_t offset = 0; offset < lane_bytes; offset += 8) {
      a = _mm_crc32_u64(a, take_word<kCopy>(destination, source, offset));
      b = _mm_crc32_u64(b, take_word<kCopy>(destination, source, offset + lane_bytes));
      c = _mm_crc32_u64(c, take_word<kCopy>(destination, source, offset + 2 * lane_bytes));
    }
    const uint64_t shifted = shift_unreduced(static_cast<uint32_t>(a), 2 * lane_words) ^
                             shift_unreduced(static_cast<uint32_t>(b), lane_words);
    state = static_cast<uint32_t>(_mm_crc32_u64(0, shifted) ^ c);
    source += kLaneCount * lane_bytes;
    if constexpr (kCopy) destination += kLaneCount * lane_bytes;
    bytes -= kLaneCount * lane_bytes;
  }
  return serial<kCopy>(state, destination, source, bytes);
}

bool sse42_supported() noexcept {
  return __builtin_cpu_supports("sse4.2");
}

bool pclmul_supported() noexcept {
  return __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("pclmul");
}

KV_TARGET_SSE42 uint32_t sse42_update(uint32_t state, const void* data, size_t bytes) noexcept {
  return serial<false>(state, nullptr, static_cast<const uint8_t*>(data), bytes);
}

KV_TARGET_SSE42 uint32_t sse42_copy_update(uint32_t state, void* destination, const void* source,
                                           size_t bytes) noexcept {
  return serial<true>(state, static_cast<uint8_t*>(destination),
                      static_cast<const uint8_t*>(source), bytes);
}

KV_TARGET_PCLMUL uint32_t pclmul_update(uint32_t state, const void* data, size_t bytes) noexcept {
  return interleaved<false>(state, nullptr, static_cast<const uint8_t*>(data), bytes);
}

KV_TARGET_PCLMUL uint32_t pclmul_copy_update(uint32_t state, void* destination, const void* source,
                                             size_t bytes) noexcept {
  return interleaved<true>(state, static_cast<uint8_t*>(destination),
                           static_cast<const uint8_t*>(source), bytes);
}

}  // namespace

constinit const Crc32cImplementation kCrc32cSse42{"sse42", sse42_supported, sse42_update,
                                                  sse42_copy_update};

constinit const Crc32cImplementation kCrc32cSse42Pclmul{"sse42-pclmul", pclmul_supported,
                                                        pclmul_update, pclmul_copy_update};

}  // namespace kvstore

#endif  // __x86_64__
