// The wire form of a message between two clients of one node.
//
//   bytes  0..3   registration of the sender
//   byte   4      form of the envelope, kForm
//   byte   5      kind of message
//   bytes  6..7   length of the content
//   bytes  8..15  incarnation of the node
//   bytes 16..23  sequence, from 1, of the sender's messages to this receiver
//   then          the content, and the code of everything before it under the receiver's key
//
// Only clients of the node can read the keys, so only they can write what a receiver accepts; and
// none of it twice (`ReplayWindow`).

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "base/siphash.hpp"
#include "fabric/datagram.h"

namespace kvstore {

inline constexpr size_t kMessageBytesMax = 256;

enum class MessageKind : uint8_t { kProbe = 0, kLock = 1, kCache = 2 };
inline constexpr unsigned kMessageKinds = 3;

struct Message {
  uint32_t from = 0;  // registration
  MessageKind kind = MessageKind::kProbe;
  uint64_t incarnation = 0;
  uint64_t sequence = 0;
  std::span<const uint8_t> content;
};

class Envelope {
 public:
  static constexpr uint8_t kForm = 1;
  static constexpr size_t kHeadBytes = 24;
  static constexpr size_t kCodeBytes = sizeof(SipCode);
  static_assert(kHeadBytes + kMessageBytesMax + kCodeBytes <= KV_DATAGRAM_BYTES_MAX);

  // `message.content` is at most kMessageBytesMax.
  void seal(const SipKey& key, const Message& message);
  const uint8_t* data() const { return bytes_.data(); }
  uint32_t size() const { return uint32_t(size_); }

  enum class Verdict { kGood, kMalformed, kForged };
  // On kGood the message's content points into `datagram`.
  static Verdict open(const SipKey& key, std::span<const uint8_t> datagram, Message& message);

 private:
  std::array<uint8_t, KV_DATAGRAM_BYTES_MAX> bytes_;
  size_t size_ = 0;
};

// Lets each sequence of one sender through once. Those too far behind the highest seen are refused
// whether they came before or not.
class ReplayWindow {
 public:
  static constexpr uint64_t kReach = 64;

  bool admit(uint64_t sequence);

 private:
  uint64_t highest_ = 0;
  uint64_t seen_ = 0;  // bit i: highest - i has come
};

}  // namespace kvstore
