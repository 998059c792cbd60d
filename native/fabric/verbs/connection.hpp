// The client's end of a reliable connection.
//
// Batches stand in one queue from post to completion. A cursor walks behind it and turns operations
// into work requests: a long transfer into several pieces. Requests of many batches go down in one
// chain, so with one doorbell, and only few of them are signalled: a completion stands for all
// requests before it. Each request has a slot, in the order of posting, that says what to do when
// it has completed.
//
// Set-up is in connection_setup.cpp, the data path in connection.cpp.

#pragma once

#include <array>
#include <memory>
#include <string>
#include <vector>

#include "fabric/verbs/queue_pair.hpp"
#include "fabric/verbs/staging.hpp"

namespace kvstore::verbs {

class Connection : public kv_connection {
 public:
  // nullptr and one line in `error` if it can't be made.
  static std::unique_ptr<Connection> prepare(kv_verbs_port& port, kv_verbs_endpoint& mine,
                                             std::string& error);
  bool establish(const kv_verbs_grant& grant, std::string& error);
  ~Connection();

  uint32_t post(kv_batch* batch);
  uint32_t poll();
  int wait_descriptor(short* events);
  void close();

 private:
  static constexpr uint32_t kSlots = 512;
  static constexpr uint32_t kStagingBytes = 512 << 10;
  // A piece of a long transfer, through staging memory and without it. Small enough that there are
  // several under way, so that one is copied or summed up while others are on the wire; large
  // enough that their number does not matter.
  static constexpr uint32_t kStagedBytesMax = 64 << 10;
  static constexpr uint32_t kDirectBytesMax = 128 << 10;
  // Looking registered memory up is worth it from here on.
  static constexpr uint64_t kDirectBytesLeast = 4 << 10;
  static constexpr uint32_t kInlineBytes = 128;
  // Without a signal for longer, slots and staging memory would come back in lumps.
  static constexpr uint32_t kUnsignalledMax = kSlots / 8;
  static constexpr uint32_t kUnsignalledBytesMax = kStagingBytes / 8;
  static constexpr uint32_t kBatchOpsMax = 4096;
  static constexpr uint32_t kOutstandingMax = 1024;
  static constexpr uint32_t kHeldBackMax = 32;
  static constexpr int kCompletionsAtOnce = 32;
  static constexpr uint32_t kEagerReadBytes = 8 << 10;

  // What is to be done when a work request has completed.
  struct Slot {
    kv_batch* batch;
    kv_op* op;
    uint64_t at;           // of the piece in the operation
    uint64_t staging_end;  // to be given back
    uint32_t bytes;
    uint32_t staging_place;
    bool staged;
    bool first;  // piece of its operation
    bool ends_batch;
  };
  // The operation that is turned into work requests next.
  struct Cursor {
    kv_batch* batch = nullptr;
    uint32_t op = 0;
    uint64_t at = 0;  // bytes of it that have been
    // What is under way of this batch that a later WRITE, or atomic, might overtake.
    bool after_read = false;
    bool after_atomic = false;
  };

  explicit Connection(kv_verbs_port& port);

  bool allowed(const kv_op& op) const;
  void flush();
  bool issue_piece();
  bool place_piece(kv_op& op, Slot& slot, ibv_sge& piece);
  void fill_request(const kv_op& op, const Slot& slot, bool fenced, ibv_send_wr& request);
  bool needs_fence(const kv_op& op) const;
  void advance(const kv_op& op, uint32_t bytes, bool fenced);
  void signal(ibv_send_wr& request);
  void post_chain(uint32_t count);

  bool take_in(const ibv_wc& completion);
  void retire(Slot& slot);
  void complete_oldest(uint32_t status);
  void refuse_oldest();
  void drain_events();
  void break_connection();

  Slot& slot_of(uint64_t number) { return slots_[number % kSlots]; }

  kv_verbs_port& port_;
  PortState port_state_;  // when the connection was prepared
  // In the order of making: they go in the opposite one.
  ChannelPtr channel_;
  QueuePtr queue_;
  std::unique_ptr<uint8_t, void (*)(uint8_t*)> staging_memory_;
  MemoryPtr staging_key_;
  QueuePairPtr queue_pair_;

  uint64_t region_address_ = 0;
  uint32_t remote_key_ = 0;
  uint32_t packet_sequence_ = 0;
  uint32_t inline_bytes_ = 0;
  int ready_descriptor_ = -1;  // always readable

  kv_batch* oldest_ = nullptr;
  kv_batch* newest_ = nullptr;
  uint32_t outstanding_ = 0;
  uint32_t completed_ = 0;  // since the beginning of the current poll
  uint32_t held_back_ = 0;  // batches posted since the last flush
  uint64_t last_sequence_ = 0;
  uint64_t refused_sequence_ = UINT64_MAX;  // of the first batch with an operation not allowed
  Cursor cursor_;

  Staging<kStagingBytes> staging_;
  std::vector<Slot> slots_;
  uint64_t posted_ = 0;   // work requests ever
  uint64_t retired_ = 0;  // of them completed
  uint32_t unsignalled_ = 0;
  uint32_t unsignalled_bytes_ = 0;
  // Rings: each request refers to its piece and to the next request.
  std::vector<ibv_send_wr> requests_;
  std::vector<ibv_sge> pieces_;

  bool post_failed_ = false;
  bool armed_ = false;
  uint32_t events_unacknowledged_ = 0;
  // Completions found after arming, for the next poll.
  std::array<ibv_wc, kCompletionsAtOnce> found_{};
  int found_count_ = 0;
};

}  // namespace kvstore::verbs
