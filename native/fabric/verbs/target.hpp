// The node's side: the region, registered once, and one queue pair for each connection of a client.
// The processor of the node takes no part in what the clients do there.

#pragma once

#include <memory>
#include <string>

#include "fabric/verbs/queue_pair.hpp"

struct kv_verbs_target {
  kv_verbs_port& port;
  void* region;
  uint64_t bytes;
  kvstore::verbs::QueuePtr queue;  // nothing is ever posted: it stays empty
  kvstore::verbs::MemoryPtr memory;
};

struct kv_verbs_peer {
  kvstore::verbs::QueuePairPtr queue_pair;
};

namespace kvstore::verbs {

std::unique_ptr<kv_verbs_target> expose(kv_verbs_port& port, void* region, uint64_t bytes,
                                        std::string& error);

std::unique_ptr<kv_verbs_peer> accept(kv_verbs_target& target, const kv_verbs_endpoint& client,
                                      kv_verbs_grant& grant, std::string& error);

}  // namespace kvstore::verbs
