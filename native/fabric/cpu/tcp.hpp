// The tcp fabric: one-sided operations on a region of another host, executed by a native agent in
// the node with CPU atomics (the `cpu` atomic domain, shared with shm).

#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "fabric/fabric.h"

namespace kvstore {

// A registration names one attachment of one client to one incarnation of a node. The token proves
// that the node's control plane granted it. A client opens one connection for each of its lanes.
struct TcpTarget {
  std::string host;
  uint16_t port = 0;
  uint32_t registration = 0;
  uint32_t lane = 0;
  std::array<uint8_t, 16> token{};
  uint64_t incarnation = 0;  // of the node; another one is refused
};

// Connects and says hello. Blocks at most until `deadline_ns` (CLOCK_MONOTONIC). Returns nullptr
// and one clear line in `error` if it could not.
kv_connection* tcp_connect(const TcpTarget& target, uint64_t deadline_ns, std::string& error);

struct TcpAgentConfig {
  std::string listen_host;
  uint16_t listen_port = 0;  // 0: any free one
  void* region = nullptr;
  uint64_t region_bytes = 0;
  uint64_t incarnation = 0;
  uint32_t threads = 1;
  // How long a thread may poll before it blocks, while recent waits were that short; 0: never.
  uint32_t spin_us = 50;
  // Called from an agent thread; both must be quick and must not call back into the agent.
  std::function<bool(uint32_t registration, const std::array<uint8_t, 16>& token)> authenticate;
  // Not called for a registration that was fenced, nor while the agent is being destroyed.
  std::function<void(uint32_t registration)> last_connection_closed;
};

struct TcpAgentStats {
  uint64_t connections_open = 0;
  uint64_t connections_total = 0;
  uint64_t batches = 0;
  uint64_t reads = 0;
  uint64_t writes = 0;
  uint64_t atomics = 0;
  uint64_t bytes_in = 0;
  uint64_t bytes_out = 0;
  uint64_t refused_frames = 0;  // malformed
  uint64_t refused_bounds = 0;  // out of region, misaligned
  uint64_t refused_tokens = 0;  // wrong token, registration or incarnation
};

class TcpAgent {
 public:
  // Binds, listens and starts the threads. Returns nullptr and one clear line in `error` on
  // failure.
  static std::unique_ptr<TcpAgent> start(TcpAgentConfig config, std::string& error);

  virtual ~TcpAgent() = default;  // closes every connection and joins the threads
  virtual uint16_t port() const = 0;

  // Closes every connection of `registration` and refuses new ones for ever. After it returns no
  // operation of that registration can execute. Must not be called from an agent thread.
  virtual void fence(uint32_t registration) = 0;

  virtual TcpAgentStats stats() const = 0;
};

}  // namespace kvstore
