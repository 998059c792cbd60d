// The verbs library, loaded when it is first wanted. It stays loaded.

#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "fabric/verbs/verbs.h"

namespace kvstore {

// The library's table; nullptr and one line in `error` that says what is missing and how it is had.
// Thread-safe.
const kv_verbs_api* verbs_library(std::string& error);

using RdmaAddress = std::array<uint8_t, 16>;  // a GID

// Several of them that lie one behind the other.
std::vector<RdmaAddress> rdma_addresses(const uint8_t* gids, uint32_t count);

// The names of a list with commas between them; empty names are left out.
std::vector<std::string> device_names(const std::string& list);

// The GID of an IP address, or false if the text is none.
bool rdma_address(const std::string& text, RdmaAddress& gid);

// The address of this host from which packets go to `peer`; false if there is no route, or the
// address is none of IP.
bool rdma_address_towards(const RdmaAddress& peer, RdmaAddress& mine);

struct ClosePort {
  void operator()(kv_verbs_port* port) const;
};
using VerbsPort = std::unique_ptr<kv_verbs_port, ClosePort>;

// An active port of a device, if one is named (`mlx5_0`, or `mlx5_0:2` for its second port), and
// with an address, if one is given.
VerbsPort open_verbs_port(const std::string& device, const RdmaAddress* gid, std::string& error);

}  // namespace kvstore
