// A lane: one path through the client with its own executor, its own connection to each node and
// its own memory for values. One thread at a time holds it and runs its calls to the end.

#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "base/counter.hpp"
#include "base/status.hpp"
#include "coro/executor.hpp"
#include "coro/task.hpp"
#include "fabric/remote.hpp"
#include "index/key.hpp"
#include "store/attachment.hpp"
#include "store/eviction_pool.hpp"
#include "store/recent_uses.hpp"

namespace kvstore {

class Client;

// A slot that was read or written, for the eviction metadata.
struct Touch {
  uint64_t incarnation;  // of the node: a touch must not reach its successor
  uint64_t metadata_offset;
  uint64_t key_hash;
  uint32_t when_ms;
  uint32_t reuse;  // as in the call
  uint16_t pin_s;  // 0: no pin
  bool written;
};

// Touches on their way from a lane to the heartbeat, which writes them to the node. What finds the
// ring full is dropped and counted: the metadata is best effort.
class TouchRing {
 public:
  // Whether it is just half full: somebody should come.
  bool push(const Touch& touch) {
    const uint64_t head = head_.load(std::memory_order_relaxed);
    const uint64_t held = head - tail_.load(std::memory_order_acquire);
    if (held == ring_.size()) {
      ++dropped_;
      return false;
    }
    ring_[head % ring_.size()] = touch;
    head_.store(head + 1, std::memory_order_release);
    return held == ring_.size() / 2;
  }
  bool pop(Touch& touch) {
    const uint64_t tail = tail_.load(std::memory_order_relaxed);
    if (tail == head_.load(std::memory_order_acquire)) return false;
    touch = ring_[tail % ring_.size()];
    tail_.store(tail + 1, std::memory_order_release);
    return true;
  }
  uint64_t dropped() const { return dropped_.get(); }

 private:
  std::array<Touch, 8192> ring_;  // not initialised: what nobody uses takes no memory
  Counter dropped_;
  std::atomic<uint64_t> head_{0};
  std::atomic<uint64_t> tail_{0};
};

struct LaneCounts {
  Counter operations;
  Counter cas_conflicts;
  Counter verify_retries;
  Counter splits;
  Counter evictions;
  Counter address_hits;
  Counter address_stale;
  Counter reconnects;
};

// Memory for values that a call returns without a buffer of the caller's; freed as a whole.
class Arena {
 public:
  void* allocate(uint64_t bytes);
  void reset();

 private:
  static constexpr uint64_t kChunkBytes = 256 << 10;
  struct Piece {
    std::unique_ptr<uint8_t[]> memory;
    uint64_t bytes = 0;
  };
  std::vector<Piece> chunks_;
  std::vector<std::unique_ptr<uint8_t[]>> large_;
  size_t current_ = 0;
  uint64_t used_ = 0;
};

class Lane;

// A lane's view of one node. Protocols of the store take a Channel.
class Channel {
 public:
  Channel() = default;
  Channel(const Channel&) = delete;
  Channel& operator=(const Channel&) = delete;
  ~Channel() { drop(); }

  // Makes the channel usable: takes on the member's current attachment, connects if it must.
  // kOk, or why the node can't be reached now. While operations are under way the attachment stays
  // what it is.
  Status ready(uint64_t deadline_ns);
  void drop();

  // An operation that refers to the attachment, for as long as it does.
  class Use {
   public:
    explicit Use(Channel& channel) : channel_(channel) { ++channel_.uses_; }
    ~Use() { --channel_.uses_; }
    Use(const Use&) = delete;
    Use& operator=(const Use&) = delete;

   private:
    Channel& channel_;
  };

