// Handing the region of a node to a client of the same host: a Unix socket over which the client
// proves who it is and receives the region's descriptor. The socket stays open for as long as the
// attachment lasts; its hang-up tells either side that the other one has died.
//
// A name with '/' is a path, for containers that share a mount; any other is an abstract socket,
// which leaves nothing behind.

#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "base/status.hpp"

namespace kvstore {

inline constexpr uint32_t kShmMagic = 0x4d48534b;  // "KSHM"
inline constexpr uint32_t kShmVersion = 1;
inline constexpr uint32_t kSecretBytesMax = 256;

struct ShmHello {
  uint32_t magic = kShmMagic;
  uint32_t version = kShmVersion;
  uint64_t node_id = 0;       // wanted; 0: any
  uint32_t registration = 0;  // 0: presents the secret instead of an admission
  uint32_t secret_bytes = 0;
  std::array<uint8_t, 16> token{};
  std::array<char, kSecretBytesMax> secret{};
};

struct ShmWelcome {
  uint32_t magic = kShmMagic;
  uint32_t accepted = 0;
  uint32_t registration = 0;
  uint32_t reserved = 0;
  uint64_t region_bytes = 0;
  std::array<char, 256> error{};
};

// ---- client side ----------------------------------------------------------------------------

struct ShmMapping {
  uint8_t* region = nullptr;
  uint64_t region_bytes = 0;
  int socket = -1;
  uint32_t registration = 0;
};

// Connects, says hello, maps the region. Blocks at most until `deadline_ns` (CLOCK_MONOTONIC).
// kNodeUnreachable when nobody answers, kRefused otherwise, with one line in `error`.
Status shm_attach(const std::string& name, const ShmHello& hello, uint64_t deadline_ns,
                  ShmMapping& mapping, std::string& error);
void shm_detach(ShmMapping& mapping);

// ---- both sides -----------------------------------------------------------------------------

// A socket address for the name; the length, or 0 and a line in `error`.
struct UnixAddress {
  std::array<uint8_t, 128> storage{};
  uint32_t bytes = 0;
};
bool unix_address(const std::string& name, UnixAddress& address, std::string& error);

bool send_all(int socket, const void* data, size_t bytes);
bool receive_all(int socket, void* data, size_t bytes);
void set_socket_timeout(int socket, uint64_t timeout_ns);

}  // namespace kvstore
