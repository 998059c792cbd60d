#include "fabric/cpu/tcp_agent_connection.hpp"

#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/assert.hpp"
#include "fabric/cpu/tcp_region.hpp"

namespace kvstore {

namespace {

constexpr size_t kInputBytes = 64 * 1024;
// Takes the answers to 64 READs of 1 KiB: a batch of gets is answered by one system call.
constexpr size_t kOutputBytes = 128 * 1024;
// A longer payload passes through the thread's scratch memory instead of the connection's buffers.
constexpr uint64_t kShortBytesMax = 16 * 1024;
// What a long payload moves in one call at most. Smaller pieces cost more calls than they gain by
// letting the client begin earlier.
constexpr size_t kPieceBytes = 1024 * 1024;
constexpr uint64_t kShareBytes = 2 * 1024 * 1024;
constexpr uint64_t kShareOps = 256;
constexpr uint64_t kGreetingNs = 5'000'000'000;
constexpr uint64_t kDrainingNs = 1'000'000'000;

static_assert(frame::kMaxRequestHeadBytes + frame::kAlignment <= kInputBytes);
static_assert(kShortBytesMax + 2 * frame::kAlignment <= kOutputBytes);
static_assert(kPieceBytes <= TcpAgentContext::kScratchBytes);
static_assert(kInputBytes % frame::kAlignment == 0);

// ThreadSanitizer would hold the kernel's accesses to the region against those of other threads.
#if KV_REGION_THREAD_SANITIZER
constexpr bool kMoveInPlace = false;
#else
constexpr bool kMoveInPlace = true;
#endif

// Whether a long payload moves between socket and region without passing through private memory.
bool moves_in_place(const frame::OpDescriptor& op) {
  return kMoveInPlace && (op.flags & KV_OP_CRC32C) != 0;
}

// How many of `available` payload bytes may enter the region now: up to the end of a word of it, or
// to the end of the payload.
uint64_t whole_words(uint64_t offset, uint64_t available, uint64_t remaining) {
  if (available >= remaining) return remaining;
  const uint64_t partial = (offset + available) % sizeof(uint64_t);
  return available > partial ? available - partial : 0;
}

}  // namespace

TcpAgentConnection::TcpAgentConnection(OwnedFd fd, TcpAgentContext& context, uint64_t now_ns,
                                       bool admissible)
    : fd_(std::move(fd)),
      context_(&context),
      state_(State::kGreeting),
      admissible_(admissible),
      deadline_ns_(now_ns + kGreetingNs),
      descriptors_(new frame::OpDescriptor[frame::kMaxBatchOps]),
      input_(new uint8_t[kInputBytes]),
      output_(new uint8_t[kOutputBytes]) {}

bool TcpAgentConnection::overdue(uint64_t now_ns) {
  if (!has_deadline() || now_ns < deadline_ns_) return false;
  if (state_ == State::kGreeting) TcpAgentCounters::add(context_->counters.refused_frames, 1);
  return true;
}

TcpAgentConnection::Progress TcpAgentConnection::run() {
  if (state_ == State::kSuperseded) return Progress::kClosed;
  share_bytes_ = kShareBytes;
  share_ops_ = kShareOps;
  if (flush() == Step::kClosed) return Progress::kClosed;
  if (output_bytes() > 0) return Progress::kWaiting;
  for (;;) {
    const bool spent = share_bytes_ == 0 || share_ops_ == 0;
    Step step = spent ? Step::kNeedOutput : advance();
    if (step == Step::kNeedInput && readable_) {
      step = receive();
      if (step == Step::kDone) continue;
    }
    if (step == Step::kClosed) return Progress::kClosed;
    if (step == Step::kElsewhere) return Progress::kElsewhere;
    if (step == Step::kDone) continue;
    if (flush() == Step::kClosed) return Progress::kClosed;
    if (output_bytes() > 0) return Progress::kWaiting;
    if (spent) return Progress::kRunnable;
    if (step == Step::kNeedOutput && !writable_) return Progress::kWaiting;
    if (step == Step::kNeedInput) {
      return end_of_input_ ? Progress::kClosed : Progress::kWaiting;
    }
  }
}

TcpAgentConnection::Step TcpAgentConnection::advance() {
  switch (state_) {
    case State::kGreeting:
      return greet();
    case State::kServing:
      return in_batch_ ? execute_op() : begin_batch();
    case State::kDraining:
      break;
    case State::kSuperseded:
      return Step::kClosed;
  }
  // The client learns the end of the answer from the end of the stream.
  if (flush() == Step::kClosed) return Step::kClosed;
  if (output_bytes() > 0) return Step::kNeedOutput;
  shutdown(fd_.get(), SHUT_WR);
  share_bytes_ -= std::min<uint64_t>(share_bytes_, input_bytes());
  input_head_ = input_tail_ = 0;
  return Step::kNeedInput;
}

void TcpAgentConnection::begin_draining() {
  state_ = State::kDraining;
  in_batch_ = false;
  deadline_ns_ = monotonic_ns() + kDrainingNs;
}

void TcpAgentConnection::welcome(frame::WelcomeStatus status) {
  frame::Welcome answer{};
  answer.magic = frame::kHelloMagic;
  answer.version = frame::kVersion;
  answer.status = status;
  if (status == frame::kWelcomeOk) {
    answer.region_bytes = context_->region_bytes;
    answer.max_batch_ops = frame::kMaxBatchOps;
    answer.max_outstanding = frame::kMaxOutstanding;
  }
  append_output(&answer, sizeof(answer));
}

TcpAgentConnection::Step TcpAgentConnection::greet() {
  frame::Hello hello;
  if (input_bytes() < sizeof(hello)) return Step::kNeedInput;
  std::memcpy(&hello, input_.get() + input_head_, sizeof(hello));
  registration_ = hello.registration;
  lane_ = hello.lane;
  if (frame::hello_well_formed(hello) && !context_->serves(hello)) return Step::kElsewhere;
  input_head_ += sizeof(hello);
  TcpAgentCounters& counters = context_->counters;
  if (!frame::hello_well_formed(hello)) {
    TcpAgentCounters::add(counters.refused_frames, 1);
    return Step::kClosed;
  }
  frame::WelcomeStatus status = frame::kWelcomeFull;
  if (hello.version != frame::kVersion) {
    status = frame::kWelcomeVersion;
    TcpAgentCounters::add(counters.refused_frames, 1);
  } else if (admissible_) {
    status = context_->admit(hello, *this);
    if (status != frame::kWelcomeOk) TcpAgentCounters::add(counters.refused_tokens, 1);
  }
  welcome(status);
  if (status != frame::kWelcomeOk) {
    begin_draining();
    return Step::kDone;
  }
  admitted_ = true;
  state_ = State::kServing;
  return Step::kDone;
}

bool TcpAgentConnection::all_allowed() const {
  for (uint32_t i = 0; i < batch_.op_count; ++i) {
    if (!frame::operation_allowed(descriptors_[i], context_->region_bytes)) return false;
  }
  return true;
}

TcpAgentConnection::Step TcpAgentConnection::begin_batch() {
  if (output_space() < sizeof(frame::ResponseHeader)) return Step::kNeedOutput;
  size_t head_bytes = 0;
  const auto parsed = frame::parse_request_head(input_.get() + input_head_, input_bytes(), batch_,
                                                descriptors_.get(), head_bytes);
  if (parsed == frame::ParseResult::kNeedMore) return Step::kNeedInput;
  if (parsed == frame::ParseResult::kMalformed) {
    TcpAgentCounters::add(context_->counters.refused_frames, 1);
    return Step::kClosed;
  }
  input_head_ += head_bytes;
  const bool allowed = all_allowed();
  const frame::ResponseHeader header{
      frame::kResponseMagic, static_cast<uint32_t>(allowed ? KV_FABRIC_OK : KV_FABRIC_REFUSED),
      batch_.sequence};
  append_output(&header, sizeof(header));
  if (!allowed) {
    TcpAgentCounters::add(context_->counters.refused_bounds, 1);
    begin_draining();
    return Step::kDone;
  }
  in_batch_ = true;
  op_index_ = 0;
  op_bytes_ = 0;
  return Step::kDone;
}

TcpAgentConnection::Step TcpAgentConnection::execute_op() {
  if (op_index_ == batch_.op_count) return end_batch();
  const frame::OpDescriptor& op = descriptors_[op_index_];
  switch (op.kind) {
    case KV_OP_READ:
      return execute_read(op);
    case KV_OP_WRITE:
      return execute_write(op);
    default:
      return execute_atomic(op);
  }
}

void TcpAgentConnection::finish_op(std::atomic<uint64_t>& counter) {
  TcpAgentCounters::add(counter, 1);
  --share_ops_;
  op_bytes_ = 0;
  ++op_index_;
}

TcpAgentConnection::Step TcpAgentConnection::end_batch() {
  const frame::ResponseEnd mark{frame::kEndMagic, static_cast<uint32_t>(batch_.sequence)};
  if (output_space() < sizeof(mark)) return Step::kNeedOutput;
  append_output(&mark, sizeof(mark));
  in_batch_ = false;
  TcpAgentCounters::add(context_->counters.batches, 1);
  return Step::kDone;
}

TcpAgentConnection::Step TcpAgentConnection::execute_atomic(const frame::OpDescriptor& op) {
  if (output_space() < sizeof(uint64_t)) return Step::kNeedOutput;
  uint8_t* const address = context_->region + op.offset;
  const uint64_t before = op.kind == KV_OP_CAS ? region_cas(address, op.operand, op.desire)
                                               : region_faa(address, op.operand);
  append_output(&before, sizeof(before));
  finish_op(context_->counters.atomics);
  return Step::kDone;
}

TcpAgentConnection::Step TcpAgentConnection::execute_read(const frame::OpDescriptor& op) {
  const uint64_t length = op.operand;
  const uint64_t padding = frame::padding_bytes(length);
  if (op_bytes_ < length) {
    if (length > kShortBytesMax) return read_long(op);
    if (output_space() < length + padding) return Step::kNeedOutput;
    region_read(output_.get() + output_tail_, context_->region + op.offset, length);
    output_tail_ += length;
    op_bytes_ = length;
    share_bytes_ -= std::min(share_bytes_, length);
  }
  if (output_space() < padding) return Step::kNeedOutput;
  append_padding(padding);
  finish_op(context_->counters.reads);
  return Step::kDone;
}

// Sends a piece of the region with the output before it. What the kernel does not take is read
// again later, except for the rest of a word of which it has taken a part.
TcpAgentConnection::Step TcpAgentConnection::read_long(const frame::OpDescriptor& op) {
  if (!writable_ || output_space() < sizeof(uint64_t)) return Step::kNeedOutput;
  const bool in_place = moves_in_place(op);
  const size_t piece = static_cast<size_t>(std::min<uint64_t>(op.operand - op_bytes_, kPieceBytes));
  const uint64_t offset = op.offset + op_bytes_;
  uint8_t* const source = in_place ? context_->region + offset : context_->scratch.get();
  if (!in_place) region_copy(source, context_->region + offset, piece);
  const size_t before = output_bytes();
  iovec vectors[2] = {{output_.get() + output_head_, before}, {source, piece}};
  msghdr message{};
  message.msg_iov = before > 0 ? vectors : vectors + 1;
  message.msg_iovlen = before > 0 ? 2 : 1;
  // More follows: at least the end of the response, which should not cost the client a wake-up.
  const ssize_t sent = sendmsg(fd_.get(), &message, MSG_NOSIGNAL | MSG_DONTWAIT | MSG_MORE);
  if (sent < 0 && errno == EINTR) return Step::kDone;
  if (sent < 0 && errno != EAGAIN) return Step::kClosed;
  const size_t taken = sent > 0 ? static_cast<size_t>(sent) : 0;
  if (taken < before + piece) writable_ = false;
  count_sent(taken, std::min(taken, before));
  if (taken < before) return Step::kNeedOutput;
  uint64_t moved = taken - before;
  const uint64_t in_word = (offset + moved) % sizeof(uint64_t);
  if (!in_place && moved > 0 && moved < piece && in_word != 0) {
    const size_t rest =
        static_cast<size_t>(std::min<uint64_t>(sizeof(uint64_t) - in_word, piece - moved));
    append_output(source + moved, rest);
    moved += rest;
  }
  op_bytes_ += moved;
  share_bytes_ -= std::min(share_bytes_, moved);
  return writable_ ? Step::kDone : Step::kNeedOutput;
}

TcpAgentConnection::Step TcpAgentConnection::execute_write(const frame::OpDescriptor& op) {
  const uint64_t length = op.operand;
  if (op_bytes_ < length) {
    const uint64_t remaining = length - op_bytes_;
    const uint64_t offset = op.offset + op_bytes_;
    if (input_bytes() < sizeof(uint64_t) && remaining > kShortBytesMax) {
      return moves_in_place(op) ? write_in_place(op) : write_long(op);
    }
    const uint64_t taken = whole_words(offset, input_bytes(), remaining);
    if (taken == 0) return Step::kNeedInput;
    region_write(context_->region + offset, input_.get() + input_head_, taken);
    input_head_ += taken;
    op_bytes_ += taken;
    share_bytes_ -= std::min(share_bytes_, taken);
    if (op_bytes_ < length) return Step::kNeedInput;
  }
  const Step step = skip_padding(frame::padding_bytes(length));
  if (step != Step::kDone) return step;
  if (length != sizeof(uint64_t)) region_order();
  finish_op(context_->counters.writes);
  return Step::kDone;
}

TcpAgentConnection::Step TcpAgentConnection::skip_padding(uint64_t padding) {
  if (input_bytes() < padding) return Step::kNeedInput;
  for (uint64_t i = 0; i < padding; ++i) {
    if (input_[input_head_ + i] == 0) continue;
    TcpAgentCounters::add(context_->counters.refused_frames, 1);
    return Step::kClosed;
  }
  input_head_ += padding;
  return Step::kDone;
}

// Receives a piece into scratch memory and what follows the payload into the input buffer.
// Precondition: the input buffer holds at most a part of a word, which goes before the piece.
TcpAgentConnection::Step TcpAgentConnection::write_long(const frame::OpDescriptor& op) {
  if (!readable_) return Step::kNeedInput;
  uint8_t* const scratch = context_->scratch.get();
  const uint64_t remaining = op.operand - op_bytes_;
  const uint64_t offset = op.offset + op_bytes_;
  const size_t piece =
      static_cast<size_t>(std::min<uint64_t>(remaining, TcpAgentContext::kScratchBytes));
  const size_t kept = input_bytes();
  std::memcpy(scratch, input_.get() + input_head_, kept);
  // The place in the stream modulo 8 of what follows in the input buffer.
  const size_t head = static_cast<size_t>((op_bytes_ + piece) % frame::kAlignment);
  const bool last = piece == remaining;
  iovec vectors[2] = {{scratch + kept, piece - kept}, {input_.get() + head, kInputBytes - head}};
  const size_t wanted = piece - kept + (last ? kInputBytes - head : 0);
  // In the middle of a long payload more is about to arrive, so a short count is not the end:
  // asking again costs less than sleeping.
  const size_t enough = last ? wanted : 0;
  const ptrdiff_t count = count_received(readv(fd_.get(), vectors, last ? 2 : 1), enough);
  if (count < 0) return Step::kNeedInput;
  if (end_of_input_) return Step::kClosed;
  const size_t arrived = kept + static_cast<size_t>(count);
  const size_t in_scratch = std::min(arrived, piece);
  const size_t moved = static_cast<size_t>(whole_words(offset, in_scratch, remaining));
  region_copy(context_->region + offset, scratch, moved);
  op_bytes_ += moved;
  share_bytes_ -= std::min<uint64_t>(share_bytes_, moved);
  if (moved == piece) {
    input_head_ = head;
    input_tail_ = head + arrived - piece;
  } else {
    input_head_ = op_bytes_ % frame::kAlignment;
    input_tail_ = input_head_ + in_scratch - moved;
    std::memcpy(input_.get() + input_head_, scratch + moved, in_scratch - moved);
  }
  return Step::kDone;
}

// Receives straight into the region, and what follows the payload into the input buffer.
// Precondition: the input buffer holds less than a word.
TcpAgentConnection::Step TcpAgentConnection::write_in_place(const frame::OpDescriptor& op) {
  if (!readable_) return Step::kNeedInput;
  uint8_t* const place = context_->region + op.offset;
  const size_t kept = input_bytes();
  region_copy(place + op_bytes_, input_.get() + input_head_, kept);
  op_bytes_ += kept;
  const size_t remaining = static_cast<size_t>(op.operand - op_bytes_);
  const size_t piece = std::min(remaining, kPieceBytes);
  const size_t head = static_cast<size_t>((op_bytes_ + piece) % frame::kAlignment);
  input_head_ = input_tail_ = op_bytes_ % frame::kAlignment;
  const bool last = piece == remaining;
  iovec vectors[2] = {{place + op_bytes_, piece}, {input_.get() + head, kInputBytes - head}};
  // As in write_long, a short count in the middle of a payload is not the end.
  const size_t enough = last ? piece + kInputBytes - head : 0;
  const ptrdiff_t count = count_received(readv(fd_.get(), vectors, last ? 2 : 1), enough);
  if (count < 0) return Step::kNeedInput;
  if (end_of_input_) return Step::kClosed;
  const size_t moved = std::min(static_cast<size_t>(count), piece);
  op_bytes_ += moved;
  share_bytes_ -= std::min<uint64_t>(share_bytes_, moved);
  input_head_ = op_bytes_ % frame::kAlignment;
  input_tail_ = input_head_ + static_cast<size_t>(count) - moved;
  return Step::kDone;
}

// Keeps `readable_` and the counters. Returns the bytes received, -1 for none now.
ptrdiff_t TcpAgentConnection::count_received(ptrdiff_t count, size_t wanted) {
  if (count < 0 && errno == EINTR) return -1;
  if (count < 0 && errno == EAGAIN) {
    readable_ = false;
    return -1;
  }
  if (count <= 0) {
    end_of_input_ = true;
    readable_ = false;
    return 0;
  }
  TcpAgentCounters::add(context_->counters.bytes_in, static_cast<uint64_t>(count));
  // A short count means that the socket is empty; new bytes will raise a new event. The end of the
  // stream that has been announced already will not.
  if (static_cast<size_t>(count) < wanted && !peer_ended_) readable_ = false;
  return count;
}

void TcpAgentConnection::make_input_room() {
  if (input_head_ == input_tail_) {
    input_head_ = input_tail_ = input_head_ % frame::kAlignment;
  } else if (kInputBytes - input_tail_ < kInputBytes / 4) {
    const size_t head = input_head_ % frame::kAlignment;
    std::memmove(input_.get() + head, input_.get() + input_head_, input_bytes());
    input_tail_ = head + input_bytes();
    input_head_ = head;
  }
}

// Returns kNeedInput if there is nothing to receive now or ever.
TcpAgentConnection::Step TcpAgentConnection::receive() {
  make_input_room();
  const size_t wanted = kInputBytes - input_tail_;
  KV_ASSERT(wanted > 0);
  const ssize_t received = recv(fd_.get(), input_.get() + input_tail_, wanted, MSG_DONTWAIT);
  const ptrdiff_t count = count_received(received, wanted);
  if (count < 0 && readable_) return Step::kDone;
  if (count <= 0) return Step::kNeedInput;
  input_tail_ += static_cast<size_t>(count);
  return Step::kDone;
}

size_t TcpAgentConnection::output_space() const {
  return kOutputBytes - output_tail_;
}

void TcpAgentConnection::append_output(const void* bytes, size_t count) {
  KV_ASSERT(output_space() >= count);
  std::memcpy(output_.get() + output_tail_, bytes, count);
  output_tail_ += count;
}

void TcpAgentConnection::append_padding(uint64_t padding) {
  const uint64_t zero = 0;
  append_output(&zero, static_cast<size_t>(padding));
}

// `taken` bytes have gone out, `buffered` of them from the output buffer.
void TcpAgentConnection::count_sent(size_t taken, size_t buffered) {
  TcpAgentCounters::add(context_->counters.bytes_out, taken);
  stream_sent_ += taken;
  output_head_ += buffered;
  if (output_bytes() == 0) output_head_ = output_tail_ = stream_sent_ % frame::kAlignment;
}

// Sends what is buffered. Returns kClosed if that is impossible; output may remain.
TcpAgentConnection::Step TcpAgentConnection::flush() {
  while (output_head_ < output_tail_ && writable_) {
    const size_t wanted = output_bytes();
    const ssize_t sent =
        send(fd_.get(), output_.get() + output_head_, wanted, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0 && errno != EAGAIN) return Step::kClosed;
    const size_t taken = sent > 0 ? static_cast<size_t>(sent) : 0;
    if (taken < wanted) writable_ = false;
    count_sent(taken, taken);
  }
  return Step::kDone;
}

}  // namespace kvstore
