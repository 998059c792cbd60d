// One-sided operations executed by a processor on a region that other threads and processes access
// at the same time. Offsets have been checked by the caller.
//
// A connection executes its operations in order. Loads and stores of single words and atomics are
// sequentially consistent; longer transfers are plain copies, so `region_order` must stand between
// a longer WRITE and whatever follows it.

#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "base/crc32c.hpp"

namespace kvstore {

namespace region_detail {

// Region bytes have no declared type, so a word of them may alias anything.
using Word [[gnu::may_alias]] = uint64_t;

inline bool is_word(const void* address, size_t bytes) {
  return bytes == sizeof(Word) && reinterpret_cast<uintptr_t>(address) % sizeof(Word) == 0;
}

}  // namespace region_detail

inline void region_read(void* destination, const uint8_t* source, size_t bytes) {
  if (region_detail::is_word(source, bytes)) {
    const uint64_t word =
        __atomic_load_n(reinterpret_cast<const region_detail::Word*>(source), __ATOMIC_SEQ_CST);
    std::memcpy(destination, &word, sizeof(word));
  } else {
    region_copy(destination, source, bytes);
  }
}

inline void region_write(uint8_t* destination, const void* source, size_t bytes) {
  if (region_detail::is_word(destination, bytes)) {
    uint64_t word;
    std::memcpy(&word, source, sizeof(word));
    __atomic_store_n(reinterpret_cast<region_detail::Word*>(destination), word, __ATOMIC_SEQ_CST);
  } else {
    region_copy(destination, source, bytes);
  }
}

// Returns the word before; it is `expected` if and only if `desire` was stored.
inline uint64_t region_cas(uint8_t* address, uint64_t expected, uint64_t desire) {
  __atomic_compare_exchange_n(reinterpret_cast<region_detail::Word*>(address), &expected, desire,
                              false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
  return expected;
}

inline uint64_t region_faa(uint8_t* address, uint64_t addend) {
  return __atomic_fetch_add(reinterpret_cast<region_detail::Word*>(address), addend,
                            __ATOMIC_SEQ_CST);
}

// Orders a longer WRITE before every later access of this thread.
inline void region_order() {
  // An exchange is a full barrier on x86, and ThreadSanitizer models it.
  static thread_local std::atomic<uint64_t> order_word{0};
  order_word.exchange(0, std::memory_order_seq_cst);
}

}  // namespace kvstore
