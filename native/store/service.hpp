// The service thread of a client: renews its leases, publishes its epoch, gives retired blocks
// back, writes recency to the nodes, and notices nodes of this host that die. It sleeps in the
// kernel in between.

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
  Service(Client& client, Lane& lane);
  ~Service();

  // Has the next heartbeat come within about a millisecond.
  void hurry() noexcept;

 private:
  struct PerMember {
    const Attachment* attachment = nullptr;  // to which the rest belongs
    SeenEpochs seen;
    uint64_t heartbeat = 0;
    uint64_t deaths_seen = 0;
    bool first = true;
    uint64_t operations_seen = 0;
    uint64_t rounds = 0;
    uint64_t pressure = 0;      // what some client of the node waits for
    unsigned class_wanted = 0;  // what this one does
    Scrub scrub;
  };

  void loop();
  // Returns in how many nanoseconds the next round is due.
  uint64_t beat_all();
  Task<Status> beat(Channel& channel, PerMember& member);
  Task<Status> share_memory(Channel& channel, PerMember& member);
  Task<Status> write_line(Channel& channel, PerMember& member, uint64_t published);
  void sleep(uint64_t timeout_ns);
  uint64_t oldest_tick() const;

  Client& client_;
  Lane& lane_;
  std::vector<PerMember> members_;
  int wake_descriptor_;
  std::atomic<bool> hurried_{false};
  std::atomic<bool> stopping_{false};
  std::thread thread_;
};

}  // namespace kvstore
