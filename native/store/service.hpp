// The service thread of a client: renews its leases, publishes its epoch, gives retired blocks
// back, writes recency to the nodes, and notices nodes of this host that die. It sleeps in the
// kernel in between. Without a thread of its own it is driven from outside, as the simulator does.

#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "alloc/limbo.hpp"
#include "store/lane.hpp"
#include "store/scrub.hpp"

namespace kvstore {

class Client;

class Service {
 public:
  // `lane` is the service's own; its work is not an operation that holds back epochs.
  Service(Client& client, Lane& lane, bool own_thread);
  ~Service();

  // Without a thread: begins a round or goes on with the one under way, as far as can be now.
  // Returns in how many nanoseconds the next round is due, 0 while one is under way.
  uint64_t step();
  // Whether the next round is wanted soon.
  bool hurried() const noexcept { return hurried_.load(std::memory_order_relaxed); }

  // Has the next heartbeat come within about a millisecond.
  void hurry() noexcept;
  // Has the locks tended to at `due_ns` at the latest. Any thread.
  void alarm(uint64_t due_ns) noexcept;
  // When locks want to be tended to.
  uint64_t locks_due_ns() const;

 private:
  struct PerMember {
    uint64_t incarnation = 0;  // of the attachment to which the rest belongs
    uint32_t registration = 0;
    SeenEpochs seen;
    uint64_t heartbeat = 0;
    uint64_t deaths_seen = 0;
    uint64_t losses_seen = 0;
    bool scrub_due = false;
    bool first = true;
    uint64_t adoptions_seen = 0;
    uint64_t wary_until_ns = 0;
    uint64_t operations_seen = 0;
    // What copies had done before this attachment.
    uint64_t hits_before = 0;
    uint64_t invalidated_before = 0;
    uint64_t bypassed_before = 0;
    uint64_t rounds = 0;
    uint64_t pressure = 0;  // what some client of the node waits for
    uint64_t helping_until_ns = 0;
    unsigned class_wanted = 0;  // what this one does
    Scrub scrub;
  };

  void loop();
  void wake() noexcept;
  void beat_all();
  void begin_beat();
  uint64_t end_beat();
  Task<Status> beat(Channel& channel, PerMember& member);
  Task<Status> open_for_copies(Channel& channel);
  Task<Status> pay_debts(Channel& channel);
  // A split that this client left behind stops every insert that needs one, also of the others.
  Task<Status> finish_split(Channel& channel);
  Task<Status> beat_ready(const std::vector<uint32_t>& ready);
  // Takes up the member's attachment. False while it can't be reached.
  bool prepare(uint32_t index);
  uint64_t period_after(uint32_t index, bool hurried);
  // Whether nothing of a broken connection of any lane can reach the node any more. Idle lanes are
  // connected anew for it.
  bool lanes_fenced(uint32_t index);
  // Lets go of attachments that are over in lanes that nobody uses.
  void drop_idle(uint32_t index);
  Task<Status> share_memory(Channel& channel, PerMember& member);
  Task<Status> note_losses(Channel& channel, PerMember& member, const layout::NodeLine& node);
  Task<Status> write_line(Channel& channel, PerMember& member, uint64_t published);
  Task<Status> tell_copies_used(Channel& channel);
  // What this client's copies have done since it was attached.
  static void count_copies(const Attachment& attachment, const PerMember& member,
                           layout::ClientLine& line);
  Task<Status> tell_last_copies();
  // Locks: messages are taken in, what is due is done. `begin_locks` is false if nothing is.
  void receive_messages();
  bool begin_locks();
  Task<Status> tend_locks(const std::vector<uint32_t>& members);
  void fail_locks();
  void sleep(uint64_t until_ns);
  uint64_t oldest_tick(uint32_t index) const;

  Client& client_;
  Lane& lane_;
  std::vector<PerMember> members_;
  // Of the round under way.
  std::vector<uint32_t> ready_;
  bool hurried_round_ = false;
  std::vector<uint32_t> tended_;
  enum class Work { kNone, kBeat, kLocks };
  Work work_ = Work::kNone;
  uint64_t beat_due_ns_ = 0;
  std::atomic<uint64_t> asleep_until_ns_{0};  // 0: awake
  int wake_descriptor_;
  std::atomic<bool> hurried_{false};
  std::atomic<bool> stopping_{false};
  std::thread thread_;
};

}  // namespace kvstore
