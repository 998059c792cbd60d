// CRC32C without special instructions: slicing by eight, with tables built at compile time.
//
// Table k maps a byte to its effect on the state after k more zero bytes, so that the eight bytes
// of a word are looked up independently of each other.

#include <bit>
#include <cstring>

#include "base/crc32c_implementations.hpp"

namespace kvstore {

namespace {

using Tables = std::array<std::array<uint32_t, 256>, 8>;

constexpr Tables make_tables() {
  Tables tables{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t state = byte;
    for (int bit = 0; bit < 8; ++bit) {
      state = (state >> 1) ^ ((state & 1) ? kCrc32cPolynomial : 0);
    }
    tables[0][byte] = state;
  }
  for (size_t slice = 1; slice < 8; ++slice) {
    for (size_t byte = 0; byte < 256; ++byte) {
      const uint32_t shorter = tables[slice - 1][byte];
      tables[slice][byte] = (shorter >> 8) ^ tables[0][shorter & 0xFF];
    }
  }
  return tables;
}

constexpr Tables kTables = make_tables();

uint32_t update_byte(uint32_t state, uint8_t byte) {
  return (state >> 8) ^ kTables[0][(state ^ byte) & 0xFF];
}

uint32_t update_word(uint32_t state, uint64_t word) {
  if constexpr (std::endian::native == std::endian::big) word = __builtin_bswap64(word);
  word ^= state;
  uint32_t result = 0;
  for (size_t position = 0; position < 8; ++position) {
    result ^= kTables[7 - position][(word >> (8 * position)) & 0xFF];
  }
  return result;
}

template <bool kCopy>
uint32_t update(uint32_t state, uint8_t* destination, const uint8_t* source, size_t bytes) {
  for (; bytes >= 8; bytes -= 8, source += 8) {
    uint64_t word;
    std::memcpy(&word, source, 8);
    if constexpr (kCopy) {
      std::memcpy(destination, &word, 8);
      destination += 8;
    }
    state = update_word(state, word);
  }
  for (; bytes != 0; --bytes, ++source) {
    const uint8_t byte = *source;
    if constexpr (kCopy) *destination++ = byte;
    state = update_byte(state, byte);
  }
  return state;
}

bool supported() noexcept {
  return true;
}

uint32_t update_only(uint32_t state, const void* data, size_t bytes) noexcept {
  return update<false>(state, nullptr, static_cast<const uint8_t*>(data), bytes);
}

uint32_t copy_update(uint32_t state, void* destination, const void* source, size_t bytes) noexcept {
  return update<true>(state, static_cast<uint8_t*>(destination),
                      static_cast<const uint8_t*>(source), bytes);
}

}  // namespace

constinit const Crc32cImplementation kCrc32cPortable{"portable", supported, update_only,
                                                     copy_update};

}  // namespace kvstore
