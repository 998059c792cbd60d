// The locks of one node as one client uses them: where they lie, the client's own part of each, and
// the messages about them. It belongs to an attachment and ends with it.
//
// Lanes enter and leave; the client's service receives messages and does the upkeep: it looks after
// requests that have waited long, because a message may have been lost, and resets locks whose
// holder has died. Safety rests on the header word alone. Entries and messages only save looking.

#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "alloc/segments.hpp"
#include "lock/local_lock.hpp"
#include "lock/table.hpp"
#include "lock/wire.hpp"
#include "messages/postbox.hpp"

namespace kvstore {

struct LockCounts {
  std::atomic<uint64_t> grants_sent{0};
  std::atomic<uint64_t> grants_received{0};
  std::atomic<uint64_t> looks{0};          // of requests that waited long
  std::atomic<uint64_t> found_by_look{0};  // grants without a message
  std::atomic<uint64_t> questions{0};
  std::atomic<uint64_t> resets{0};
  std::atomic<uint64_t> ring_looks{0};  // beyond the one that a release takes along
};

class LockCase;

class LockSpace final : public LockAttendant {
 public:
  using OpenPort = std::function<PortPtr(std::string& error)>;

  LockSpace(OpenPort open_port, uint32_t registration, uint64_t incarnation,
            const layout::Geometry& geometry, uint64_t lease_ns);
  ~LockSpace();
  LockSpace(const LockSpace&) = delete;
  LockSpace& operator=(const LockSpace&) = delete;

  // Makes the client reachable and finds the table. Before anything else, on any lane, by several
  // at once if need be. kRefused if this host gives us no port for messages.
  Task<Status> open(Remote& remote, SegmentTable& segments);
  bool is_open() const { return opened_.load(std::memory_order_acquire); }

  // The client's end of messages of all kinds. Handlers of other kinds than locks are to be set
  // before it is opened; they run on the thread that receives. Null until it is open.
  void set_handler(MessageKind kind, Postbox::Handler handler) {
    handlers_[size_t(kind)] = std::move(handler);
  }
  Task<Status> open_postbox(Remote& remote);
  Postbox* postbox() const { return reachable_.load(std::memory_order_acquire); }
  // From a handler: without a verb, or later by the service. Content of at most kReplyBytesMax.
  void reply(uint32_t to, MessageKind kind, std::span<const uint8_t> content);
  static constexpr size_t kReplyBytesMax = 48;

  LockTable& table() { return table_; }
  LocalLock& lock_of(const LockName& name) { return lock_at(uint32_t(name.number(lock_count()))); }
  LocalLock& lock_at(uint32_t number);

  // ---- on a lane, by whom a lock has told so ----

  // By the writers' place or that of the readers, as the request says. Both report to the lock what
  // came of it, but for kOutcomeUnknown: the connection broke on it.
  // Then the caller sees to it that nothing is `fenced` before the lane has another connection, and
  // reports that.
  Task<Status> enter(Remote& remote, LocalLock& lock, bool exclusive);
  Task<Status> leave(Remote& remote, LocalLock& lock, bool exclusive);

  // ---- for the service ----

  // Takes in messages; one thread. -1: there is no descriptor (yet).
  unsigned receive();
  int wait_descriptor() const;
  // When the next upkeep is due; UINT64_MAX: not before something happens.
  uint64_t due_ns() const { return due_ns_.load(std::memory_order_acquire); }
  // Called on any thread when that has become sooner, or there is a descriptor. To be set before
  // anything else.
  void set_alarm(std::function<void(uint64_t due_ns)> alarm) { alarm_ = std::move(alarm); }
  // Whether some lock waits until `fenced` can be said.
  bool has_unknown() const { return unknown_.load(std::memory_order_acquire); }
  // Does what is due. `fenced`: nothing that any lane lost can execute any more.
  Task<Status> upkeep(Remote& remote, bool fenced);
  // Clients have died, or left: some lock may have no holder any more.
  void note_deaths(uint64_t deaths);
  // All is lost.
  void fail(Status status);

