// Attaching over verbs: the `verbs` atomic domain.

#pragma once

#include <functional>
#include <string>

#include "fabric/verbs_library.hpp"
#include "store/client.hpp"

namespace kvstore {

// Asks the node to connect a queue pair; see kv_verbs_exchange.
using VerbsExchange =
    std::function<Status(uint32_t lane, const kv_verbs_endpoint& mine, uint64_t timeout_ns,
                         kv_verbs_grant& grant, std::string& error)>;

struct VerbsTarget {
  RdmaAddress node{};
  std::string device;      // of this host, or a list; of it, the one on the way to the node
  std::string reached_at;  // the node's address, for messages with clients of other hosts
  uint32_t registration = 0;
  VerbsExchange exchange;
};

Status attach_verbs(Client& client, uint32_t member, const VerbsTarget& target,
                    uint64_t deadline_ns, std::string& error);

}  // namespace kvstore
