// The transports of the `cpu` atomic domain, and attaching over each and over any other.

#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>

#include "fabric/cpu/shm_attach.hpp"
#include "fabric/cpu/tcp.hpp"
#include "store/client.hpp"

namespace kvstore {

// A region in this process: the embedded node, and a node's own janitor.
struct LocalRegion {
  uint8_t* data = nullptr;
  uint64_t bytes = 0;
  std::shared_ptr<std::atomic<uint32_t>> dead;
  std::shared_ptr<void> memory;    // keeps the mapping for as long as somebody may look at it
  std::function<void()> detached;  // tells the node that the attachment has ended
};

// The first address of a host's name, for messages; empty if it has none.
std::string numeric_address(const std::string& host);

// Reads the superblock and the directory over a connection of its own, and hands the member its
// attachment.
Status take_up(Client& client, uint32_t member, std::unique_ptr<Transport> transport,
               uint32_t registration, uint64_t deadline_ns, std::string& error);

Status attach_local(Client& client, uint32_t member, const LocalRegion& region,
                    uint32_t registration, std::string& error);
// `reached_at`: the node's address as clients of other hosts know it, for messages with them;
// empty: there are none.
Status attach_shm(Client& client, uint32_t member, const std::string& name, const ShmHello& hello,
                  const std::string& reached_at, uint64_t deadline_ns, std::string& error);
Status attach_tcp(Client& client, uint32_t member, const TcpTarget& target, uint64_t deadline_ns,
                  std::string& error);

}  // namespace kvstore
