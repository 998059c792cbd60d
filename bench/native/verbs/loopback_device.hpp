// A stand-in for a device, so that the client's own part of the verbs fabric can be counted where
// there is no device: what libibverbs would do, done in this process. A request is executed when it
// is posted. Nothing here is a measure of a device or of a provider.
//
// Programs with it are not linked to libibverbs. All of its instructions are in functions whose
// names begin with `loopback_`.

#pragma once

#include "fabric/verbs/port.hpp"

namespace kvstore::verbs {

// A port of the stand-in.
std::unique_ptr<kv_verbs_port> open_loopback();

}  // namespace kvstore::verbs