  // An operation that changes something was lost: blocks may be left behind, and bytes may still be
  // on their way. The next connection of the lane makes the node close the old one; until then
  // nothing may be reused that a lost operation could write to.
  void want_scrub() {
    note_lost();
    attachment->scrub_wanted.store(true, std::memory_order_release);
  }
  // The same where nothing is left behind but what may still execute.
  void note_lost();
  // Any thread.
  bool unfenced() const { return lost_since() != 0; }
  // The heartbeat tick at which the oldest operation began that may still execute after its call
  // has ended; 0: none may.
  uint64_t lost_since() const { return lost_since_.load(std::memory_order_acquire); }

  Remote remote;
  std::shared_ptr<Attachment> attachment;
  TouchRing touches;
  EvictionPool eviction_pool;
  RecentUses recent_uses;

  Lane& lane() const { return *lane_; }
  uint32_t member() const { return member_; }
  // Tells eviction of a use of a key in this slot, a put if `written`.
  void touch(uint64_t subtable, uint64_t slot_offset, const Key& key, const kv_call& call,
             bool written);
  // Where the eviction metadata of a slot are; 0 if that can't be a slot.
  static uint64_t metadata_of(uint64_t subtable, uint64_t slot_offset);
  // Breaks the connection, so that everything pending on it ends.
  void break_off();

 private:
  friend class Lane;
  Lane* lane_ = nullptr;
  uint32_t member_ = 0;
  uint64_t generation_ = 0;
  kv_connection* connection_ = nullptr;
  unsigned uses_ = 0;
  std::atomic<uint64_t> lost_since_{0};

  void drop_connection();
};

class Lane {
 public:
  Lane(Client& client, uint32_t index, uint32_t members);
  ~Lane();

  Client& client() const { return client_; }
  uint32_t index() const { return index_; }
  Executor& executor() { return executor_; }
  Channel& channel(uint32_t member) { return channels_[member]; }
  uint32_t members() const { return members_; }
  Arena& arena() { return arena_; }
  LaneCounts& counts() { return counts_; }
  uint64_t began_ns() const { return run_.began_ns; }

  // Runs calls to their outcomes; see kv_run.
  int run(kv_call* calls, uint32_t count, uint64_t timeout_ns, bool inline_only);
  bool running() const { return run_.active; }

  // Runs `count` calls given by address.
  int run_list(kv_call* const* calls, uint32_t count, uint64_t timeout_ns);
  // Runs one task of the store to its end on this thread: `start` makes it. Not `interruptible`: it
  // is short, and to leave it half done would cost more than to wait for its end.
  template <class Start>
  Status run_task(Start&& start, uint64_t deadline_ns, bool interruptible = true);

  // For who drives the lane without waiting in it. Goes on with calls that `run` left pending as
  // far as can be now; past their deadline they are given up. KV_OK once each has its outcome.
  int step();
  // `run_task` in three parts: `step_task` until it says that the task is done.
  template <class Start>
  void begin_task(Start&& start, uint64_t deadline_ns);
  bool step_task();
  // The same for who may wait.
  void wait_for_task() {
    drive([this] { return task_.done(); }, run_.deadline_ns);
  }
  Status end_task();

  // Values without a buffer come through `allocate` whatever their size: the lane is released
  // before they are looked at.
  void set_values_through_allocate(bool always) { values_through_allocate_ = always; }
  bool values_through_allocate() const { return values_through_allocate_; }

  // Sleeps in an operation that holds no address yet. Once all operations of the lane do, the lane
  // stops holding back the epoch that they may be waiting for.
  Task<Status> wait_without_addresses(uint64_t until_ns);

  // The end of the calls under way: protocol loops give up after it.
  uint64_t deadline_ns() const { return run_.deadline_ns; }
  const bool& cancelled() const { return cancelled_; }
  void set_deadline(uint64_t deadline_ns) { run_.deadline_ns = deadline_ns; }

  // The heartbeat tick at which the oldest operation under way began; 0: none is.
  std::atomic<uint64_t> active_since{0};
  // Whether a thread holds the lane.
  std::atomic<bool> taken{false};

  // Marks operations as under way, from before the first address is read.
  void begin_activity();
  void end_activity() { active_since.store(0, std::memory_order_release); }

