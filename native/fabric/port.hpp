// Ownership of a message port.

#pragma once

#include <memory>

#include "fabric/datagram.h"

namespace kvstore {

struct PortDeleter {
  void operator()(kv_port* port) const { port->ops->destroy(port); }
};
using PortPtr = std::unique_ptr<kv_port, PortDeleter>;

}  // namespace kvstore
