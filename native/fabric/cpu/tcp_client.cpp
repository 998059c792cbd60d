// The client side of the tcp fabric: one non-blocking connection to an agent.
//
// Batches stand in one queue from post to completion: the oldest is the one whose response is being
// received, and RequestGather encodes them from somewhere behind it. `poll` alternates between
// sending and receiving and never waits for either, so two full directions cannot block each other.

#include <poll.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>

#include "base/assert.hpp"
#include "fabric/cpu/frame.hpp"
#include "fabric/cpu/tcp.hpp"
#include "fabric/cpu/tcp_gather.hpp"
#include "fabric/cpu/tcp_socket.hpp"

namespace kvstore {

namespace {

constexpr size_t kReceiveBytes = 64 * 1024;
// A piece of a READ; its CRC32C is taken in the cache.
constexpr size_t kDirectBytesMax = 256 * 1024;
constexpr size_t kLeadBytesMax = 4096;
// Behind a longer payload the buffer takes no more than a lead: what comes next is mostly another
// long payload, and what the buffer takes of that has to be copied once more.
constexpr uint64_t kLongPayloadBytes = 64 * 1024;
constexpr size_t kPollBytesMax = 4 * 1024 * 1024;  // per direction, so that a poll stays short
constexpr uint32_t kEagerReadBytes = 64 * 1024;
// Posted batches that are sent without waiting for the poll, so that the agent executes the first
// of many while the poster still prepares the others.
constexpr uint32_t kHeldBackMax = 32;
constexpr unsigned kPeerPatienceMs = 10'000;

class TcpConnection : public kv_connection {
 public:
  TcpConnection(OwnedFd fd, const frame::Welcome& welcome);

  uint32_t post(kv_batch* batch);
  uint32_t poll();
  int wait_descriptor(short* events) const;
  void close();

 private:
  bool send_queued();
  bool receive_available();
  bool receive_once(size_t& received, bool& drained);
  bool digest(const uint8_t* bytes, size_t count);
  bool send_step(size_t& budget, bool& more);
  void expect_oldest();
  void complete_oldest(uint32_t status);
  void break_connection();