 private:
  // How far calls are looked ahead at. A miss takes about as long as eight calls whose memory is at
  // hand.
  static constexpr uint32_t kHashAhead = 16;
  static constexpr uint32_t kFetchAhead = 8;
  struct Destination {
    Key key;
    uint32_t member = 0;
  };
  struct Run {
    kv_call* calls = nullptr;
    kv_call* const* list = nullptr;  // instead of `calls`
    uint32_t count = 0;
    uint32_t next = 0;
    uint32_t workers_left = 0;
    uint32_t waiting = 0;  // workers that hold no address
    uint64_t began_ns = 0;
    uint64_t deadline_ns = 0;
    bool active = false;
    std::vector<Task<Status>> workers;
    // Of the calls from the one in hand to the last one that has been looked ahead at.
    std::array<Destination, 2 * kHashAhead> ahead;
    uint32_t hashed = 0;   // calls whose destination is or was in `ahead`
    uint32_t fetched = 0;  // calls whose memory has been told to come
  };

  void start(kv_call* calls, kv_call* const* list, uint32_t count, uint64_t timeout_ns);
  int continue_run(bool inline_only);
  Task<Status> work();
  kv_call& call_at(uint32_t index) const {
    return run_.list != nullptr ? *run_.list[index] : run_.calls[index];
  }
  // Prepares the calls up to some way behind `index`: hashes their keys, and where memory is loaded
  // from has it come into the cache.
  void look_ahead(uint32_t index);
  void fetch_ahead(const Destination& next);
  // Whether the call could be answered without the node.
  bool serve_from_copy(const Destination& destination, kv_call& call);
  Task<Status> execute(Channel& channel, const Key& key, kv_call& call);
  // Ends what is under way: pending batches are lost, sleepers wake, loops see `cancelled`.
  void give_up(Status reason);
  template <class Condition>
  void drive(Condition&& done, uint64_t deadline_ns, bool interruptible = true);

  Client& client_;
  const uint32_t index_;
  const uint32_t members_;
  Executor executor_;
  std::unique_ptr<Channel[]> channels_;
  Arena arena_;
  LaneCounts counts_;
  Run run_;
  Task<Status> task_;
  bool cancelled_ = false;
  bool values_through_allocate_ = false;
  Status cancel_reason_ = Status::kOk;
};

template <class Condition>
void Lane::drive(Condition&& done, uint64_t deadline_ns, bool interruptible) {
  Executor::Outcome outcome;
  do {
    outcome = executor_.run(done, deadline_ns, true);
  } while (outcome == Executor::Outcome::kWoken ||
           (outcome == Executor::Outcome::kInterrupted && !interruptible));
  if (outcome == Executor::Outcome::kDone) return;
  give_up(outcome == Executor::Outcome::kInterrupted ? Status::kInterrupted
                                                     : Status::kDeadlineExceeded);
  // Everything that was awaited has been ended. What somebody begins to await nevertheless, before
  // it looks at `cancelled`, is ended likewise.
  constexpr uint64_t kLastGaspNs = 20 * kMillisecond;
  while (executor_.run(done, monotonic_ns() + kLastGaspNs, true) != Executor::Outcome::kDone) {
    give_up(cancel_reason_);
  }
}

template <class Start>
void Lane::begin_task(Start&& start, uint64_t deadline_ns) {
  KV_ASSERT(!run_.active);
  run_.active = true;
  run_.deadline_ns = deadline_ns;
  run_.began_ns = monotonic_ns();
  run_.workers_left = 1;
  run_.waiting = 0;
  cancelled_ = false;
  begin_activity();
  const Executor::Scope scope(executor_);
  task_ = start();
}

template <class Start>
Status Lane::run_task(Start&& start, uint64_t deadline_ns, bool interruptible) {
  begin_task(start, deadline_ns);
  drive([this] { return task_.done(); }, deadline_ns, interruptible);
  return end_task();
}

}  // namespace kvstore
