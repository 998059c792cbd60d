// What the files of the C ABI share.

#pragma once

#include <cstdint>
#include <cstring>
#include <string>

#include "api/kvstore.h"

namespace kvstore {
class Client;
}

// The client behind the handle, for calls that need more than one handle.
kvstore::Client& client_of(kv_client* client);

// Copies the line, cut to fit and terminated.
inline void set_error(char* error, uint64_t error_bytes, const std::string& line) {
  if (error == nullptr || error_bytes == 0) return;
  const size_t bytes = line.size() < error_bytes - 1 ? line.size() : size_t(error_bytes - 1);
  std::memcpy(error, line.data(), bytes);
  error[bytes] = '\0';
}
