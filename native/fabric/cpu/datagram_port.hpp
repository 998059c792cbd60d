// Ports of the `cpu` fabrics: a Unix datagram socket for clients of this host, UDP for the others.
//
// Unix sockets live in the abstract name space, so a killed process leaves nothing behind. Clients
// are of one host if they run on the same boot of a kernel in the same network name space.

#pragma once

#include <string>

#include "fabric/port.hpp"

namespace kvstore {

// `towards`: a numeric address that clients of other hosts are reached along with, as the node's;
// its packets leave by the interface whose address the port then takes. Empty: clients of this host
// alone can send here. Null and one line in `error` if a socket can't be had.
PortPtr open_datagram_port(const std::string& towards, std::string& error);

}  // namespace kvstore
