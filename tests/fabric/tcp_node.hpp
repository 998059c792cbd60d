// A tcp agent over a private region, for tests.

#pragma once

#include <doctest/doctest.h>
#include <sys/mman.h>

#include <atomic>
#include <memory>
#include <string>

#include "conformance.hpp"
#include "fabric/cpu/tcp.hpp"
#include "fabric/cpu/tcp_socket.hpp"

namespace kvstore::test {

// Zeroed, page-aligned memory.
class PrivateRegion {
 public:
  explicit PrivateRegion(uint64_t bytes) : bytes_(bytes) {
    memory_ = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    REQUIRE(memory_ != MAP_FAILED);
  }
  PrivateRegion(const PrivateRegion&) = delete;
  PrivateRegion& operator=(const PrivateRegion&) = delete;
  ~PrivateRegion() { munmap(memory_, bytes_); }

  void* data() const { return memory_; }
  uint64_t word(uint64_t offset) const {
    return __atomic_load_n(
        reinterpret_cast<const uint64_t*>(static_cast<const char*>(memory_) + offset),
        __ATOMIC_SEQ_CST);
  }

 private:
  uint64_t bytes_;
  void* memory_;
};

class TcpNode {
 public:
  static constexpr uint64_t kIncarnation = 77;
  static constexpr std::array<uint8_t, 16> kToken = {1, 2, 3, 4, 5, 6, 7, 8,
                                                     9, 8, 7, 6, 5, 4, 3, 2};
  static constexpr uint32_t kUnknownRegistration = 1'000'000;  // and above

  explicit TcpNode(uint64_t region_bytes, uint32_t threads = 2, const char* host = "127.0.0.1")
      : region_(region_bytes) {
    TcpAgentConfig config;
    config.listen_host = host;
    config.region = region_.data();
    config.region_bytes = region_bytes;
    config.incarnation = kIncarnation;
    config.threads = threads;
    config.authenticate = [](uint32_t registration, const std::array<uint8_t, 16>& token) {
      return registration < kUnknownRegistration && token == kToken;
    };
    config.last_connection_closed = [this](uint32_t registration) {
      last_closed_registration = registration;
      ++last_closed_calls;
    };
    std::string error;
    agent_ = TcpAgent::start(std::move(config), error);
    REQUIRE_MESSAGE(agent_ != nullptr, error);
  }

  TcpTarget target(uint32_t registration = 1, uint32_t lane = 0) const {
    TcpTarget target;
    target.host = "127.0.0.1";
    target.port = agent_->port();
    target.registration = registration;
    target.lane = lane;
    target.token = kToken;
    target.incarnation = kIncarnation;
    return target;
  }

  // On a lane that nobody else has.
  ConnectionPtr connect(uint32_t registration = 1) const {
    return connect_lane(registration, ++last_lane_);
  }
  ConnectionPtr connect_lane(uint32_t registration, uint32_t lane) const {
    std::string error;
    kv_connection* connection =
        tcp_connect(target(registration, lane), monotonic_ns() + 10'000'000'000, error);
    REQUIRE_MESSAGE(connection != nullptr, error);
    return ConnectionPtr(connection);
  }

  uint32_t unused_lane() const { return ++last_lane_; }
  TcpAgent& agent() { return *agent_; }
  const PrivateRegion& region() const { return region_; }
  void kill() { agent_.reset(); }

  std::atomic<uint32_t> last_closed_registration{0};
  std::atomic<int> last_closed_calls{0};

 private:
  PrivateRegion region_;
  mutable std::atomic<uint32_t> last_lane_{0};
  std::unique_ptr<TcpAgent> agent_;
};

// Waits up to five seconds for `condition`.
template <typename Condition>
bool eventually(Condition condition) {
  const uint64_t end_ns = monotonic_ns() + 5'000'000'000;
  while (!condition()) {
    if (monotonic_ns() > end_ns) return false;
    const timespec pause{0, 1'000'000};
    nanosleep(&pause, nullptr);
  }
  return true;
}

}  // namespace kvstore::test
