// The node's end of shm attachments: listens on the Unix socket, checks who comes, hands over the
// region, and notices who goes.

#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "node/region.hpp"
#include "node/registry.hpp"

namespace kvstore {

class ShmDoor {
 public:
  // `gone` is called from the door's thread with a registration whose socket hung up, and
  // whether it had said farewell.
  static std::unique_ptr<ShmDoor> open(const std::string& name, const std::string& secret,
                                       uint64_t node_id, const Region& region, Registry& registry,
                                       std::function<void(uint32_t, bool)> gone,
                                       std::string& error);
  ~ShmDoor();

  uint64_t refused() const { return refused_.load(std::memory_order_relaxed); }
  void drain() { draining_.store(true); }
  // Drains, and hangs up on all guests, who take the node for dead then. What they have mapped
  // stays mapped until they let go of it, so only those are `gone` that have said farewell before.
  // Any thread.
  void turn_out();

 private:
  struct Guest {
    int socket;
    uint32_t registration;
  };

  ShmDoor(std::string name, std::string secret, uint64_t node_id, const Region& region,
          Registry& registry, std::function<void(uint32_t, bool)> gone, int listener);
  void wake();
  void loop();
  // Whether the guest had said farewell.
  bool hang_up(const Guest& guest);
  void hang_up_on_all();
  void take_in(int socket);
  // Empty if the peer may have the region; otherwise why not.
  std::string judge(int socket, const struct ShmHello& hello, uint32_t& registration, int& process);
  void answer(int socket, const std::string& refusal, uint32_t registration);

  const std::string name_;
  const std::string secret_;
  const uint64_t node_id_;
  const Region& region_;
  Registry& registry_;
  const std::function<void(uint32_t, bool)> gone_;
  const int listener_;
  const int wake_descriptor_;
  std::atomic<uint64_t> refused_{0};
  std::atomic<bool> draining_{false};
  std::atomic<bool> turning_out_{false};
  std::atomic<bool> stopping_{false};
  std::vector<Guest> guests_;
  std::thread thread_;
};

}  // namespace kvstore
