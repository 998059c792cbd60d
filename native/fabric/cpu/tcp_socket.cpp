#include "fabric/cpu/tcp_socket.hpp"

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace kvstore {

namespace {

constexpr uint64_t kNsPerMs = 1'000'000;
constexpr int kListenBacklog = 1024;

struct Address {
  sockaddr_storage storage{};
  socklen_t bytes = 0;
};

struct Resolution {
  std::mutex mutex;
  std::condition_variable done_changed;
  bool done = false;
  std::string error;
  std::vector<Address> addresses;
};

std::string strip_brackets(const std::string& host) {
  if (host.size() >= 2 && host.front() == '[' && host.back() == ']') {
    return host.substr(1, host.size() - 2);
  }
  return host;
}

std::string errno_text(int error_number) {
  return std::error_code(error_number, std::generic_category()).message();
}

// Returns the getaddrinfo error code.
int look_up(const std::string& host, uint16_t port, int flags, std::vector<Address>& addresses,
            std::string& error) {
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = flags | AI_NUMERICSERV;
  addrinfo* list = nullptr;
  const int code = getaddrinfo(host.empty() ? nullptr : host.c_str(), std::to_string(port).c_str(),
                               &hints, &list);
  if (code != 0) {
    error = code == EAI_SYSTEM ? errno_text(errno) : gai_strerror(code);
    return code;
  }
  for (const addrinfo* entry = list; entry != nullptr; entry = entry->ai_next) {
    Address address;
    std::memcpy(&address.storage, entry->ai_addr, entry->ai_addrlen);
    address.bytes = entry->ai_addrlen;
    addresses.push_back(address);
  }
  freeaddrinfo(list);
  return 0;
}

// getaddrinfo cannot be given a deadline, so a name is looked up by a thread of its own, which is
// left to end by itself if it takes too long.
bool resolve(const std::string& host, uint16_t port, uint64_t deadline_ns,
             std::vector<Address>& addresses, std::string& error) {
  if (look_up(host, port, AI_NUMERICHOST, addresses, error) == 0) return true;
  auto resolution = std::make_shared<Resolution>();
  try {
    std::thread([resolution, host, port] {
      std::vector<Address> found;
      std::string problem;
      look_up(host, port, AI_ADDRCONFIG, found, problem);
      const std::lock_guard<std::mutex> lock(resolution->mutex);
      resolution->addresses = std::move(found);
      resolution->error = std::move(problem);
      resolution->done = true;
      resolution->done_changed.notify_one();
    }).detach();
  } catch (const std::system_error& failure) {
    error = failure.code().message();
    return false;
  }
  const uint64_t now_ns = monotonic_ns();
  const auto wait = std::chrono::nanoseconds(deadline_ns > now_ns ? deadline_ns - now_ns : 0);
  std::unique_lock<std::mutex> lock(resolution->mutex);
  if (!resolution->done_changed.wait_for(lock, wait, [&] { return resolution->done; })) {
    error = "the name was not resolved in time";
    return false;
  }
  addresses = resolution->addresses;
  error = resolution->error;
  return !addresses.empty();
}

// Waits for `events` until the deadline; false with `error` set if they did not come.
bool wait_for(int fd, short events, uint64_t deadline_ns, std::string& error) {
  for (;;) {
    const uint64_t now_ns = monotonic_ns();
    const uint64_t left_ns = deadline_ns > now_ns ? deadline_ns - now_ns : 0;
    const uint64_t left_ms = std::min<uint64_t>((left_ns + kNsPerMs - 1) / kNsPerMs, 60'000);
    pollfd entry{fd, events, 0};
    const int ready = poll(&entry, 1, static_cast<int>(left_ms));
    if (ready > 0) return true;
    if (ready < 0 && errno != EINTR) {
      error = errno_text(errno);
      return false;
    }
    if (left_ns == 0) {
      error = "timed out";
      return false;
    }
  }
}

// Between two processes of one host nothing is congested, and the timers of a congestion control
// that paces (bbr does) cost more than the transfer. A socket keeps pacing once it has begun, so a
// connection starts with the control that every kernel has and that does not pace; one to another
// host is given back the system's own by `set_data_socket_options`.
void start_without_pacing(int fd) {
  constexpr char kPlain[] = "reno";
  setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, kPlain, sizeof(kPlain) - 1);
}

// The system's congestion control, as a new socket has it; empty if it cannot be told.
const std::string& system_congestion_control() {
  static const std::string name = [] {
    const OwnedFd fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    char text[64] = "";
    socklen_t bytes = sizeof(text) - 1;
    getsockopt(fd.get(), IPPROTO_TCP, TCP_CONGESTION, text, &bytes);
    return std::string(text);
  }();
  return name;
}

// Whether both ends of a connected socket have the same address.
bool within_host(int fd) {
  sockaddr_storage ours{};
  sockaddr_storage theirs{};
  socklen_t our_bytes = sizeof(ours);
  socklen_t their_bytes = sizeof(theirs);
  if (getsockname(fd, reinterpret_cast<sockaddr*>(&ours), &our_bytes) != 0 ||
      getpeername(fd, reinterpret_cast<sockaddr*>(&theirs), &their_bytes) != 0 ||
      ours.ss_family != theirs.ss_family) {
    return false;
  }
  if (ours.ss_family == AF_INET6) {
    return std::memcmp(&reinterpret_cast<const sockaddr_in6*>(&ours)->sin6_addr,
                       &reinterpret_cast<const sockaddr_in6*>(&theirs)->sin6_addr,
                       sizeof(in6_addr)) == 0;
  }
  return reinterpret_cast<const sockaddr_in*>(&ours)->sin_addr.s_addr ==
         reinterpret_cast<const sockaddr_in*>(&theirs)->sin_addr.s_addr;
}

OwnedFd connect_address(const Address& address, uint64_t deadline_ns, std::string& error) {
  OwnedFd fd(socket(address.storage.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd.valid()) {
    error = errno_text(errno);
    return OwnedFd();
  }
  start_without_pacing(fd.get());
  const auto* target = reinterpret_cast<const sockaddr*>(&address.storage);
  if (connect(fd.get(), target, address.bytes) == 0) return fd;
  if (errno != EINPROGRESS && errno != EINTR) {
    error = errno_text(errno);
    return OwnedFd();
  }
  if (!wait_for(fd.get(), POLLOUT, deadline_ns, error)) return OwnedFd();
  int failure = 0;
  socklen_t failure_bytes = sizeof(failure);
  getsockopt(fd.get(), SOL_SOCKET, SO_ERROR, &failure, &failure_bytes);
  if (failure == 0) return fd;
  error = errno_text(failure);
  return OwnedFd();
}

uint16_t port_of(const sockaddr_storage& storage) {
  if (storage.ss_family == AF_INET6) {
    return ntohs(reinterpret_cast<const sockaddr_in6*>(&storage)->sin6_port);
  }
  return ntohs(reinterpret_cast<const sockaddr_in*>(&storage)->sin_port);
}

OwnedFd listen_address(const Address& address, uint16_t& bound_port, std::string& error) {
  OwnedFd fd(socket(address.storage.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  const int on = 1;
  const int off = 0;
  sockaddr_storage bound{};
  socklen_t bound_bytes = sizeof(bound);
  if (address.storage.ss_family == AF_INET6) {
    setsockopt(fd.get(), IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off));
  }
  if (!fd.valid() || setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) != 0 ||
      bind(fd.get(), reinterpret_cast<const sockaddr*>(&address.storage), address.bytes) != 0 ||
      listen(fd.get(), kListenBacklog) != 0 ||
      getsockname(fd.get(), reinterpret_cast<sockaddr*>(&bound), &bound_bytes) != 0) {
    error = errno_text(errno);
    return OwnedFd();
  }
  start_without_pacing(fd.get());  // connections inherit it
  bound_port = port_of(bound);
  return fd;
}

}  // namespace

OwnedFd& OwnedFd::operator=(OwnedFd&& other) noexcept {
  if (this != &other) {
    reset();
    fd_ = other.release();
  }
  return *this;
}

int OwnedFd::release() {
  const int fd = fd_;
  fd_ = -1;
  return fd;
}

void OwnedFd::reset() {
  if (fd_ >= 0) close(fd_);
  fd_ = -1;
}

std::string endpoint_name(const std::string& host, uint16_t port) {
  const std::string bare = strip_brackets(host);
  const bool ipv6 = bare.find(':') != std::string::npos;
  return (ipv6 ? "[" + bare + "]" : bare) + ":" + std::to_string(port);
}

OwnedFd connect_socket(const std::string& host, uint16_t port, uint64_t deadline_ns,
                       std::string& error) {
  std::vector<Address> addresses;
  std::string reason;
  if (host.empty()) {
    error = "no host to connect to";
    return OwnedFd();
  }
  if (!resolve(strip_brackets(host), port, deadline_ns, addresses, reason)) {
    error = "cannot resolve " + host + ": " + reason;
    return OwnedFd();
  }
  for (size_t i = 0; i < addresses.size(); ++i) {
    const uint64_t now_ns = monotonic_ns();
    const uint64_t left_ns = deadline_ns > now_ns ? deadline_ns - now_ns : 0;
    const uint64_t share_ns = left_ns / (addresses.size() - i);
    OwnedFd fd = connect_address(addresses[i], now_ns + share_ns, reason);
    if (fd.valid()) return fd;
  }
  error = "cannot connect to " + endpoint_name(host, port) + ": " + reason;
  return OwnedFd();
}

bool send_exactly(int fd, const void* data, size_t bytes, uint64_t deadline_ns,
                  std::string& error) {
  const auto* cursor = static_cast<const uint8_t*>(data);
  while (bytes > 0) {
    const ssize_t sent = send(fd, cursor, bytes, MSG_NOSIGNAL);
    if (sent >= 0) {
      cursor += sent;
      bytes -= static_cast<size_t>(sent);
    } else if (errno == EAGAIN) {
      if (!wait_for(fd, POLLOUT, deadline_ns, error)) return false;
    } else if (errno != EINTR) {
      error = errno_text(errno);
      return false;
    }
  }
  return true;
}

bool receive_exactly(int fd, void* data, size_t bytes, uint64_t deadline_ns, std::string& error) {
  auto* cursor = static_cast<uint8_t*>(data);
  while (bytes > 0) {
    const ssize_t received = recv(fd, cursor, bytes, 0);
    if (received > 0) {
      cursor += received;
      bytes -= static_cast<size_t>(received);
    } else if (received == 0) {
      error = "the peer closed the connection";
      return false;
    } else if (errno == EAGAIN) {
      if (!wait_for(fd, POLLIN, deadline_ns, error)) return false;
    } else if (errno != EINTR) {
      error = errno_text(errno);
      return false;
    }
  }
  return true;
}

OwnedFd listen_socket(const std::string& host, uint16_t port, uint16_t& bound_port,
                      std::string& error) {
  std::vector<Address> addresses;
  std::string reason;
  const std::string bare = strip_brackets(host);
  if (bare.empty()) {
    // An IPv6 socket takes IPv4 connections as well, where there is IPv6.
    look_up("::", port, AI_PASSIVE | AI_NUMERICHOST, addresses, reason);
    look_up("0.0.0.0", port, AI_PASSIVE | AI_NUMERICHOST, addresses, reason);
  } else if (look_up(bare, port, AI_PASSIVE, addresses, reason) != 0) {
    error = "cannot listen on " + endpoint_name(host, port) + ": " + reason;
    return OwnedFd();
  }
  for (const Address& address : addresses) {
    OwnedFd fd = listen_address(address, bound_port, reason);
    if (fd.valid()) return fd;
  }
  error = "cannot listen on " + endpoint_name(host, port) + ": " + reason;
  return OwnedFd();
}

void set_data_socket_options(int fd, unsigned patience_ms) {
  // Failures are harmless: the options change timing, never meaning.
  const int on = 1;
  const int idle_s = static_cast<int>(std::max(1u, patience_ms / 2000));
  const int probes = 5;
  const int interval_s = static_cast<int>(std::max(1u, patience_ms / 2000 / probes));
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
  setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
  setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof(idle_s));
  setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval_s, sizeof(interval_s));
  setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof(probes));
  setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &patience_ms, sizeof(patience_ms));
  const std::string& control = system_congestion_control();
  if (!control.empty() && !within_host(fd)) {
    setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, control.data(),
               static_cast<socklen_t>(control.size()));
  }
}

}  // namespace kvstore
