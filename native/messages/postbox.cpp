#include "messages/postbox.hpp"

#include <sys/random.h>

#include <cstring>

#include "base/assert.hpp"
#include "base/crc32c.hpp"

namespace kvstore {
namespace {

// Who sends to one client will soon send to others: their lines come with its own.
constexpr uint32_t kLinesPerRead = 16;
static_assert(layout::kClientsMax % kLinesPerRead == 0);
// Of one call of `receive`: a flood must not keep its thread.
constexpr unsigned kReceiveMax = 256;

uint32_t checksum_of(layout::PostboxLine line) {
  line.checksum = 0;
  return crc32c(0, &line, sizeof line);
}

}  // namespace

Postbox::Postbox(PortPtr port, uint32_t registration, uint64_t incarnation,
                 const layout::Geometry& geometry)
    : port_(std::move(port)),
      registration_(registration),
      incarnation_(incarnation),
      postboxes_offset_(geometry.postboxes_offset),
      peers_(layout::kClientsMax),
      senders_(layout::kClientsMax) {
  KV_ASSERT(port_ != nullptr);
  KV_ASSERT(::getrandom(key_.data(), key_.size(), 0) == ssize_t(key_.size()));
}

void Postbox::set_handler(MessageKind kind, Handler handler) {
  handlers_[size_t(kind)] = std::move(handler);
}

Task<Status> Postbox::open(Remote& remote) {
  layout::PostboxLine line{};
  line.registration = registration_;
  static_assert(sizeof line.address == sizeof port_->address.bytes);
  std::memcpy(line.address, port_->address.bytes, sizeof line.address);
  std::memcpy(line.key, key_.data(), sizeof line.key);
  line.checksum = checksum_of(line);
  kv_op op[1] = {write_op(line_offset(registration_), &line, sizeof line)};
  co_return from_fabric(co_await remote.batch(op));
}

Status Postbox::remember(uint32_t registration, const layout::PostboxLine& line) {
  if (line.registration == 0 && line.checksum == 0) return Status::kAbsent;
  if (line.checksum != checksum_of(line)) return Status::kCorrupt;
  if (line.registration != registration) return Status::kAbsent;
  const std::lock_guard lock(peers_mutex_);
  Peer& peer = peers_[place_of(registration)];
  // Registrations grow: a line that was read before a newer client took its place comes too late.
  if (peer.registration > registration) return Status::kAbsent;
  if (peer.registration == registration) return Status::kOk;  // another thread was first
  peer.registration = registration;
  peer.sequence = 0;
  std::memcpy(peer.address.bytes, line.address, sizeof line.address);
  std::memcpy(peer.key.data(), line.key, sizeof line.key);
  return Status::kOk;
}

Status Postbox::send_at_once(uint32_t to, MessageKind kind, std::span<const uint8_t> content) {
  kv_datagram_address address;
  Envelope envelope;
  {
    const std::lock_guard lock(peers_mutex_);
    Peer& peer = peers_[place_of(to)];
    if (peer.registration != to) return Status::kPending;
    address = peer.address;
    envelope.seal(peer.key, {registration_, kind, incarnation_, ++peer.sequence, content});
  }
  if (faults_.any()) [[unlikely]] {
    faults_.release(*port_);
    if (faults_.keeps(address, envelope.data(), envelope.size())) return Status::kOk;
  }
  const bool taken = port_->ops->send(port_.get(), &address, envelope.data(), envelope.size()) != 0;
  (taken ? counts_.sent : counts_.not_sent).fetch_add(1, std::memory_order_relaxed);
  return Status::kOk;
}

Task<Status> Postbox::send(Remote& remote, uint32_t to, MessageKind kind,
                           std::span<const uint8_t> content) {
  const Status known = send_at_once(to, kind, content);
  if (known != Status::kPending) co_return known;
  std::array<layout::PostboxLine, kLinesPerRead> lines;
  const uint32_t place = uint32_t(place_of(to));
  const uint64_t first = line_offset(place - place % kLinesPerRead);
  kv_op op[1] = {read_op(first, lines.data(), sizeof lines)};
  const uint32_t posted = co_await remote.batch(op);
  if (posted != KV_FABRIC_OK) co_return from_fabric(posted);
  for (const layout::PostboxLine& line : lines) {
    if (line.registration != 0 && line.registration != to) remember(line.registration, line);
  }
  const Status found = remember(to, lines[place % kLinesPerRead]);
  if (found != Status::kOk) co_return found;
  // A client that was given the same line meanwhile may have been remembered in its place.
  const Status sent = send_at_once(to, kind, content);
  co_return sent == Status::kPending ? Status::kAbsent : sent;
}

bool Postbox::is_new(const Message& message) {
  Sender& sender = senders_[place_of(message.from)];
  // Registrations grow: an older one with the same line is gone.
  if (message.from < sender.registration) return false;
  if (message.from > sender.registration) sender = Sender{message.from, {}};
  return sender.window.admit(message.sequence);
}

unsigned Postbox::receive() {
  const std::unique_lock lock(receive_mutex_, std::try_to_lock);
  if (!lock.owns_lock()) return 0;
  if (faults_.any()) [[unlikely]]
    faults_.release(*port_);
  std::array<uint8_t, KV_DATAGRAM_BYTES_MAX> datagram;
  unsigned count = 0;
  for (unsigned i = 0; i < kReceiveMax; ++i) {
    const uint32_t bytes = port_->ops->receive(port_.get(), datagram.data());
    if (bytes == 0) break;
    Message message;
    const Envelope::Verdict verdict = Envelope::open(key_, {datagram.data(), bytes}, message);
    if (verdict != Envelope::Verdict::kGood || message.incarnation != incarnation_) {
      const bool forged = verdict != Envelope::Verdict::kMalformed;
      (forged ? counts_.forged : counts_.malformed).fetch_add(1, std::memory_order_relaxed);
      continue;
    }
    if (!is_new(message)) {
      counts_.repeated.fetch_add(1, std::memory_order_relaxed);
      continue;
    }
    counts_.received.fetch_add(1, std::memory_order_relaxed);
    ++count;
    const Handler& handler = handlers_[size_t(message.kind)];
    if (handler) handler(message);
  }
  return count;
}

}  // namespace kvstore
