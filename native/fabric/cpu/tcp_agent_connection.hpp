// One client's connection at the agent: greets, parses requests, executes them on the region in the
// order of the stream, answers. It is driven by one agent thread and never blocks.
//
// Order. An operation begins when those before it have finished: a WRITE when its bytes are in the
// region, a READ when its bytes have been copied out of the region. So a READ never sees a later
// WRITE of its own connection.
//
// Words. The kernel copies to and from sockets in pieces that end anywhere, also inside a word.
// Region bytes therefore move between the region and private buffers only, and whole 8-byte words
// of the region are never moved in two parts. One exception pays for itself: a READ or WRITE of
// more than 16 KiB whose checksum the client asks for moves between socket and region directly, for
// who reads those bytes judges them as a whole, and a tear inside a word is one more tear that the
// checksum tells.
//
// Memory and back-pressure. A connection owns two bounded buffers. While its output is blocked it
// executes nothing and reads nothing, so a client that does not take its answers stops itself.

#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "fabric/cpu/frame.hpp"
#include "fabric/cpu/tcp_socket.hpp"

namespace kvstore {

// Written by one thread each, read by any.
struct TcpAgentCounters {
  std::atomic<uint64_t> batches{0};
  std::atomic<uint64_t> reads{0};
  std::atomic<uint64_t> writes{0};
  std::atomic<uint64_t> atomics{0};
  std::atomic<uint64_t> bytes_in{0};
  std::atomic<uint64_t> bytes_out{0};
  std::atomic<uint64_t> refused_frames{0};
  std::atomic<uint64_t> refused_bounds{0};
  std::atomic<uint64_t> refused_tokens{0};

  static void add(std::atomic<uint64_t>& counter, uint64_t amount) {
    counter.store(counter.load(std::memory_order_relaxed) + amount, std::memory_order_relaxed);
  }
};

class TcpAgentConnection;

// What the connections of one agent thread share.
struct TcpAgentContext {
  static constexpr size_t kScratchBytes = 1024 * 1024;

  virtual ~TcpAgentContext() = default;

  // Whether the thread of this context serves the lane that the greeting names. All connections of
  // a lane are served by one thread, so that a newer one can end an older one without waiting.
  virtual bool serves(const frame::Hello& hello) const = 0;

  // Judges a greeting. On kWelcomeOk the connection has been counted into its registration, and no
  // operation of an older connection of the same registration and lane will execute any more.
  virtual frame::WelcomeStatus admit(const frame::Hello& hello, TcpAgentConnection& connection) = 0;

  uint8_t* region = nullptr;
  uint64_t region_bytes = 0;
  TcpAgentCounters counters;
  // Long payloads pass through here, in pieces that stay in the cache and are yet so large that the
  // other side need not sleep between two of them.
  std::unique_ptr<uint8_t[]> scratch{new uint8_t[kScratchBytes]};
};

class TcpAgentConnection {
 public:
  enum class Progress {
    kWaiting,    // for the socket
    kRunnable,   // its share of this round is used up, there is more to do
    kElsewhere,  // another thread serves its lane; its greeting is still to be answered
    kClosed,     // it is over and may be destroyed
  };

  TcpAgentConnection(OwnedFd fd, TcpAgentContext& context, uint64_t now_ns, bool admissible);

  // Notes what epoll (edge-triggered) has said. `ended`: the peer will send nothing more.
  void on_events(bool readable, bool writable, bool ended) {
    peer_ended_ = peer_ended_ || ended;
    readable_ = readable_ || readable;
    writable_ = writable_ || writable;
  }

  // Does a bounded share of the work at hand.
  Progress run();

  // Takes the connection to another thread. Precondition: `run` has said kElsewhere.
  void move_to(TcpAgentContext& context) { context_ = &context; }

  // Nothing of it executes any more; the next `run` says kClosed.
  void supersede() { state_ = State::kSuperseded; }

  // Whether a greeting or the end of a refused connection is overdue; it is then counted.
  bool overdue(uint64_t now_ns);
  bool has_deadline() const { return state_ == State::kGreeting || state_ == State::kDraining; }

  bool admitted() const { return admitted_; }
  uint32_t registration() const { return registration_; }
  uint32_t lane() const { return lane_; }
  int fd() const { return fd_.get(); }

  // Of the thread that drives the connection.
  bool queued = false;

 private:
  enum class State {
    kGreeting,  // until the Hello has arrived
    kServing,
    kDraining,  // refused: the answer is sent, input is thrown away until the client closes, since
                // closing with unread input would destroy the answer on its way
    kSuperseded,
  };
  enum class Step { kDone, kNeedInput, kNeedOutput, kElsewhere, kClosed };

  Step advance();
  Step greet();
  void welcome(frame::WelcomeStatus status);
  Step begin_batch();
  Step end_batch();
  Step execute_op();
  Step execute_read(const frame::OpDescriptor& op);
  Step execute_write(const frame::OpDescriptor& op);
  Step execute_atomic(const frame::OpDescriptor& op);
  Step skip_padding(uint64_t padding);
  Step read_long(const frame::OpDescriptor& op);
  Step write_long(const frame::OpDescriptor& op);
  Step write_in_place(const frame::OpDescriptor& op);
  void finish_op(std::atomic<uint64_t>& counter);
  bool all_allowed() const;

  Step receive();
  Step flush();
  size_t input_bytes() const { return input_tail_ - input_head_; }
  size_t output_bytes() const { return output_tail_ - output_head_; }
  size_t output_space() const;
  void make_input_room();
  void append_output(const void* bytes, size_t count);
  void append_padding(uint64_t padding);
  ptrdiff_t count_received(ptrdiff_t count, size_t wanted);
  void count_sent(size_t taken, size_t buffered);
  void begin_draining();

  OwnedFd fd_;
  TcpAgentContext* context_;
  State state_;
  bool admissible_;
  bool admitted_ = false;
  bool readable_ = true;
  bool writable_ = true;
  bool peer_ended_ = false;    // said by epoll; bytes may still wait in the socket
  bool end_of_input_ = false;  // seen in the stream
  uint32_t registration_ = 0;
  uint32_t lane_ = 0;
  uint64_t deadline_ns_;

  uint64_t share_bytes_ = 0;  // left of this round
  uint64_t share_ops_ = 0;

  bool in_batch_ = false;
  uint32_t op_index_ = 0;
  uint64_t op_bytes_ = 0;  // of the current payload, moved so far
  frame::RequestHeader batch_{};
  std::unique_ptr<frame::OpDescriptor[]> descriptors_;

  // Bytes keep their place in the stream modulo 8, so that words stay words in memory.
  std::unique_ptr<uint8_t[]> input_;
  size_t input_head_ = 0;
  size_t input_tail_ = 0;
  std::unique_ptr<uint8_t[]> output_;
  size_t output_head_ = 0;
  size_t output_tail_ = 0;
  uint64_t stream_sent_ = 0;
};

}  // namespace kvstore
