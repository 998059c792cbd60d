#include "messages/envelope.hpp"

#include <cstring>

#include "base/assert.hpp"

namespace kvstore {
namespace {

struct Head {
  uint32_t from;
  uint8_t form;
  uint8_t kind;
  uint16_t content_bytes;
  uint64_t incarnation;
  uint64_t sequence;
};
static_assert(sizeof(Head) == Envelope::kHeadBytes);

}  // namespace

void Envelope::seal(const SipKey& key, const Message& message) {
  KV_ASSERT(message.content.size() <= kMessageBytesMax);
  const Head head{message.from,          kForm,
                  uint8_t(message.kind), uint16_t(message.content.size()),
                  message.incarnation,   message.sequence};
  std::memcpy(bytes_.data(), &head, sizeof head);
  if (!message.content.empty()) {
    std::memcpy(bytes_.data() + kHeadBytes, message.content.data(), message.content.size());
  }
  const size_t coded = kHeadBytes + message.content.size();
  const SipCode code = siphash(key, {bytes_.data(), coded});
  std::memcpy(bytes_.data() + coded, code.data(), code.size());
  size_ = coded + code.size();
}

Envelope::Verdict Envelope::open(const SipKey& key, std::span<const uint8_t> datagram,
                                 Message& message) {
  if (datagram.size() < kHeadBytes + kCodeBytes) return Verdict::kMalformed;
  Head head;
  std::memcpy(&head, datagram.data(), sizeof head);
  const size_t coded = datagram.size() - kCodeBytes;
  if (head.form != kForm || head.kind >= kMessageKinds || head.content_bytes > kMessageBytesMax ||
      kHeadBytes + head.content_bytes != coded) {
    return Verdict::kMalformed;
  }
  const SipCode code = siphash(key, datagram.first(coded));
  if (!equal_in_constant_time(code, datagram.subspan(coded))) return Verdict::kForged;
  message = Message{head.from, MessageKind(head.kind), head.incarnation, head.sequence,
                    datagram.subspan(kHeadBytes, head.content_bytes)};
  return Verdict::kGood;
}

bool ReplayWindow::admit(uint64_t sequence) {
  if (sequence > highest_) {
    const uint64_t ahead = sequence - highest_;
    seen_ = ahead < kReach ? seen_ << ahead : 0;
    seen_ |= 1;
    highest_ = sequence;
    return true;
  }
  const uint64_t behind = highest_ - sequence;
  if (sequence == 0 || behind >= kReach) return false;
  const uint64_t bit = uint64_t{1} << behind;
  if ((seen_ & bit) != 0) return false;
  seen_ |= bit;
  return true;
}

}  // namespace kvstore
