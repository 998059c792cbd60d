// The content of a message about copies.

#pragma once

#include <cstdint>
#include <cstring>
#include <span>

namespace kvstore {

struct CacheMessage {
  enum Kind : uint8_t { kInvalidate = 1, kDone = 2 };

  uint8_t kind = 0;
  uint8_t empty = 0;  // done: the sender has nothing under the record any more
  uint16_t reserved = 0;
  uint32_t record = 0;
  uint64_t hash = 0;    // of the key
  uint64_t number = 0;  // of the writer's question
  // What the key's slot will hold, 0: unknown, and how long the value is that this leads to. It is
  // no more than a hint where to look next.
  uint64_t slot = 0;
  uint64_t value_bytes = 0;

  std::span<const uint8_t> bytes() const {
    return {reinterpret_cast<const uint8_t*>(this), sizeof *this};
  }
  static bool read(std::span<const uint8_t> content, CacheMessage& message) {
    if (content.size() != sizeof message) return false;
    std::memcpy(&message, content.data(), sizeof message);
    return message.kind == kInvalidate || message.kind == kDone;
  }
};
static_assert(sizeof(CacheMessage) == 40);

}  // namespace kvstore
