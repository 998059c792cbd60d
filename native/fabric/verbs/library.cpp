// The table of the library: C on the outside, and no exception gets out.

#include <algorithm>
#include <cstring>
#include <exception>
#include <string>

#include "fabric/verbs/connection.hpp"
#include "fabric/verbs/target.hpp"

using namespace kvstore;

namespace {

void put_line(const std::string& line, char* error, uint64_t error_bytes) {
  if (error_bytes == 0) return;
  const size_t bytes = std::min<size_t>(line.size(), error_bytes - 1);
  std::memcpy(error, line.data(), bytes);
  error[bytes] = '\0';
}

// Runs `step`, which returns a false value and one line if it fails.
template <class Step>
auto guarded(char* error, uint64_t error_bytes, Step&& step)
    -> decltype(step(std::declval<std::string&>())) {
  std::string line;
  try {
    if (auto result = step(line)) return result;
  } catch (const std::exception& failure) {
    line = failure.what();
  }
  put_line(line, error, error_bytes);
  return {};
}

kv_verbs_port* open_port(const char* device, const uint8_t* gid, char* error,
                         uint64_t error_bytes) {
  return guarded(error, error_bytes, [&](std::string& line) {
    verbs::Gid wanted{};
    if (gid != nullptr) std::copy_n(gid, wanted.size(), wanted.begin());
    return verbs::open_port(device == nullptr ? "" : device, gid == nullptr ? nullptr : &wanted,
                            line)
        .release();
  });
}

void close_port(kv_verbs_port* port) {
  delete port;
}

void describe_port(const kv_verbs_port* port, kv_verbs_port_description* description) {
  *description = kv_verbs_port_description{};
  put_line(ibv_get_device_name(port->context->device), description->device,
           sizeof description->device);
  description->port = port->number;
  std::copy(port->gid.begin(), port->gid.end(), description->gid);
  description->atomics_span_devices = verbs::atomics_span_devices(port->limits) ? 1 : 0;
}

int event_descriptor(const kv_verbs_port* port) {
  return port->context->async_fd;
}

uint32_t next_event(kv_verbs_port* port) {
  return verbs::next_event(*port);
}

int serves(const kv_verbs_port* port) {
  verbs::PortState state;
  std::string reason;
  return verbs::look_up(*port, state, reason) ? 1 : 0;
}

int register_memory(kv_verbs_port* port, void* memory, uint64_t bytes, char* error,
                    uint64_t error_bytes) {
  const bool added = guarded(error, error_bytes, [&](std::string& line) {
    return port->memory.add(port->domain.get(), port->limits, memory, bytes, line);
  });
  return added ? 0 : -1;
}

void unregister_memory(kv_verbs_port* port, void* memory) {
  port->memory.remove(memory);
}

kv_connection* prepare(kv_verbs_port* port, kv_verbs_endpoint* mine, char* error,
                       uint64_t error_bytes) {
  return guarded(error, error_bytes, [&](std::string& line) -> kv_connection* {
    return verbs::Connection::prepare(*port, *mine, line).release();
  });
}

int establish(kv_connection* connection, const kv_verbs_grant* grant, char* error,
              uint64_t error_bytes) {
  const bool established = guarded(error, error_bytes, [&](std::string& line) {
    return static_cast<verbs::Connection*>(connection)->establish(*grant, line);
  });
  return established ? 0 : -1;
}

kv_verbs_target* expose(kv_verbs_port* port, void* region, uint64_t bytes, char* error,
                        uint64_t error_bytes) {
  return guarded(error, error_bytes, [&](std::string& line) {
    return verbs::expose(*port, region, bytes, line).release();
  });
}

void withdraw(kv_verbs_target* target) {
  delete target;
}

kv_verbs_peer* accept(kv_verbs_target* target, const kv_verbs_endpoint* client,
                      kv_verbs_grant* grant, char* error, uint64_t error_bytes) {
  return guarded(error, error_bytes, [&](std::string& line) {
    return verbs::accept(*target, *client, *grant, line).release();
  });
}

void dismiss(kv_verbs_peer* peer) {
  delete peer;
}

}  // namespace

extern "C" __attribute__((visibility("default"))) const kv_verbs_api* kv_verbs_open(void) {
  static constexpr kv_verbs_api table = {KV_VERBS_ABI_VERSION,
                                         open_port,
                                         close_port,
                                         describe_port,
                                         event_descriptor,
                                         next_event,
                                         serves,
                                         register_memory,
                                         unregister_memory,
                                         prepare,
                                         establish,
                                         expose,
                                         withdraw,
                                         accept,
                                         dismiss};
  return &table;
}
