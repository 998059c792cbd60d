#include "node/shm_door.hpp"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/assert.hpp"
#include "coro/clock.hpp"
#include "fabric/cpu/shm_attach.hpp"

namespace kvstore {
namespace {

// A guest says hello at once: nobody else is let in meanwhile.
constexpr uint64_t kHandshakeNs = 250 * kMillisecond;
constexpr size_t kGuestsMax = layout::kClientsMax;

bool same(const std::string& secret, const ShmHello& hello) {
  if (hello.secret_bytes > kSecretBytesMax) return false;
  unsigned difference = unsigned(secret.size() ^ hello.secret_bytes);
  for (size_t i = 0; i < secret.size() && i < hello.secret.size(); ++i) {
    difference |= unsigned(uint8_t(secret[i]) ^ uint8_t(hello.secret[i]));
  }
  return difference == 0;
}

// A stale socket file of a node that was killed is taken away; one that answers is in use.
bool clear_stale(const std::string& name, const UnixAddress& address) {
  if (name.find('/') == std::string::npos) return true;
  const int probe = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const bool answers = ::connect(probe, reinterpret_cast<const sockaddr*>(address.storage.data()),
                                 address.bytes) == 0;
  ::close(probe);
  if (answers) return false;
  ::unlink(name.c_str());
  return true;
}

// Who maps the region can write all of it: only the node's own user is trusted with that.
bool is_trusted(const ucred& peer) {
  return peer.uid == ::geteuid() || peer.uid == 0;
}

std::string not_trusted() {
  return "shm is for the node's own user (uid " + std::to_string(::geteuid()) +
         "): attach over tcp";
}

bool peer_of(int socket, ucred& peer) {
  socklen_t bytes = sizeof peer;
  return ::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &bytes) == 0;
}

bool receive_hello(int socket, ShmHello& hello) {
  const uint64_t until_ns = monotonic_ns() + kHandshakeNs;
  size_t at = 0;
  while (at < sizeof hello) {
    const uint64_t now_ns = monotonic_ns();
    pollfd readable{socket, POLLIN, 0};
    const int left_ms = int((until_ns - std::min(until_ns, now_ns)) / kMillisecond);
    if (left_ms == 0 || ::poll(&readable, 1, left_ms) == 0) return false;
    const ssize_t got =
        ::recv(socket, reinterpret_cast<char*>(&hello) + at, sizeof hello - at, MSG_DONTWAIT);
    if (got == 0 || (got < 0 && errno != EAGAIN && errno != EINTR)) return false;
    if (got > 0) at += size_t(got);
  }
  return true;
}

}  // namespace

std::unique_ptr<ShmDoor> ShmDoor::open(const std::string& name, const std::string& secret,
                                       uint64_t node_id, const Region& region, Registry& registry,
                                       std::function<void(uint32_t, bool)> gone,
                                       std::string& error) {
  UnixAddress address;
  if (!unix_address(name, address, error)) return nullptr;
  if (secret.size() > kSecretBytesMax) {
    error = "the token is longer than " + std::to_string(kSecretBytesMax) + " bytes";
    return nullptr;
  }
  const bool free = clear_stale(name, address);
  const int listener = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  const sockaddr* native = reinterpret_cast<const sockaddr*>(address.storage.data());
  if (!free) errno = EADDRINUSE;
  if (!free || listener < 0 || ::bind(listener, native, address.bytes) != 0 ||
      ::listen(listener, 128) != 0) {
    error = "can't listen on shm://" + name + ": " + std::strerror(errno) +
            (errno == EADDRINUSE ? "; another node has that name, choose one with --shm" : "");
    if (listener >= 0) ::close(listener);
    return nullptr;
  }
  return std::unique_ptr<ShmDoor>(
      new ShmDoor(name, secret, node_id, region, registry, std::move(gone), listener));
}

ShmDoor::ShmDoor(std::string name, std::string secret, uint64_t node_id, const Region& region,
                 Registry& registry, std::function<void(uint32_t, bool)> gone, int listener)
    : name_(std::move(name)),
      secret_(std::move(secret)),
      node_id_(node_id),
      region_(region),
      registry_(registry),
      gone_(std::move(gone)),
      listener_(listener),
      wake_descriptor_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  KV_ASSERT(wake_descriptor_ >= 0);
  thread_ = std::thread([this] { loop(); });
}

ShmDoor::~ShmDoor() {
  stopping_.store(true);
  wake();
  thread_.join();
  for (const Guest& guest : guests_) ::close(guest.socket);
  ::close(listener_);
  ::close(wake_descriptor_);
  if (name_.find('/') != std::string::npos) ::unlink(name_.c_str());
}

void ShmDoor::wake() {
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = ::write(wake_descriptor_, &one, sizeof one);
}

void ShmDoor::turn_out() {
  draining_.store(true);
  turning_out_.store(true);
  wake();
}

