// What the files of the C ABI share.

#pragma once

#include <cstdint>
#include <cstring>
#include <exception>
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

// Runs what may throw, for want of memory or threads; no exception crosses the C ABI. What it was
// goes to `error`, and `failed` is returned.
template <class Result, class Body>
Result guarded(char* error, uint64_t error_bytes, Result failed, Body&& body) noexcept {
  try {
    return body();
  } catch (const std::exception& exception) {
    set_error(error, error_bytes, std::string("not enough of a resource: ") + exception.what());
    return failed;
  }
}
