#include "fabric/cpu/datagram_port.hpp"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <fstream>

#include "base/assert.hpp"
#include "base/siphash.hpp"
#include "fabric/cpu/tcp_socket.hpp"

namespace kvstore {
namespace {

// What the bytes of an address mean here.
struct CpuAddress {
  uint64_t host;
  uint64_t unix_name;
  uint8_t ip[16];     // IPv4 in its IPv6 form
  uint16_t udp_port;  // network order; 0: none
  uint8_t unused[6];
};
static_assert(sizeof(CpuAddress) == KV_DATAGRAM_ADDRESS_BYTES);

// Of the boot of the kernel and the network name space: where abstract names mean the same.
uint64_t host_identity() {
  std::string text;
  std::getline(std::ifstream("/proc/sys/kernel/random/boot_id"), text);
  struct stat network{};
  if (::stat("/proc/self/ns/net", &network) == 0) {
    text += ' ' + std::to_string(network.st_dev) + ' ' + std::to_string(network.st_ino);
  }
  const SipCode code =
      siphash(SipKey{}, {reinterpret_cast<const uint8_t*>(text.data()), text.size()});
  uint64_t identity = 0;
  std::memcpy(&identity, code.data(), sizeof identity);
  return identity;
}

socklen_t unix_socket_name(uint64_t name, sockaddr_un& address) {
  address = sockaddr_un{};
  address.sun_family = AF_UNIX;
  const int length = std::snprintf(address.sun_path + 1, sizeof address.sun_path - 1,
                                   "kvstore/port/%016lx", static_cast<unsigned long>(name));
  return socklen_t(offsetof(sockaddr_un, sun_path) + 1 + size_t(length));
}

bool is_mapped_ipv4(const uint8_t* ip) {
  static constexpr uint8_t kPrefix[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
  return std::memcmp(ip, kPrefix, sizeof kPrefix) == 0;
}

socklen_t udp_socket_name(const CpuAddress& address, sockaddr_storage& storage) {
  storage = sockaddr_storage{};
  if (is_mapped_ipv4(address.ip)) {
    auto& name = reinterpret_cast<sockaddr_in&>(storage);
    name.sin_family = AF_INET;
    name.sin_port = address.udp_port;
    std::memcpy(&name.sin_addr, address.ip + 12, 4);
    return sizeof name;
  }
  auto& name = reinterpret_cast<sockaddr_in6&>(storage);
  name.sin6_family = AF_INET6;
  name.sin6_port = address.udp_port;
  std::memcpy(&name.sin6_addr, address.ip, 16);
  return sizeof name;
}

void note_name(const sockaddr_storage& storage, CpuAddress& address) {
  if (storage.ss_family == AF_INET) {
    const auto& name = reinterpret_cast<const sockaddr_in&>(storage);
    std::memset(address.ip, 0, 10);
    std::memset(address.ip + 10, 0xff, 2);
    std::memcpy(address.ip + 12, &name.sin_addr, 4);
    address.udp_port = name.sin_port;
  } else {
    const auto& name = reinterpret_cast<const sockaddr_in6&>(storage);
    std::memcpy(address.ip, &name.sin6_addr, 16);
    address.udp_port = name.sin6_port;
  }
}

struct CpuPort : kv_port {
  CpuAddress own{};
  OwnedFd unix_socket;
  OwnedFd udp_socket;
  OwnedFd readiness;  // of both
  bool udp_next = false;
};

CpuPort& port_of(kv_port* port) {
  return *static_cast<CpuPort*>(port);
}

uint32_t send_datagram(kv_port* port, const kv_datagram_address* to, const void* data,
                       uint32_t bytes) {
  CpuPort& self = port_of(port);
  CpuAddress address;
  std::memcpy(&address, to->bytes, sizeof address);
  ssize_t sent = -1;
  if (address.host == self.own.host) {
    sockaddr_un name;
    const socklen_t length = unix_socket_name(address.unix_name, name);
    sent = ::sendto(self.unix_socket.get(), data, bytes, MSG_DONTWAIT | MSG_NOSIGNAL,
                    reinterpret_cast<const sockaddr*>(&name), length);
  } else if (address.udp_port != 0 && self.udp_socket.get() >= 0) {
    sockaddr_storage name;
    const socklen_t length = udp_socket_name(address, name);
    sent = ::sendto(self.udp_socket.get(), data, bytes, MSG_DONTWAIT | MSG_NOSIGNAL,
                    reinterpret_cast<const sockaddr*>(&name), length);
  }
  return sent == ssize_t(bytes) ? 1 : 0;
}

uint32_t receive_from(int socket, void* into) {
  // An error that an earlier send left on the socket says nothing about what has arrived; there is
  // at most one a send, but a bound costs nothing.
  constexpr unsigned kTries = 8;
  for (unsigned attempt = 0; socket >= 0 && attempt < kTries; ++attempt) {
    const ssize_t got = ::recv(socket, into, KV_DATAGRAM_BYTES_MAX, MSG_DONTWAIT | MSG_TRUNC);
    if (got > 0 && got <= KV_DATAGRAM_BYTES_MAX) return uint32_t(got);
    if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return 0;
  }
  return 0;
}

// The two sockets take turns, so that a flood on one does not silence the other.
uint32_t receive_datagram(kv_port* port, void* into) {
  CpuPort& self = port_of(port);
  for (unsigned turn = 0; turn < 2; ++turn) {
    self.udp_next = !self.udp_next;
    const int socket = self.udp_next ? self.unix_socket.get() : self.udp_socket.get();
    if (const uint32_t bytes = receive_from(socket, into); bytes > 0) return bytes;
  }
  return 0;
}

int wait_descriptor(kv_port* port) {
  return port_of(port).readiness.get();
}

void destroy(kv_port* port) {
  delete &port_of(port);
}

constexpr kv_port_ops kOps = {KV_DATAGRAM_ABI_VERSION, send_datagram, receive_datagram,
                              wait_descriptor, destroy};

bool watch(CpuPort& port, int socket) {
  epoll_event event{};
  event.events = EPOLLIN;
  return ::epoll_ctl(port.readiness.get(), EPOLL_CTL_ADD, socket, &event) == 0;
}

bool open_unix(CpuPort& port) {
  port.unix_socket = OwnedFd(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  KV_ASSERT(::getrandom(&port.own.unix_name, sizeof port.own.unix_name, 0) == 8);
  sockaddr_un name;
  const socklen_t length = unix_socket_name(port.own.unix_name, name);
  return port.unix_socket.get() >= 0 &&
         ::bind(port.unix_socket.get(), reinterpret_cast<const sockaddr*>(&name), length) == 0 &&
         watch(port, port.unix_socket.get());
}

// A connected socket tells which of our addresses packets to `towards` bear; the port itself is not
// connected.
bool open_udp(CpuPort& port, const std::string& towards) {
  CpuAddress target{};
  const bool ipv4 = ::inet_pton(AF_INET, towards.c_str(), target.ip + 12) == 1;
  if (ipv4) {
    std::memset(target.ip + 10, 0xff, 2);
  } else if (::inet_pton(AF_INET6, towards.c_str(), target.ip) != 1) {
    errno = EINVAL;
    return false;
  }
  constexpr uint16_t kAnyPort = 9;
  target.udp_port = htons(kAnyPort);
  sockaddr_storage name;
  const socklen_t target_bytes = udp_socket_name(target, name);
  const int family = ipv4 ? AF_INET : AF_INET6;
  const OwnedFd probe(::socket(family, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  socklen_t bytes = sizeof name;
  if (probe.get() < 0 ||
      ::connect(probe.get(), reinterpret_cast<const sockaddr*>(&name), target_bytes) != 0 ||
      ::getsockname(probe.get(), reinterpret_cast<sockaddr*>(&name), &bytes) != 0) {
    return false;
  }
  note_name(name, port.own);
  port.own.udp_port = 0;
  const socklen_t own_bytes = udp_socket_name(port.own, name);
  port.udp_socket = OwnedFd(::socket(family, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  bytes = sizeof name;
  if (port.udp_socket.get() < 0 ||
      ::bind(port.udp_socket.get(), reinterpret_cast<const sockaddr*>(&name), own_bytes) != 0 ||
      ::getsockname(port.udp_socket.get(), reinterpret_cast<sockaddr*>(&name), &bytes) != 0) {
    return false;
  }
  note_name(name, port.own);
  return watch(port, port.udp_socket.get());
}

}  // namespace

PortPtr open_datagram_port(const std::string& towards, std::string& error) {
  auto port = std::make_unique<CpuPort>();
  port->ops = &kOps;
  port->own.host = host_identity();
  port->readiness = OwnedFd(::epoll_create1(EPOLL_CLOEXEC));
  if (port->readiness.get() < 0 || !open_unix(*port)) {
    error = std::string("can't open a socket for messages: ") + std::strerror(errno);
    return nullptr;
  }
  if (!towards.empty() && !open_udp(*port, towards)) {
    error = "can't open a UDP socket towards " + towards + ": " + std::strerror(errno);
    return nullptr;
  }
  std::memcpy(port->address.bytes, &port->own, sizeof port->own);
  return PortPtr(port.release());
}

}  // namespace kvstore
