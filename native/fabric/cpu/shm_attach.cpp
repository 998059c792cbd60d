#include "fabric/cpu/shm_attach.hpp"

#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>

#include "coro/clock.hpp"
#include "layout/layout.hpp"

namespace kvstore {

bool unix_address(const std::string& name, UnixAddress& address, std::string& error) {
  sockaddr_un native{};
  native.sun_family = AF_UNIX;
  const bool path = name.find('/') != std::string::npos;
  const std::string text = path ? name : std::string(1, '\0') + "kvstore/" + name;
  if (name.empty() || text.size() >= sizeof native.sun_path) {
    error = "the shm name '" + name + "' is empty or longer than " +
            std::to_string(sizeof native.sun_path - 10) + " characters";
    return false;
  }
  std::memcpy(native.sun_path, text.data(), text.size());
  address.bytes = uint32_t(offsetof(sockaddr_un, sun_path) + text.size() + (path ? 1 : 0));
  static_assert(sizeof native <= sizeof address.storage);
  std::memcpy(address.storage.data(), &native, sizeof native);
  return true;
}

void set_socket_timeout(int socket, uint64_t timeout_ns) {
  timeout_ns = std::max<uint64_t>(timeout_ns, kMillisecond);
  const timeval timeout{time_t(timeout_ns / kSecond), suseconds_t(timeout_ns % kSecond / 1000)};
  ::setsockopt(socket, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout);
  ::setsockopt(socket, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof timeout);
}

bool send_all(int socket, const void* data, size_t bytes) {
  const char* at = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t sent = ::send(socket, at, bytes, MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent <= 0) return false;
    at += sent;
    bytes -= size_t(sent);
  }
  return true;
}

bool receive_all(int socket, void* data, size_t bytes) {
  char* at = static_cast<char*>(data);
  while (bytes > 0) {
    const ssize_t got = ::recv(socket, at, bytes, 0);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return false;
    at += got;
    bytes -= size_t(got);
  }
  return true;
}

namespace {

// The welcome, with the region's descriptor if the node accepts.
bool receive_welcome(int socket, ShmWelcome& welcome, int& descriptor) {
  iovec part{&welcome, sizeof welcome};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  ssize_t got;
  do {
    got = ::recvmsg(socket, &message, MSG_CMSG_CLOEXEC | MSG_WAITALL);
  } while (got < 0 && errno == EINTR);
  for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr;
       header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS) {
      std::memcpy(&descriptor, CMSG_DATA(header), sizeof descriptor);
    }
  }
  return got == ssize_t(sizeof welcome) && welcome.magic == kShmMagic;
}

bool map_region(int descriptor, uint64_t bytes, ShmMapping& mapping, std::string& error) {
  struct stat status{};
  if (::fstat(descriptor, &status) != 0 || uint64_t(status.st_size) != bytes ||
      bytes < layout::kRegionBytesMin) {
    error = "the node handed over a region of another size than it says";
    return false;
  }
  void* region = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
  if (region == MAP_FAILED) {
    error = std::string("can't map the node's region: ") + std::strerror(errno);
    return false;
  }
  ::madvise(region, bytes, MADV_DONTFORK);
  mapping.region = static_cast<uint8_t*>(region);
  mapping.region_bytes = bytes;
  return true;
}

}  // namespace

Status shm_attach(const std::string& name, const ShmHello& hello, uint64_t deadline_ns,
                  ShmMapping& mapping, std::string& error) {
  UnixAddress address;
  if (!unix_address(name, address, error)) return Status::kRefused;
  const int socket = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (socket < 0) {
    error = std::string("can't make a socket: ") + std::strerror(errno);
    return Status::kRefused;
  }
  const uint64_t now_ns = monotonic_ns();
  set_socket_timeout(socket, deadline_ns > now_ns ? deadline_ns - now_ns : 0);
  ShmWelcome welcome;
  int descriptor = -1;
  const sockaddr* native = reinterpret_cast<const sockaddr*>(address.storage.data());
  Status status = Status::kRefused;
  if (::connect(socket, native, address.bytes) != 0) {
    error = "no node answers at shm://" + name + ": " + std::strerror(errno);
    status = Status::kNodeUnreachable;
  } else if (!send_all(socket, &hello, sizeof hello) ||
             !receive_welcome(socket, welcome, descriptor)) {
    error = "the node at shm://" + name + " did not answer the attachment";
    status = Status::kNodeUnreachable;
  } else if (welcome.accepted == 0 || descriptor < 0) {
    welcome.error.back() = '\0';
    error = welcome.error.data();
  } else if (map_region(descriptor, welcome.region_bytes, mapping, error)) {
    status = Status::kOk;
  }
  if (descriptor >= 0) ::close(descriptor);
  if (status != Status::kOk) {
    ::close(socket);
    return status;
  }
  mapping.socket = socket;
  mapping.registration = welcome.registration;
  return Status::kOk;
}

void shm_detach(ShmMapping& mapping) {
  // The mapping goes first: the hang-up tells the node that nothing of ours can execute any more.
  if (mapping.region != nullptr) ::munmap(mapping.region, mapping.region_bytes);
  if (mapping.socket >= 0) {
    // One byte of farewell tells a client that left from one that died.
    [[maybe_unused]] const ssize_t sent = ::send(mapping.socket, "", 1, MSG_NOSIGNAL);
    ::close(mapping.socket);
  }
  mapping = ShmMapping{};
}

}  // namespace kvstore
