// Set-up of the sockets of the tcp fabric: names to addresses, connecting and greeting within a
// deadline, listening, options. Nothing here runs once a connection serves operations.

#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "coro/clock.hpp"

namespace kvstore {

// A file descriptor with one owner.
class OwnedFd {
 public:
  OwnedFd() = default;
  explicit OwnedFd(int fd) : fd_(fd) {}
  OwnedFd(OwnedFd&& other) noexcept : fd_(other.release()) {}
  OwnedFd& operator=(OwnedFd&& other) noexcept;
  OwnedFd(const OwnedFd&) = delete;
  OwnedFd& operator=(const OwnedFd&) = delete;
  ~OwnedFd() { reset(); }

  int get() const { return fd_; }
  bool valid() const { return fd_ >= 0; }
  int release();
  void reset();

 private:
  int fd_ = -1;
};

// "host:port", with an IPv6 address in brackets.
std::string endpoint_name(const std::string& host, uint16_t port);

// A connected non-blocking socket to `host` (IPv4, IPv6 with or without brackets, or a name). Tries
// every address that the name has; none may use up the time of those after it. On failure the
// result is invalid and `error` one clear line.
OwnedFd connect_socket(const std::string& host, uint16_t port, uint64_t deadline_ns,
                       std::string& error);

// Sends or receives exactly `bytes` bytes on a non-blocking socket before the deadline.
bool send_exactly(int fd, const void* data, size_t bytes, uint64_t deadline_ns, std::string& error);
bool receive_exactly(int fd, void* data, size_t bytes, uint64_t deadline_ns, std::string& error);

// A non-blocking listening socket; an empty host means every address. `bound_port` receives the
// port, which the kernel chose if `port` is 0.
OwnedFd listen_socket(const std::string& host, uint16_t port, uint16_t& bound_port,
                      std::string& error);

// TCP_NODELAY, detection of a peer that vanished without a word within about `patience_ms`, and the
// system's congestion control if the peer is on another host. For a connected socket that
// `connect_socket` made or that was accepted from `listen_socket`.
void set_data_socket_options(int fd, unsigned patience_ms);

}  // namespace kvstore