  // The membership lease was renewed by a heartbeat that began at `begun_ns`.
  void renewed(uint64_t begun_ns) { renewed_ns_.store(begun_ns, std::memory_order_release); }

  void attend(LocalLock& lock, uint64_t due_ns) override;
  bool is_current() override;

  // ---- for a survey, on a lane ----

  struct SurveyAnswer {
    uint32_t from;
    LockMessage message;
  };
  // Answers to the question are kept from here on.
  uint64_t begin_survey();
  std::vector<SurveyAnswer> take_survey(uint64_t question);
  void end_survey(uint64_t question);
  Task<Status> send(Remote& remote, uint32_t to, const LockMessage& message);
  const layout::Geometry& geometry() const { return geometry_; }

  const LockCounts& counts() const { return counts_; }
  uint32_t registration() const { return registration_; }
  // Of the client's membership.
  uint64_t lease_ns() const { return lease_ns_; }
  // Those of which there is anything here, for tests and statistics.
  template <class Visit>
  void for_each(Visit&& visit) {
    for (uint64_t i = 0; is_open() && i < lock_count(); ++i) {
      if (LocalLock* lock = locks_[i].load(std::memory_order_acquire)) visit(*lock);
    }
  }

 private:
  friend class LockCase;
  friend class LockRecovery;
  static constexpr uint64_t kSurveyQuestion = uint64_t{1} << 63;  // and those that follow

  uint64_t lock_count() const { return table_.shape().lock_count; }
  LocalLock* find(uint32_t number) const;
  Task<Status> try_enter(Remote& remote, LocalLock& lock, bool exclusive, uint64_t guess);
  Task<Status> notify(Remote& remote, LocalLock& lock, layout::LockHeader before, bool exclusive,
                      std::vector<uint64_t>& ring, bool have_ring);
  // Without a verb, or later by the service.
  void reply(uint32_t to, const LockMessage& message) {
    reply(to, MessageKind::kLock, message.bytes());
  }

  void handle(const Message& message);
  void keep_for_survey(uint32_t from, const LockMessage& message);
  void answer(uint32_t from, const LockMessage& question);
  LockMessage answer_of(LocalLock& lock, const LockMessage& question, bool exclusive);
  LockCase* case_of(uint32_t number);
  void take_in_attention();
  void schedule(uint64_t due_ns);

  const OpenPort open_port_;
  const uint32_t registration_;
  const uint64_t incarnation_;
  const layout::Geometry geometry_;
  const uint64_t lease_ns_;
  std::atomic<uint64_t> renewed_ns_;
  LockTable table_;
  LockCounts counts_;
  std::array<Postbox::Handler, kMessageKinds> handlers_;
  std::mutex open_mutex_;
  std::unique_ptr<Postbox> postbox_;
  std::atomic<Postbox*> reachable_{nullptr};  // once others can send to it
  std::atomic<bool> opened_{false};
  std::unique_ptr<std::atomic<LocalLock*>[]> locks_;
  std::mutex locks_mutex_;

  struct Attention {
    LocalLock* lock;
    uint64_t due_ns;
  };
  struct Reply {
    uint32_t to;
    MessageKind kind;
    uint32_t bytes;
    std::array<uint8_t, kReplyBytesMax> content;
  };
  std::mutex attention_mutex_;
  std::vector<Attention> attention_;
  std::function<void(uint64_t)> alarm_;
  std::atomic<uint64_t> due_ns_{UINT64_MAX};
  std::atomic<bool> unknown_{false};
  std::atomic<uint64_t> deaths_{0};
  Status failed_ = Status::kOk;

  std::mutex survey_mutex_;
  std::map<uint64_t, std::vector<SurveyAnswer>> surveys_;  // by question
  uint64_t next_survey_ = kSurveyQuestion;

  // The service's own.
  std::vector<std::unique_ptr<LockCase>> cases_;
  std::vector<Reply> replies_;
  uint64_t next_question_ = 1;
};

}  // namespace kvstore
