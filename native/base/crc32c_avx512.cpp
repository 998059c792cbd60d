// CRC32C by carry-less folding in 512-bit registers (AVX-512 with VPCLMULQDQ).
//
// A block is 64 bytes, as four 128-bit lanes. An accumulator stands for the message so far: to
// append a block, each lane is multiplied by x^512 modulo the generator and added to the block.
// Four accumulators over alternate blocks hide the latency of the multiplication. At the end the
// accumulator is folded into its last lane, and two crc32 instructions reduce that to 32 bits.
//
// A length that is no multiple of 64 is handled in front: zero bytes before a message do not change
// its CRC, so the first `head` bytes are moved to the end of an otherwise zero block. The state so
// far is added to the first four bytes of the message, which is where a CRC starts.
//
// Where blocks overlap, a later store covers an earlier one, and the bytes that are folded are the
// bytes of the later load: what is checksummed is what the destination keeps.

#if defined(__x86_64__)

#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 sees the deliberately undefined operands of its own intrinsics as uninitialised.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

#include <immintrin.h>

#include <cstring>

#include "base/crc32c_implementations.hpp"

#define KV_TARGET \
  __attribute__(( \
      target("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,vpclmulqdq,pclmul,sse4.2,bmi2")))
#define KV_INLINE __attribute__((always_inline)) inline

namespace kvstore {

namespace {

constexpr size_t kBlockBytes = 64;
constexpr size_t kStrideBytes = 4 * kBlockBytes;
// From here on the stores (or the loads, when nothing is stored) are aligned to blocks.
constexpr size_t kAlignBytesMin = 4096;
// From here on the stores bypass the caches. Measured with 32 MiB of last-level cache: at 64 MiB
// this is faster by 1.3 to 1.5 even when the destination is read right after, at 16 MiB it is
// faster into cold pages and no slower into warm ones, and at 2 MiB it costs a reader of the
// destination a third of its speed. Software prefetch helped at no size.
constexpr size_t kStreamBytesMin = size_t{16} << 20;
static_assert(kStreamBytesMin >= 2 * kAlignBytesMin);

// The multipliers that move a 128-bit lane `bits` further from the end of the message. The low
// quadword holds the earlier 64 bits. The carry-less product of reflected operands is short by x^1,
// and a 32-bit constant in a quadword stands for itself times x^32: hence the exponents.
constexpr uint64_t fold_low(uint64_t bits) {
  return crc32c_power_of_x(bits + 64 - 33);
}
constexpr uint64_t fold_high(uint64_t bits) {
  return crc32c_power_of_x(bits - 33);
}

struct alignas(64) LaneMultipliers {
  uint64_t quadwords[8];
};

constexpr LaneMultipliers every_lane(uint64_t bits) {
  const uint64_t low = fold_low(bits);
  const uint64_t high = fold_high(bits);
  return {{low, high, low, high, low, high, low, high}};
}

constexpr LaneMultipliers kFoldOneBlock = every_lane(512);
constexpr LaneMultipliers kFoldTwoBlocks = every_lane(1024);
constexpr LaneMultipliers kFoldThreeBlocks = every_lane(1536);
constexpr LaneMultipliers kFoldStride = every_lane(2048);
constexpr LaneMultipliers kFoldLanes{{fold_low(384), fold_high(384), fold_low(256), fold_high(256),
                                      fold_low(128), fold_high(128), 0, 0}};

struct alignas(64) ByteIndices {
  uint8_t bytes[64];
};

constexpr ByteIndices kByteIndices = [] {
  ByteIndices indices{};
  for (size_t i = 0; i < 64; ++i) indices.bytes[i] = static_cast<uint8_t>(i);
  return indices;
}();

KV_TARGET KV_INLINE __m512i load_constant(const void* constant) {
  return _mm512_load_si512(constant);
}

KV_TARGET KV_INLINE __m512i add3(__m512i a, __m512i b, __m512i c) {
  return _mm512_ternarylogic_epi64(a, b, c, 0x96);
}

// accumulator * multipliers + addend.
KV_TARGET KV_INLINE __m512i fold(__m512i accumulator, __m512i multipliers, __m512i addend) {
  return add3(_mm512_clmulepi64_epi128(accumulator, multipliers, 0x00),
              _mm512_clmulepi64_epi128(accumulator, multipliers, 0x11), addend);
}

KV_TARGET KV_INLINE __m512i state_at_front(uint32_t state) {
  return _mm512_zextsi128_si512(_mm_cvtsi32_si128(static_cast<int>(state)));
}

KV_TARGET KV_INLINE uint32_t reduce(__m512i accumulator) {
  const __m512i last_lane = _mm512_maskz_mov_epi64(0xC0, accumulator);
  const __m512i lanes = fold(accumulator, load_constant(&kFoldLanes), last_lane);
  const __m256i halves =
      _mm256_xor_si256(_mm512_castsi512_si256(lanes), _mm512_extracti64x4_epi64(lanes, 1));
  const __m128i lane =
      _mm_xor_si128(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1));
  const uint64_t state = _mm_crc32_u64(0, static_cast<uint64_t>(_mm_cvtsi128_si64(lane)));
  return static_cast<uint32_t>(
      _mm_crc32_u64(state, static_cast<uint64_t>(_mm_extract_epi64(lane, 1))));
}

// The first `bytes` bytes of the block moved to its end, zeros before them.
KV_TARGET KV_INLINE __m512i move_to_end(__m512i block, size_t bytes) {
  const __mmask64 kept = ~_bzhi_u64(~uint64_t{0}, static_cast<unsigned>(kBlockBytes - bytes));
  const __m512i distance = _mm512_set1_epi8(static_cast<char>(kBlockBytes - bytes));
  const __m512i indices = _mm512_sub_epi8(load_constant(&kByteIndices), distance);
  return _mm512_maskz_permutexvar_epi8(kept, indices, block);
}

template <bool kCopy>
struct Cursor {
  uint8_t* destination;
  const uint8_t* source;

