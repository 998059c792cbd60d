#include "base/siphash.hpp"

#include <algorithm>
#include <bit>
#include <cstring>

namespace kvstore {
namespace {

constexpr unsigned kRoundsAWord = 2;
constexpr unsigned kRoundsAtEnd = 4;

uint64_t load(const uint8_t* bytes) {
  uint64_t word = 0;
  std::memcpy(&word, bytes, sizeof word);
  return word;
}

struct State {
  uint64_t v0, v1, v2, v3;

  explicit State(const SipKey& key) {
    const uint64_t k0 = load(key.data());
    const uint64_t k1 = load(key.data() + 8);
    v0 = k0 ^ 0x736f6d6570736575ull;
    v1 = k1 ^ 0x646f72616e646f6dull ^ 0xee;  // 0xee: 128 bits are wanted
    v2 = k0 ^ 0x6c7967656e657261ull;
    v3 = k1 ^ 0x7465646279746573ull;
  }

  void rounds(unsigned count) {
    for (unsigned i = 0; i < count; ++i) {
      v0 += v1;
      v1 = std::rotl(v1, 13) ^ v0;
      v0 = std::rotl(v0, 32);
      v2 += v3;
      v3 = std::rotl(v3, 16) ^ v2;
      v0 += v3;
      v3 = std::rotl(v3, 21) ^ v0;
      v2 += v1;
      v1 = std::rotl(v1, 17) ^ v2;
      v2 = std::rotl(v2, 32);
    }
  }
  void absorb(uint64_t word) {
    v3 ^= word;
    rounds(kRoundsAWord);
    v0 ^= word;
  }
  uint64_t squeeze() {
    rounds(kRoundsAtEnd);
    return v0 ^ v1 ^ v2 ^ v3;
  }
};

}  // namespace

SipCode siphash(const SipKey& key, std::span<const uint8_t> message) {
  State state(key);
  const size_t whole = message.size() / 8 * 8;
  for (size_t at = 0; at < whole; at += 8) state.absorb(load(message.data() + at));
  std::array<uint8_t, 8> last{};
  std::copy(message.begin() + ptrdiff_t(whole), message.end(), last.begin());
  last[7] = uint8_t(message.size());
  state.absorb(load(last.data()));

  state.v2 ^= 0xee;
  const uint64_t low = state.squeeze();
  state.v1 ^= 0xdd;
  const uint64_t high = state.squeeze();
  SipCode code;
  std::memcpy(code.data(), &low, 8);
  std::memcpy(code.data() + 8, &high, 8);
  return code;
}

bool equal_in_constant_time(std::span<const uint8_t> a, std::span<const uint8_t> b) {
  unsigned difference = unsigned(a.size() != b.size());
  for (size_t i = 0; i < a.size() && i < b.size(); ++i) difference |= unsigned(a[i] ^ b[i]);
  return difference == 0;
}

}  // namespace kvstore
