// Bringing a queue pair of a reliable connection up.

#pragma once

#include "fabric/verbs/port.hpp"

namespace kvstore::verbs {

// A queue pair in the state INIT that lets its peer do what `remote_access` says.
QueuePairPtr make_queue_pair(kv_verbs_port& port, ibv_cq* queue, ibv_qp_cap& capacity,
                             int remote_access, std::string& error);

// What the peer must know of a queue pair of this port.
kv_verbs_endpoint describe_endpoint(const kv_verbs_port& port, const PortState& state,
                                    const ibv_qp& queue_pair, uint32_t packet_sequence);

// Connects it: from INIT over "ready to receive" to "ready to send".
bool connect_queue_pair(const kv_verbs_port& port, const PortState& state, ibv_qp* queue_pair,
                        uint32_t packet_sequence, const kv_verbs_endpoint& peer,
                        std::string& error);

uint32_t random_packet_sequence();

}  // namespace kvstore::verbs