  // The block at `offset`, stored to the destination too when copying.
  template <bool kStream = false>
  KV_TARGET KV_INLINE __m512i take(size_t offset) const {
    const __m512i block = _mm512_loadu_si512(source + offset);
    if constexpr (kCopy && kStream) {
      _mm512_stream_si512(reinterpret_cast<__m512i*>(destination + offset), block);
    } else if constexpr (kCopy) {
      _mm512_storeu_si512(destination + offset, block);
    }
    return block;
  }

  KV_INLINE void advance(size_t bytes) {
    source += bytes;
    if constexpr (kCopy) destination += bytes;
  }

  KV_INLINE size_t misaligned() const {
    return reinterpret_cast<uintptr_t>(kCopy ? destination : source) % kBlockBytes;
  }
};

template <bool kCopy, typename Unit>
KV_INLINE Unit take_unit(Cursor<kCopy>& cursor) {
  Unit unit;
  std::memcpy(&unit, cursor.source, sizeof(Unit));
  if constexpr (kCopy) std::memcpy(cursor.destination, &unit, sizeof(Unit));
  cursor.advance(sizeof(Unit));
  return unit;
}

// Precondition: bytes < 64.
template <bool kCopy>
KV_TARGET KV_INLINE uint32_t update_short(uint32_t state, Cursor<kCopy> cursor, size_t bytes) {
  if (bytes > 16) {
    const __mmask64 wanted = _bzhi_u64(~uint64_t{0}, static_cast<unsigned>(bytes));
    const __m512i block = _mm512_maskz_loadu_epi8(wanted, cursor.source);
    if constexpr (kCopy) _mm512_mask_storeu_epi8(cursor.destination, wanted, block);
    return reduce(move_to_end(_mm512_xor_si512(block, state_at_front(state)), bytes));
  }
  uint64_t wide = state;
  if (bytes == 16) wide = _mm_crc32_u64(wide, take_unit<kCopy, uint64_t>(cursor));
  if (bytes & 24) wide = _mm_crc32_u64(wide, take_unit<kCopy, uint64_t>(cursor));
  state = static_cast<uint32_t>(wide);
  if (bytes & 4) state = _mm_crc32_u32(state, take_unit<kCopy, uint32_t>(cursor));
  if (bytes & 2) state = _mm_crc32_u16(state, take_unit<kCopy, uint16_t>(cursor));
  if (bytes & 1) state = _mm_crc32_u8(state, take_unit<kCopy, uint8_t>(cursor));
  return state;
}

// Takes the first `head` + 64 bytes as an accumulator. Precondition: head < 64.
template <bool kCopy>
KV_TARGET KV_INLINE __m512i start(uint32_t state, Cursor<kCopy>& cursor, size_t head) {
  if (head == 0) {
    const __m512i block = cursor.take(0);
    cursor.advance(kBlockBytes);
    return _mm512_xor_si512(block, state_at_front(state));
  }
  const __m512i front = _mm512_xor_si512(cursor.take(0), state_at_front(state));
  const __m512i block = cursor.take(head);
  // With a head shorter than the state, the rest of the state belongs to the next block.
  const uint32_t state_rest = head < 4 ? state >> (8 * head) : 0;
  cursor.advance(head + kBlockBytes);
  return fold(move_to_end(front, head), load_constant(&kFoldOneBlock),
              _mm512_xor_si512(block, state_at_front(state_rest)));
}

struct Accumulators {
  __m512i a, b, c, d;
};

// Appends whole strides. Precondition of kStream: the destination is aligned to blocks.
template <bool kStream, bool kCopy>
KV_TARGET KV_INLINE void fold_strides(Accumulators& accumulators, Cursor<kCopy>& cursor,
                                      size_t& blocks) {
  const __m512i multipliers = load_constant(&kFoldStride);
  auto [a, b, c, d] = accumulators;
  for (; blocks >= 4; blocks -= 4) {
    a = fold(a, multipliers, cursor.template take<kStream>(0 * kBlockBytes));
    b = fold(b, multipliers, cursor.template take<kStream>(1 * kBlockBytes));
    c = fold(c, multipliers, cursor.template take<kStream>(2 * kBlockBytes));
    d = fold(d, multipliers, cursor.template take<kStream>(3 * kBlockBytes));
    cursor.advance(kStrideBytes);
  }
  accumulators = {a, b, c, d};
}

// Appends blocks by strides, `first` being the accumulator so far, and joins the accumulators.
// Precondition: blocks >= 3. Reduces `blocks` by the number of blocks taken.
template <bool kCopy>
KV_TARGET KV_INLINE __m512i append_strides(__m512i first, Cursor<kCopy>& cursor, size_t& blocks) {
  const bool stream = kCopy && blocks * kBlockBytes >= kStreamBytesMin;
  Accumulators of{first, cursor.take(0 * kBlockBytes), cursor.take(1 * kBlockBytes),
                  cursor.take(2 * kBlockBytes)};
  cursor.advance(3 * kBlockBytes);
  blocks -= 3;
  if (stream) {
    fold_strides<true>(of, cursor, blocks);
    // Streaming stores are weakly ordered: without this, the release store that publishes the
    // destination could overtake them.
    _mm_sfence();
  } else {
    fold_strides<false>(of, cursor, blocks);
  }
  const __m512i a_and_d = fold(of.a, load_constant(&kFoldThreeBlocks), of.d);
  const __m512i a_b_and_d = fold(of.b, load_constant(&kFoldTwoBlocks), a_and_d);
  return fold(of.c, load_constant(&kFoldOneBlock), a_b_and_d);
}

template <bool kCopy>
KV_TARGET KV_INLINE uint32_t update(uint32_t state, Cursor<kCopy> cursor, size_t bytes) {
  if (bytes < kBlockBytes) return update_short(state, cursor, bytes);
  const bool align = bytes >= kAlignBytesMin;
  const size_t head = (align ? -cursor.misaligned() : bytes) % kBlockBytes;
  const size_t tail = (bytes - head) % kBlockBytes;
  size_t blocks = (bytes - head) / kBlockBytes - 1;
  __m512i accumulator = start(state, cursor, head);
  if (blocks >= 3) accumulator = append_strides(accumulator, cursor, blocks);
  for (; blocks != 0; --blocks) {
    accumulator = fold(accumulator, load_constant(&kFoldOneBlock), cursor.take(0));
    cursor.advance(kBlockBytes);
  }
  state = reduce(accumulator);
  return tail == 0 ? state : update_short(state, cursor, tail);
}

bool supported() noexcept {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("vpclmulqdq") &&
         __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("sse4.2") &&
         __builtin_cpu_supports("bmi2");
}

KV_TARGET uint32_t update_only(uint32_t state, const void* data, size_t bytes) noexcept {
  return update(state, Cursor<false>{nullptr, static_cast<const uint8_t*>(data)}, bytes);
}

KV_TARGET uint32_t copy_update(uint32_t state, void* destination, const void* source,
                               size_t bytes) noexcept {
  return update(
      state, Cursor<true>{static_cast<uint8_t*>(destination), static_cast<const uint8_t*>(source)},
      bytes);
}

}  // namespace

constinit const Crc32cImplementation kCrc32cAvx512{"avx512-vpclmulqdq", supported, update_only,
                                                   copy_update};

}  // namespace kvstore

#endif  // __x86_64__
