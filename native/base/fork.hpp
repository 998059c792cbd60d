// Telling a forked child from its parent without a system call a time.

#pragma once

#include <cstdint>

namespace kvstore {

// Differs in a forked child from what it was in the parent.
uint64_t fork_generation() noexcept;

}  // namespace kvstore
