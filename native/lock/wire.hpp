// What clients tell each other about a lock. Every message may be lost, late or doubled: each is
// true for ever, or is asked for again.

#pragma once

#include <cstdint>
#include <cstring>
#include <span>

namespace kvstore {

struct LockMessage {
  enum Kind : uint8_t {
    kGrant = 1,  // `number`: the index that holds the lock now
    kAsk = 2,    // `number`: of the question; what do you have of this lock?
    // `number`: of the question; `flags`: of the writers' place, or that of the readers, each has
    // an answer of its own; `claim`; `bound`: its index; for how long it has been so, and how many
    // threads it is for
    kAnswer = 3,
    kReset = 4,     // `number`: epoch; requests with indexes below `bound` are void
    kGone = 5,      // `number`: epoch; this client has none of these any more
    kResetOver = 6  // `number`: epoch
  };
  enum Flags : uint16_t { kExclusive = 1 };
  enum Claim : uint8_t { kNothing = 0, kWaits = 1, kHolds = 2 };

  uint8_t kind = 0;
  uint8_t claim = 0;
  uint16_t flags = 0;
  uint32_t lock = 0;
  uint64_t number = 0;
  uint64_t bound = 0;
  uint32_t age_ms = 0;
  uint32_t threads = 0;

  std::span<const uint8_t> bytes() const {
    return {reinterpret_cast<const uint8_t*>(this), sizeof *this};
  }
  // False if these bytes are no such message.
  static bool read(std::span<const uint8_t> content, LockMessage& message) {
    if (content.size() != sizeof message) return false;
    std::memcpy(&message, content.data(), sizeof message);
    return message.kind >= kGrant && message.kind <= kResetOver && message.claim <= kHolds;
  }
};
static_assert(sizeof(LockMessage) == 32);

}  // namespace kvstore