bool ShmDoor::hang_up(const Guest& guest) {
  char farewell = 0;
  const bool left = ::recv(guest.socket, &farewell, 1, MSG_DONTWAIT) == 1;
  ::close(guest.socket);
  registry_.disconnected(guest.registration);
  return left;
}

void ShmDoor::hang_up_on_all() {
  for (const Guest& guest : guests_) {
    if (hang_up(guest)) gone_(guest.registration, true);
  }
  guests_.clear();
}

std::string ShmDoor::judge(int socket, const ShmHello& hello, uint32_t& registration,
                           int& process) {
  ucred peer{};
  if (!peer_of(socket, peer)) return "the node can't tell who you are";
  process = peer.pid;
  if (hello.magic != kShmMagic || hello.version != kShmVersion) {
    return "the node speaks another version of the shm protocol: use the same kvstore version";
  }
  if (!is_trusted(peer)) return not_trusted();
  if (hello.node_id != 0 && hello.node_id != node_id_) {
    return "another node than the one wanted answers under this shm name";
  }
  if (draining_.load()) return "the node is draining and takes no new clients";
  if (guests_.size() >= kGuestsMax) return "the node has no room for more clients";
  if (hello.registration != 0) {
    if (!registry_.authenticate(hello.registration, hello.token)) {
      return "the admission is not valid (any more): attach again";
    }
    registration = hello.registration;
    return "";
  }
  if (!secret_.empty() && !same(secret_, hello)) return "wrong token";
  Token token;
  registration = registry_.admit("pid " + std::to_string(peer.pid), KV_FABRIC_SHM, token);
  return registration == 0 ? "the node has no room for more clients" : "";
}

void ShmDoor::answer(int socket, const std::string& refusal, uint32_t registration) {
  ShmWelcome welcome;
  welcome.accepted = refusal.empty() ? 1 : 0;
  welcome.registration = registration;
  welcome.region_bytes = region_.bytes();
  std::strncpy(welcome.error.data(), refusal.c_str(), welcome.error.size() - 1);
  iovec part{&welcome, sizeof welcome};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  if (refusal.empty()) {
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    const int descriptor = region_.descriptor();
    std::memcpy(CMSG_DATA(header), &descriptor, sizeof descriptor);
  }
  [[maybe_unused]] const ssize_t sent = ::sendmsg(socket, &message, MSG_NOSIGNAL);
}

void ShmDoor::take_in(int socket) {
  set_socket_timeout(socket, kHandshakeNs);
  ShmHello hello;
  ucred peer{};
  const bool trusted = peer_of(socket, peer) && is_trusted(peer);
  if (!trusted) answer(socket, not_trusted(), 0);
  if (!trusted || !receive_hello(socket, hello)) {
    refused_.fetch_add(1, std::memory_order_relaxed);
    ::close(socket);
    return;
  }
  uint32_t registration = 0;
  int process = 0;
  const std::string refusal = judge(socket, hello, registration, process);
  if (refusal.empty()) {
    const int process_descriptor = int(::syscall(SYS_pidfd_open, process, 0));
    if (!registry_.connected(registration, KV_FABRIC_SHM, process, process_descriptor)) {
      if (process_descriptor >= 0) ::close(process_descriptor);
      refused_.fetch_add(1, std::memory_order_relaxed);
      answer(socket, "the admission is not valid any more: attach again", 0);
      ::close(socket);
      return;
    }
    guests_.push_back({socket, registration});
    answer(socket, refusal, registration);
    return;
  }
  refused_.fetch_add(1, std::memory_order_relaxed);
  answer(socket, refusal, 0);
  ::close(socket);
}

void ShmDoor::loop() {
  for (;;) {
    std::vector<pollfd> descriptors{{wake_descriptor_, POLLIN, 0}, {listener_, POLLIN, 0}};
    for (const Guest& guest : guests_) descriptors.push_back({guest.socket, POLLIN, 0});
    if (::poll(descriptors.data(), descriptors.size(), -1) < 0) continue;
    if (stopping_.load()) return;
    uint64_t ignored = 0;
    [[maybe_unused]] const ssize_t got = ::read(wake_descriptor_, &ignored, sizeof ignored);
    if (turning_out_.load() && !guests_.empty()) {
      hang_up_on_all();
      continue;
    }
    // Nothing is expected from a guest: whatever happens on its socket is the end of it.
    for (size_t i = guests_.size(); i-- > 0;) {
      if (descriptors[i + 2].revents == 0) continue;
      const Guest guest = guests_[i];
      guests_.erase(guests_.begin() + ptrdiff_t(i));
      gone_(guest.registration, hang_up(guest));
    }
    if (descriptors[1].revents == 0) continue;
    const int socket = ::accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
    if (socket >= 0) take_in(socket);
  }
}

}  // namespace kvstore
