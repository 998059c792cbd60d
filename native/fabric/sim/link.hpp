// One connection of the sim fabric, both sides of it and what is on its way between them.
//
// It belongs to the node and stays until both sides have ended and no event refers to it.

#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "fabric/sim/sim.hpp"

namespace kvstore::sim {

// How one transfer is cut up, and how far it has come.
class Pieces {
 public:
  void plan(const kv_op& op, unsigned pieces_max, Random& random);
  bool left() const { return next_ < count_; }
  unsigned count() const { return count_; }
  // The next piece, as bytes from the start of the transfer.
  void take(uint64_t& begin, uint64_t& end);

 private:
  std::array<uint64_t, SimNode::kPiecesLimit + 1> cuts_{};
  std::array<uint8_t, SimNode::kPiecesLimit> order_{};
  unsigned count_ = 0;
  unsigned next_ = 0;
};

class SimLink final : public Timed {
 public:
  SimLink(SimNode& node, uint32_t registration, uint32_t lane, SimListener* listener,
          const Reach& reach);

  kv_connection* connection() { return &client_.connection; }
  uint32_t registration() const { return registration_; }
  uint32_t lane() const { return lane_; }

  // The client's side.
  uint32_t post(kv_batch* batch);
  uint32_t poll();
  void close();
  void destroyed();

  // The node's side executes nothing from here on.
  void end_node_side();
  // What the client posts from here on goes nowhere; its next poll breaks the connection.
  void end_client_side() { client_.told = true; }
  // Each side will learn that the connection is over.
  void end_client_side_later();
  void end_node_side_later();

  void fire(uint64_t event) override;
  bool is_over() const { return node_over_ && client_.gone && events_ == 0; }

 private:
  enum Event : uint64_t { kArrive, kStep, kAnswer, kNodeEnd, kClientEnd };

  // A batch from its post to its completion. When the client's side has ended first, the batch and
  // its memory are no longer there: what can still execute has been copied.
  struct Request {
    kv_batch* batch;
    kv_op* ops;
    uint32_t op_count;
    uint32_t status;
    SimListener::Purpose purpose;  // kept for a trace only
    std::vector<kv_op> own_ops;
    std::vector<std::unique_ptr<uint8_t[]>> payloads;
  };
  struct Client {
    kv_connection connection{};
    SimLink* link = nullptr;
    bool told = false;  // that the connection is over; the next poll breaks it
    bool gone = false;
  };
  static SimLink& of(kv_connection* connection);
  static const kv_connection_ops kOps;

  void schedule(uint64_t when_ns, Event event);
  // When a message arrives that is sent at an instant, from now on.
  uint64_t request_arrival_ns(uint64_t sent_ns) const;
  uint64_t answer_arrival_ns() const;
  void arrive();
  // Executes what has arrived for as long as nothing else happens before.
  void execute_arrived();
  uint64_t next_step_ns();
  bool may_stall() const;
  void step();
  // Returns whether the current operation is finished.
  bool execute(Request& request, kv_op& op);
  void watch_write(const kv_op& op) const;
  bool move_piece(const Request& request, kv_op& op);
  bool acceptable(const kv_op& op) const;
  void finish(Request& request, uint32_t status);
  void tell(const Request& request, const kv_op& op) const;
  void break_client_side();
  void keep_what_may_execute(Request& request);

  SimNode& node_;
  const uint32_t registration_;
  const uint32_t lane_;
  SimListener* listener_;
  const Reach& reach_;
  Client client_;
  // In the order of their posts; of the first `executed_` the answers are on their way, of the
  // first `answered_` they are there.
  std::deque<Request> requests_;
  size_t arrived_ = 0;
  size_t executed_ = 0;
  size_t answered_ = 0;
  uint32_t op_at_ = 0;
  std::deque<uint64_t> due_ns_;  // of the operations that have arrived and not begun
  Pieces pieces_;
  bool op_begun_ = false;
  bool stepping_ = false;
  bool node_over_ = false;
  uint64_t last_arrival_ns_ = 0;
  uint64_t last_answer_ns_ = 0;
  uint64_t events_ = 0;  // that refer to this link
};

}  // namespace kvstore::sim
