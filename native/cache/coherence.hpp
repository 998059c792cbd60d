// One client's part in keeping the copies of a node's values coherent, as a writer and as an owner
// of copies. It belongs to an attachment and ends with it.
//
// An owner registers before it reads: its group's bit in the key's coherence record, then `hosted`
// or `shared` in the slot. A writer that meets either freezes the slot, so that no further copy is
// made, reads the record, has every live client of the groups in it drop its copy, and only then
// replaces the slot. Who does not answer is not waited for, nor judged: the writer adds one to the
// group's revoke word and waits for a cache lease, after which no client of the group can read a
// copy from before.
//
// Clients of the writer's own host are spared the message: renewing the key's stamp ends their
// copies at that moment. Where the slot is `hosted`, by this host, there are no others: a writer
// that has a copy opens the stamp, replaces the slot at once, and ends the writing.
//
// The record's bits are cleared with the write that follows, or with the next heartbeat, if all
// clients of a group have said that they hold nothing under the record, and nobody has registered
// there since it was read.
//
// On a regular node a writer replaces the slot first, without freezing it, and ends the copies of
// what was there before it returns. Where it can't, it owes it: its next heartbeat revokes them. Of
// a client that has died nobody knows what it owed, so all others drop their copies.

#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "base/variant.hpp"
#include "cache/client_cache.hpp"
#include "cache/host_stamps.hpp"
#include "cache/wire.hpp"
#include "coro/signal.hpp"
#include "coro/task.hpp"
#include "fabric/remote.hpp"
#include "layout/layout.hpp"
#include "messages/postbox.hpp"

namespace kvstore {

struct CoherenceCounts {
  std::atomic<uint64_t> invalidations_sent{0};
  std::atomic<uint64_t> invalidations_received{0};
  std::atomic<uint64_t> invalidations_spared{0};  // to clients of this host
  std::atomic<uint64_t> writes_guarded{0};        // that met a copy, or a freeze
  std::atomic<uint64_t> leases_waited{0};
  std::atomic<uint64_t> writes_at_once{0};  // that ended the copies of this host alone
};

class Coherence {
 public:
  Coherence(uint32_t registration, const layout::Geometry& geometry, uint64_t lease_ns,
            bool is_regular)
      : registration_(registration),
        geometry_(geometry),
        lease_ns_(lease_ns),
        is_regular_(is_regular),
        live_(layout::kClientsMax) {}

  // ---- as a writer ----

  // How long a writer may take.
  struct Bounds {
    uint64_t deadline_ns;
    const bool& cancelled;

    bool are_over() const { return cancelled || monotonic_ns() >= deadline_ns; }
  };
  // What a writer knows of the copies of one key.
  struct Copies {
    uint64_t hash = 0;
    uint32_t record = 0;
    layout::CoherenceRecord owners;  // read after the slot was frozen, or replaced
    layout::NodeLine node;           // likewise
    bool mine_empty = true;          // this client itself has nothing under the record
    layout::Slot successor;          // that the slot will hold; empty: none
    uint64_t value_bytes = 0;        // of what it leads to
    // What came of it: groups of which copies may still be read, groups whose bits may be cleared,
    // and the stamp from when no copy of this host could be read any more.
    uint64_t unended_groups = 0;
    uint64_t empty_groups = 0;
    Stamp renewed;
  };
  // A writer's question to some clients, until all have answered.
  class Question {
   public:
    Question(Coherence& coherence, Executor& executor)
        : coherence_(coherence), answered_(executor) {}
    ~Question();
    Question(const Question&) = delete;
    Question& operator=(const Question&) = delete;

   private:
    friend class Coherence;
    Coherence& coherence_;
    uint64_t number_ = 0;  // 0: not asked
    uint64_t asked_ns_ = 0;
    std::vector<uint32_t> waiting_;
    uint64_t full_groups_ = 0;  // that still hold something under the record
    Signal answered_;
  };
  // Ends every copy of the key, except for this client's. kOk: none can be read any more.
  // `postbox` is null where this client can't be reached.
  Task<Status> end_copies(Remote& remote, Postbox* postbox, Copies& copies, Bounds bounds);
  // The same in two steps: the owners are told, and then waited for.
  Task<Status> begin_ending(Remote& remote, Postbox* postbox, Copies& copies, Question& question);
  Task<Status> finish_ending(Remote& remote, Postbox* postbox, Copies& copies, Question& question,
                             Bounds bounds);
  // The same for a key that can't be told: every copy of everything.
  Task<Status> end_all_copies(Remote& remote, Bounds bounds);

  void note_write_at_once() {
    counts_.writes_guarded.fetch_add(1, std::memory_order_relaxed);
    counts_.writes_at_once.fetch_add(1, std::memory_order_relaxed);
  }
  // A stamp that a write has opened without learning whether it may still be executed: a heartbeat
  // ends the writing, once that can't be. What has been lost on the way must have been noted
  // before. If there are too many, or the attachment ends before, the stamp stays open.
  void end_write_later(uint64_t hash, const Stamp& opened);
  // Of a heartbeat: takes those stamps, and ends the writing under them.
  struct OpenStamp {
    uint64_t hash;
    Stamp opened;
  };
  std::vector<OpenStamp> take_open();
  void put_back(const std::vector<OpenStamp>& stamps);
  void end_writes(const std::vector<OpenStamp>& stamps);
  // Whether a write may return only when copies have ended, but be seen before.
  bool is_regular() const { return is_regular_; }
  // Copies of these groups may be of what this client has replaced. What has been lost on the way
  // must have been noted before.
  void owe(uint64_t groups);
  // Bits of a record that may be cleared, if it is still as this CAS expects. False: there are too
  // many already.
  bool clear_later(const kv_op& clear);
  bool owes() const { return paying_.load() || owed_.load() != 0; }
  // Of a heartbeat: takes what is owed, and revokes copies of these groups; what is not taken back
  // has been done.
  uint64_t begin_payment();
  Task<Status> pay(Remote& remote, uint64_t groups);
  void end_payment(uint64_t taken_back);
  // Likewise: clears what may be cleared.
  Task<Status> clear(Remote& remote);

