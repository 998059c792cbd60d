// CRC32C (Castagnoli), alone and fused with a copy, and the one routine that moves region bytes.
//
// The fastest implementation for the processor is chosen once, at load time. All of them give the
// same result; tests hold each against a table-driven reference.

#pragma once

#include <cstddef>
#include <cstdint>

namespace kvstore {

// The CRC32C of `bytes` bytes at `data`, continued from `crc` (0 to start).
// crc32c(crc32c(0, a), b) == crc32c(0, a || b).
uint32_t crc32c(uint32_t crc, const void* data, size_t bytes) noexcept;

// Copies `bytes` bytes and returns the CRC32C of the bytes that were copied, each byte of `source`
// being loaded once: the result describes `destination` even while another process writes `source`.
// The ranges do not overlap.
uint32_t crc32c_copy(uint32_t crc, void* destination, const void* source, size_t bytes) noexcept;

// Moves bytes between region memory and private memory, or within either. Under ThreadSanitizer the
// bytes move as relaxed atomics, since a concurrent access is allowed to tear them.
// The ranges do not overlap.
void region_copy(void* destination, const void* source, size_t bytes) noexcept;

// The name of the implementation in use, for doctor and benchmarks: "avx512-vpclmulqdq",
// "sse42-pclmul", "sse42", "portable", ...
const char* crc32c_implementation() noexcept;

}  // namespace kvstore
