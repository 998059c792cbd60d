// SipHash-2-4 with 128 bits of output (Aumasson and Bernstein, INDOCRYPT 2012): a short message
// authentication code. Who does not know the key can neither compute nor guess it.

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

namespace kvstore {

inline constexpr size_t kSipKeyBytes = 16;

using SipKey = std::array<uint8_t, kSipKeyBytes>;
using SipCode = std::array<uint8_t, 16>;

SipCode siphash(const SipKey& key, std::span<const uint8_t> message);

// In a time that does not tell where they differ.
bool equal_in_constant_time(std::span<const uint8_t> a, std::span<const uint8_t> b);

}  // namespace kvstore
