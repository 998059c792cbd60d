// The two orderings of a sequence lock that acquire and release operations can't express: a check
// after relaxed reads, and relaxed writes after a mark. Not C++ fences, for ThreadSanitizer does
// not know those; what they order are relaxed atomics there (`region_copy`), never a race.

#pragma once

namespace kvstore {

// What was read before this is not read again, or only then, behind a read that follows.
inline void order_reads() noexcept {
#if defined(__aarch64__)
  asm volatile("dmb ishld" ::: "memory");
#else
  asm volatile("" ::: "memory");  // loads are in order on x86-64
#endif
}

// What was written before this is seen before what follows.
inline void order_writes() noexcept {
#if defined(__aarch64__)
  asm volatile("dmb ishst" ::: "memory");
#else
  asm volatile("" ::: "memory");  // so are stores
#endif
}

}  // namespace kvstore
