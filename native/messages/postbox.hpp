// A client's end of the messages among the clients of one node.
//
// Where a client is sent to, and under which key, stands in its postbox line at the node: it writes
// the line itself when it opens, others read it once and remember. No server takes part. A message
// may be lost or late, but what arrives is whole, from a client of the node, and new.

#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <mutex>
#include <span>
#include <vector>

#include "base/status.hpp"
#include "coro/task.hpp"
#include "fabric/port.hpp"
#include "fabric/remote.hpp"
#include "layout/layout.hpp"
#include "messages/envelope.hpp"
#include "messages/faults.hpp"

namespace kvstore {

struct PostboxCounts {
  std::atomic<uint64_t> sent{0};
  std::atomic<uint64_t> not_sent{0};  // the fabric did not take them
  std::atomic<uint64_t> received{0};
  std::atomic<uint64_t> malformed{0};
  std::atomic<uint64_t> forged{0};
  std::atomic<uint64_t> repeated{0};
};

class Postbox {
 public:
  using Handler = std::function<void(const Message&)>;

  Postbox(PortPtr port, uint32_t registration, uint64_t incarnation,
          const layout::Geometry& geometry);

  // Takes messages of a kind, on the thread that called `receive`. To be set before `open`.
  void set_handler(MessageKind kind, Handler handler);
  // Writes the line. Only then does anybody find us.
  Task<Status> open(Remote& remote);

  // kOk once the fabric has it, which says nothing about its arrival; kAbsent if there is no such
  // client, or none that opened a postbox; kCorrupt if its line does not say: it may have one.
  // Reads the line the first time. Any thread.
  Task<Status> send(Remote& remote, uint32_t to, MessageKind kind,
                    std::span<const uint8_t> content);
  // The same without a verb: kPending if the line must be read first.
  Status send_at_once(uint32_t to, MessageKind kind, std::span<const uint8_t> content);

  // Hands over what has arrived, up to a bound; returns how many messages. Any thread; while one is
  // at it, others return 0.
  unsigned receive();
  int wait_descriptor() const { return port_->ops->wait_descriptor(port_.get()); }
  uint32_t registration() const { return registration_; }
  const PostboxCounts& counts() const { return counts_; }

 private:
  struct Peer {
    uint32_t registration = 0;  // 0: none
    uint64_t sequence = 0;      // of the last message to it
    kv_datagram_address address{};
    SipKey key{};
  };
  struct Sender {
    uint32_t registration = 0;
    ReplayWindow window;
  };

  static size_t place_of(uint32_t registration) { return registration % layout::kClientsMax; }
  uint64_t line_offset(uint32_t registration) const {
    return postboxes_offset_ + place_of(registration) * layout::kLineBytes;
  }
  Status remember(uint32_t registration, const layout::PostboxLine& line);
  bool is_new(const Message& message);

  const PortPtr port_;
  const uint32_t registration_;
  const uint64_t incarnation_;
  const uint64_t postboxes_offset_;
  SipKey key_{};
  std::array<Handler, kMessageKinds> handlers_;
  PostboxCounts counts_;
  MessageFaults faults_;
  std::mutex peers_mutex_;
  std::vector<Peer> peers_;  // by place
  std::mutex receive_mutex_;
  std::vector<Sender> senders_;  // by place
};

}  // namespace kvstore