  OwnedFd fd_;
  uint32_t completed_ = 0;  // since the beginning of the current poll
  uint32_t outstanding_ = 0;
  uint32_t held_back_ = 0;  // batches posted since the last sending
  uint64_t last_sequence_ = 0;
  uint64_t ill_formed_sequence_ = UINT64_MAX;
  kv_batch* oldest_ = nullptr;
  kv_batch* newest_ = nullptr;
  RequestGather gather_;
  frame::ResponseReader reader_;
  std::unique_ptr<uint8_t[]> receive_buffer_;
};

TcpConnection& self(kv_connection* connection) {
  return *static_cast<TcpConnection*>(connection);
}

uint32_t tcp_post(kv_connection* connection, kv_batch* batch) {
  return self(connection).post(batch);
}
uint32_t tcp_poll(kv_connection* connection) {
  return self(connection).poll();
}
int tcp_wait_descriptor(kv_connection* connection, short* events) {
  return self(connection).wait_descriptor(events);
}
void tcp_close(kv_connection* connection) {
  self(connection).close();
}
void tcp_destroy(kv_connection* connection) {
  self(connection).close();
  delete &self(connection);
}

constexpr kv_connection_ops kTcpOps = {KV_FABRIC_ABI_VERSION, tcp_post,  tcp_poll,
                                       tcp_wait_descriptor,   tcp_close, tcp_destroy};

TcpConnection::TcpConnection(OwnedFd fd, const frame::Welcome& welcome)
    : kv_connection{}, fd_(std::move(fd)), receive_buffer_(new uint8_t[kReceiveBytes]) {
  ops = &kTcpOps;
  region_bytes = welcome.region_bytes;
  max_batch_ops = std::min(welcome.max_batch_ops, frame::kMaxBatchOps);
  max_outstanding = std::min(welcome.max_outstanding, frame::kMaxOutstanding);
  eager_read_bytes = kEagerReadBytes;
}

uint32_t TcpConnection::post(kv_batch* batch) {
  if (broken != 0) return KV_FABRIC_DOWN;
  if (batch->op_count == 0 || batch->op_count > max_batch_ops) {
    close();
    return KV_FABRIC_REFUSED;
  }
  KV_ASSERT(outstanding_ < max_outstanding);
  bool well_formed = true;
  for (uint32_t i = 0; i < batch->op_count && well_formed; ++i) {
    well_formed = frame::operation_allowed(frame::describe(batch->ops[i]), region_bytes);
  }
  batch->status = KV_FABRIC_PENDING;
  batch->next = nullptr;
  batch->sequence = ++last_sequence_;
  if (!well_formed) ill_formed_sequence_ = std::min(ill_formed_sequence_, batch->sequence);
  const bool first = oldest_ == nullptr;
  if (first) {
    oldest_ = batch;
  } else {
    newest_->next = batch;
  }
  newest_ = batch;
  ++outstanding_;
  gather_.enqueue(batch, well_formed);
  if (first) expect_oldest();
  // A failure to send will be met again by the poll, which may complete batches as lost.
  if (++held_back_ >= kHeldBackMax) (void)send_queued();
  return KV_FABRIC_PENDING;
}

void TcpConnection::expect_oldest() {
  reader_.expect(oldest_, oldest_ != nullptr && oldest_->sequence < ill_formed_sequence_);
}

void TcpConnection::complete_oldest(uint32_t status) {
  kv_batch* batch = oldest_;
  oldest_ = batch->next;
  if (oldest_ == nullptr) newest_ = nullptr;
  --outstanding_;
  ++completed_;
  batch->next = nullptr;
  batch->status = status;
  batch->complete(batch);
}

void TcpConnection::break_connection() {
  broken = 1;
  fd_.reset();
  while (oldest_ != nullptr) complete_oldest(KV_FABRIC_LOST);
}

void TcpConnection::close() {
  if (broken == 0) break_connection();
}

int TcpConnection::wait_descriptor(short* events) const {
  *events = POLLIN;
  if (!gather_.idle()) *events |= POLLOUT;
  if (broken != 0) *events = 0;
  return fd_.get();
}

// Sends one gather list, or what is left of it. Returns false if the connection cannot send.
bool TcpConnection::send_step(size_t& budget, bool& more) {
  more = gather_.fill();
  if (!more) return true;
  const size_t wanted = gather_.unsent_bytes();
  msghdr message{};
  message.msg_iov = const_cast<iovec*>(gather_.vectors());
  message.msg_iovlen = gather_.vector_count();
  const ssize_t sent = sendmsg(fd_.get(), &message, MSG_NOSIGNAL | MSG_DONTWAIT);
  if (sent < 0 && errno == EINTR) return true;
  if (sent < 0) {
    more = false;
    return errno == EAGAIN;
  }
  gather_.sent(static_cast<size_t>(sent));
  more = static_cast<size_t>(sent) == wanted && budget > wanted;
  budget -= std::min(budget, wanted);
  return true;
}

bool TcpConnection::send_queued() {
  held_back_ = 0;
  size_t budget = kPollBytesMax;
  bool more = true;
  while (more) {
    if (!send_step(budget, more)) return false;
  }
  return true;
}

// Returns false if the stream is no longer one of responses to what was asked.
bool TcpConnection::digest(const uint8_t* bytes, size_t count) {
  for (;;) {
    size_t consumed = 0;
    const auto event = reader_.feed(bytes, count, consumed);
    bytes += consumed;
    count -= consumed;
    switch (event) {
      case frame::ResponseReader::Event::kNeedMore:
        return true;
      case frame::ResponseReader::Event::kGarbled:
        return false;
      case frame::ResponseReader::Event::kRefused:
        complete_oldest(KV_FABRIC_REFUSED);
        return false;
      case frame::ResponseReader::Event::kCompleted:
        // An answer to what has not been asked in full; its memory may still be read for sending.
        if (!gather_.fully_sent(*oldest_)) return false;
        complete_oldest(KV_FABRIC_OK);
        expect_oldest();
        if (oldest_ == nullptr) return count == 0;
        if (count == 0) return true;
        break;
    }
  }
}

// Returns false if the connection is over.
bool TcpConnection::receive_once(size_t& received, bool& drained) {
  uint8_t* const buffer = receive_buffer_.get();
  const auto plan = reader_.plan(kLeadBytesMax, kDirectBytesMax);
  iovec vectors[3];
  size_t vector_count = 0;
  if (plan.lead_bytes > 0) vectors[vector_count++] = iovec{buffer, plan.lead_bytes};
  if (plan.direct_bytes > 0) vectors[vector_count++] = iovec{plan.destination, plan.direct_bytes};
  if (plan.ends_payload || plan.direct_bytes == 0) {
    const bool long_payload = plan.payload_bytes >= kLongPayloadBytes;
    const size_t room = kReceiveBytes - plan.lead_bytes;
    vectors[vector_count++] =
        iovec{buffer + plan.lead_bytes, long_payload ? std::min(room, kLeadBytesMax) : room};
  }
  const ssize_t count = plan.direct_bytes == 0
                            ? recv(fd_.get(), buffer, kReceiveBytes, MSG_DONTWAIT)
                            : readv(fd_.get(), vectors, static_cast<int>(vector_count));
  // In the middle of a long transfer more is about to arrive: asking again costs less than
  // sleeping.
  drained = count <= 0 || (plan.direct_bytes == 0 && static_cast<size_t>(count) < kReceiveBytes);
  received = count > 0 ? static_cast<size_t>(count) : 0;
  if (count < 0) return errno == EAGAIN || errno == EINTR;
  if (count == 0) return false;
  if (plan.direct_bytes == 0) return digest(buffer, received);
  const size_t lead = std::min(received, plan.lead_bytes);
  if (!digest(buffer, lead)) return false;
  const size_t direct = std::min(received - lead, plan.direct_bytes);
  if (direct == 0) return true;
  reader_.credit(direct);
  return digest(buffer + lead, received - lead - direct);
}

bool TcpConnection::receive_available() {
  size_t total = 0;
  bool drained = false;
  while (!drained && total < kPollBytesMax) {
    size_t received = 0;
    if (!receive_once(received, drained)) return false;
    total += received;
  }
  return true;
}

uint32_t TcpConnection::poll() {
  completed_ = 0;
  if (broken != 0) return 0;
  // What the agent said before it closed is still worth reading when sending has failed.
  const bool can_send = send_queued();
  if (!receive_available() || !can_send) break_connection();
  return completed_;
}

const char* refusal_text(uint32_t status) {
  switch (status) {
    case frame::kWelcomeVersion:
      return "it speaks another version of the protocol";
    case frame::kWelcomeIncarnation:
      return "the node has restarted since the attachment";
    case frame::kWelcomeToken:
      return "the token is wrong or the registration is no longer valid";
    case frame::kWelcomeFull:
      return "it has as many connections as it takes";
    default:
      return "for an unknown reason";
  }
}

// Returns whether `welcome` admits this client.
bool greet(int fd, const TcpTarget& target, uint64_t deadline_ns, frame::Welcome& welcome,
           std::string& error) {
  frame::Hello hello{};
  hello.magic = frame::kHelloMagic;
  hello.version = frame::kVersion;
  hello.registration = target.registration;
  hello.lane = target.lane;
  hello.incarnation = target.incarnation;
  std::copy(target.token.begin(), target.token.end(), hello.token);
  const std::string name = endpoint_name(target.host, target.port);
  std::string reason;
  if (!send_exactly(fd, &hello, sizeof(hello), deadline_ns, reason) ||
      !receive_exactly(fd, &welcome, sizeof(welcome), deadline_ns, reason)) {
    error = "no welcome from " + name + ": " + reason;
    return false;
  }
  if (welcome.magic != frame::kHelloMagic) {
    error = name + " is not a kvstore data port";
    return false;
  }
  if (welcome.status != frame::kWelcomeOk || welcome.version != frame::kVersion) {
    const bool other_version = welcome.version != frame::kVersion;
    const uint32_t status = other_version ? frame::kWelcomeVersion : welcome.status;
    error = name + " refused the connection: " + refusal_text(status);
    return false;
  }
  if (welcome.max_batch_ops < KV_FABRIC_BATCH_OPS_LEAST ||
      welcome.max_outstanding < KV_FABRIC_OUTSTANDING_LEAST) {
    error = name + " allows fewer operations at once than this client needs";
    return false;
  }
  return true;
}

}  // namespace

kv_connection* tcp_connect(const TcpTarget& target, uint64_t deadline_ns, std::string& error) {
  OwnedFd fd = connect_socket(target.host, target.port, deadline_ns, error);
  if (!fd.valid()) return nullptr;
  set_data_socket_options(fd.get(), kPeerPatienceMs);
  frame::Welcome welcome{};
  if (!greet(fd.get(), target, deadline_ns, welcome, error)) return nullptr;
  return new TcpConnection(std::move(fd), welcome);
}

}  // namespace kvstore
