// Attaching over verbs: the `verbs` atomic domain.
//
// Where there are several ways to the node, its rails, each lane takes one of them, and the next
// when its connection has broken. All that a lane has under way is on one queue pair, so what is
// promised of the order within a batch does not depend on the number of rails; between lanes
// nothing is promised anyway.

#pragma once

#include <functional>
#include <string>
#include <vector>

#include "fabric/verbs_library.hpp"
#include "store/client.hpp"

namespace kvstore {

// Asks the node to connect a queue pair; see kv_verbs_exchange.
using VerbsExchange =
    std::function<Status(uint32_t lane, const kv_verbs_endpoint& mine, uint64_t timeout_ns,
                         kv_verbs_grant& grant, std::string& error)>;

struct VerbsTarget {
  std::vector<RdmaAddress> node;  // one a rail
  // Of this host, or a list, all of which is used; empty: those on the way to the node.
  std::string device;
  std::string reached_at;  // the node's address, for messages with clients of other hosts
  uint32_t registration = 0;
  VerbsExchange exchange;
};

Status attach_verbs(Client& client, uint32_t member, const VerbsTarget& target,
                    uint64_t deadline_ns, std::string& error);

}  // namespace kvstore
