// A client of a cluster: its members, its lanes, and the service thread that keeps its leases.

#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "index/key.hpp"
#include "store/attachment.hpp"
#include "store/lane.hpp"

namespace kvstore {

class Service;

struct Member {
  std::string name;
  uint64_t name_hash = 0;
  std::mutex mutex;
  std::shared_ptr<Attachment> attachment;
  std::atomic<uint64_t> generation{0};  // +1 at every attachment
  // Copies of this member's values, for one attachment after the other; null: none are made.
  std::unique_ptr<ClientCache> cache;
  uint32_t restarts = 0;
};

class Client {
 public:
  // Without a thread of its own the client's service is driven from outside; see `service`.
  // `cache_bytes` for copies of values, of all members together; 0: none.
  Client(uint32_t lanes, uint32_t address_entries, const std::vector<std::string>& members,
         bool own_thread = true, uint64_t cache_bytes = 0);
  ~Client();
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  // Rendezvous hashing: the member whose name and the key hash highest together. Depends on the
  // configured list only, never on who is alive.
  uint32_t member_of(uint64_t key_hash) const;

  uint32_t members() const { return uint32_t(members_.size()); }
  Member& member(uint32_t index) { return *members_[index]; }
  uint32_t address_entries() const { return address_entries_; }
  // Nodes of another kv_consistency are refused. Before the first attachment.
  void require_consistency(uint32_t consistency) { consistency_ = consistency; }
  // Where stamps come from that its copies of an incarnation share with those of other clients of
  // this host; may return null. Before the first attachment.
  using OpenStamps = std::function<std::shared_ptr<HostStamps>(uint64_t incarnation)>;
  void share_stamps(OpenStamps open) { open_stamps_ = std::move(open); }
  // False with the reason if a node of this kv_consistency is not what was required.
  bool accepts(uint32_t consistency, std::string& error) const;
  bool makes_copies() const { return members_.front()->cache != nullptr; }

  // Takes over from an earlier attachment of the member.
  void attach(uint32_t member, std::shared_ptr<Attachment> attachment);
  std::shared_ptr<Attachment> attachment(uint32_t member);

  // A free lane, or nullptr with the reason.
  Lane* acquire_lane(uint64_t timeout_ns, Status& status);
  void release_lane(Lane& lane);

  // Registers memory with every attachment, those to come included. All or none; kRefused with the
  // reason. Memory that is registered must outlive its registration and not overlap another.
  Status register_memory(void* memory, uint64_t bytes, std::string& error);
  // No call may be under way that uses it.
  void unregister_memory(void* memory);

  // Whether operations that a lane lost may still be on their way to the member.
  bool any_unfenced(uint32_t member) const;

  std::atomic<uint64_t>& tick() { return tick_; }
  // The service and its lane, for who drives them; nullptr before the first attachment.
  Service* service() { return service_.get(); }
  Lane& service_lane() { return *service_lane_; }
  // Has the service tend to locks at `due_ns` at the latest.
  void alarm(uint64_t due_ns);
  // Has the heartbeat come soon, because blocks of the class are waited for.
  void want_memory(uint32_t member, unsigned size_class);

  void read_stats(kv_client_stats& stats);
  void read_copy_state(const Key& key, kv_copy_state& state);
  bool is_inline();
  bool forked() const;
  void close();
  // Has what was retired come back soon. Returns the bytes that still wait for it.
  uint64_t hurry_limbo();
  // Of how many members clients may have copies whose end this one owes: see Coherence::owe.
  uint32_t members_owed();
  // Uses of keys wait to be told to a node.
  void tell_touches();

 private:
  friend class Service;
  void forget_memory_locked(void* memory);
  // Waits, for half a second at most, until what was retired has been given back.
  void drain_limbo();

  const uint32_t address_entries_;
  std::optional<uint32_t> consistency_;
  const bool own_thread_;
  OpenStamps open_stamps_;
  std::vector<std::unique_ptr<Member>> members_;
  std::mutex memory_mutex_;  // taken before a member's
  std::map<void*, uint64_t> memory_;
  std::vector<std::unique_ptr<Lane>> lanes_;
  std::unique_ptr<Lane> service_lane_;
  std::mutex lanes_mutex_;
  std::condition_variable lane_freed_;
  std::atomic<uint32_t> lane_waiters_{0};
  std::atomic<uint64_t> tick_{1};
  std::atomic<bool> closing_{false};
  std::unique_ptr<Service> service_;
  std::atomic<Service*> alarmed_{nullptr};  // the same, while it takes alarms
  const uint64_t fork_generation_;
};

}  // namespace kvstore