  // ---- as an owner ----

  // Set before the attachment is used; no cache: this client makes no copies; no stamps: it shares
  // none with others.
  void set_cache(ClientCache* cache, uint64_t term, HostStamps* stamps) {
    cache_ = cache;
    term_ = term;
    stamps_ = stamps;
    if (stamps != nullptr) stamps->join(registration_);
  }
  // The key's stamp before a copy is made.
  Stamp stamp_of(uint64_t hash) const {
    return stamps_ != nullptr ? stamps_->stamp_of(hash) : Stamp{};
  }
  // Ends the copies of the key that clients of this host have, this one's included.
  Stamp renew_stamp(uint64_t hash, const Successor& successor) {
    return stamps_ != nullptr ? stamps_->renew(hash, successor) : Stamp{};
  }
  // What tells whose a hosted slot is; null: this client makes none.
  HostStamps* host() const { return is_regular_ ? nullptr : stamps_; }
  // What the slot must say when no client but this one has a copy of what it leads to, these being
  // registered. Where clients of other hosts have had copies they will make new ones.
  uint64_t guard_flag(layout::CoherenceRecord owners) const {
    if (host() == nullptr) return layout::Slot::kShared;
    const bool alone = host()->knows(owners.owners()) || KV_BUGGIFY(hosted_anyhow);
    return alone ? layout::Slot::kHosted : layout::Slot::kShared;
  }
  ClientCache* cache() const { return cache_; }
  uint64_t term() const { return term_; }
  unsigned group() const { return layout::owner_group(registration_); }
  bool is_owner(layout::CoherenceRecord record) const {
    return (record.owners() >> group() & 1) != 0;
  }
  uint64_t revoke_offset() const { return layout::revoke_offset(group()); }
  // Others must be able to reach this client before it makes copies.
  void set_reachable() { reachable_.store(true, std::memory_order_release); }
  bool is_reachable() const { return reachable_.load(std::memory_order_acquire); }
  // A heartbeat that began at `begun_ns` has read the node line and the revoke word, and has been
  // written since.
  void renewed(uint64_t begun_ns, uint64_t revoke_word, const layout::NodeLine& node);
  // The record's word as last seen, which a registration has to guess.
  layout::CoherenceRecord guess(uint32_t record) const;
  void saw(uint32_t record, layout::CoherenceRecord word);

  using Reply = std::function<void(uint32_t to, const CacheMessage& message)>;
  // Takes a message in, on the thread that receives.
  void handle(const Message& message, const Reply& reply);

  const CoherenceCounts& counts() const { return counts_; }

 private:
  static constexpr size_t kClearingsMax = 32;
  static constexpr size_t kOpenMax = 1024;

  Task<Status> refresh_live(Remote& remote, const layout::NodeLine& node);
  // Live clients of the record's groups that must be told; groups of those that need not be are
  // added to `spared`.
  std::vector<uint32_t> live_of(const Copies& copies, uint64_t& spared);
  Task<Status> tell(Remote& remote, Postbox& postbox, const Copies& copies, Question& question);
  Task<Status> await_answers(Remote& remote, Postbox& postbox, const Copies& copies,
                             Question& question, Bounds bounds);
  Task<Status> revoke(Remote& remote, uint64_t groups, Bounds bounds, bool& told);
  std::vector<uint32_t> waiting_for(Question& question);

  const uint32_t registration_;
  const layout::Geometry geometry_;
  const uint64_t lease_ns_;
  const bool is_regular_;
  ClientCache* cache_ = nullptr;
  uint64_t term_ = 0;
  HostStamps* stamps_ = nullptr;  // the cache keeps them
  std::atomic<bool> reachable_{false};
  std::atomic<uint64_t> owed_{0};  // groups
  std::atomic<bool> paying_{false};
  CoherenceCounts counts_;

  // The service's own.
  bool first_ = true;
  uint64_t revoke_seen_ = 0;
  uint64_t crashes_seen_ = 0;

  std::mutex mutex_;
  uint64_t next_question_ = 1;
  std::vector<Question*> questions_;
  struct Clearing {
    kv_op op;
    uint64_t wanted_ns;  // of boottime
  };
  std::vector<Clearing> clearings_;
  std::vector<OpenStamp> open_;
  // By place; as of `admissions_` and `deaths_`.
  std::vector<uint32_t> live_;
  uint64_t admissions_ = 0;
  uint64_t deaths_ = 0;
  bool live_known_ = false;

  std::mutex records_mutex_;
  std::unique_ptr<std::atomic<uint64_t>[]> records_;
  std::atomic<std::atomic<uint64_t>*> records_known_{nullptr};
};

}  // namespace kvstore
