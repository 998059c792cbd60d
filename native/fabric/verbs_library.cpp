#include "fabric/verbs_library.hpp"

#include <arpa/inet.h>
#include <dlfcn.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <mutex>

namespace kvstore {
namespace {

constexpr char kFileName[] = "_verbs.so";
// Where builds keep the library that is to be tested.
constexpr char kPathVariable[] = "KVSTORE_VERBS_LIBRARY";
constexpr uint8_t kMappedPrefix[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
constexpr uint16_t kRocePort = 4791;

// Beside the module that this code is part of.
std::string library_path() {
  if (const char* given = std::getenv(kPathVariable)) return given;
  Dl_info here{};
  static const char anchor = 0;
  if (::dladdr(&anchor, &here) == 0 || here.dli_fname == nullptr) return kFileName;
  const std::string module = here.dli_fname;
  return module.substr(0, module.rfind('/') + 1) + kFileName;
}

const kv_verbs_api* load(std::string& error) {
  const std::string path = library_path();
  if (::access(path.c_str(), R_OK) != 0) {
    error =
        "this installation has no verbs fabric: it was built without infiniband/verbs.h "
        "(Debian: libibverbs-dev)";
    return nullptr;
  }
  void* const library = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    error = std::string("the verbs fabric can't be loaded: ") + ::dlerror() +
            "; sudo apt-get install libibverbs1 ibverbs-providers";
    return nullptr;
  }
  const auto open =
      reinterpret_cast<const kv_verbs_api* (*)()>(::dlsym(library, KV_VERBS_OPEN_SYMBOL));
  const kv_verbs_api* const table = open == nullptr ? nullptr : open();
  if (table == nullptr || table->abi_version != KV_VERBS_ABI_VERSION) {
    error = path + " is of another version of kvstore: install anew";
    return nullptr;
  }
  return table;
}

bool is_mapped_ipv4(const RdmaAddress& gid) {
  return std::equal(std::begin(kMappedPrefix), std::end(kMappedPrefix), gid.begin());
}

RdmaAddress from_ipv4(const in_addr& address) {
  RdmaAddress gid;
  std::copy(std::begin(kMappedPrefix), std::end(kMappedPrefix), gid.begin());
  std::copy_n(reinterpret_cast<const uint8_t*>(&address), 4, gid.begin() + 12);
  return gid;
}

RdmaAddress from_ipv6(const in6_addr& address) {
  RdmaAddress gid;
  std::copy_n(address.s6_addr, gid.size(), gid.begin());
  return gid;
}

}  // namespace

const kv_verbs_api* verbs_library(std::string& error) {
  static std::mutex mutex;
  static const kv_verbs_api* loaded = nullptr;
  const std::lock_guard lock(mutex);
  if (loaded == nullptr) loaded = load(error);
  return loaded;
}

std::vector<RdmaAddress> rdma_addresses(const uint8_t* gids, uint32_t count) {
  std::vector<RdmaAddress> addresses(count);
  for (RdmaAddress& address : addresses) {
    std::copy_n(gids, address.size(), address.begin());
    gids += address.size();
  }
  return addresses;
}

std::vector<std::string> device_names(const std::string& list) {
  std::vector<std::string> names;
  for (size_t begin = 0; begin < list.size();) {
    const size_t end = std::min(list.find(',', begin), list.size());
    if (end > begin) names.push_back(list.substr(begin, end - begin));
    begin = end + 1;
  }
  return names;
}

bool rdma_address(const std::string& text, RdmaAddress& gid) {
  in_addr four{};
  in6_addr six{};
  if (::inet_pton(AF_INET, text.c_str(), &four) == 1) {
    gid = from_ipv4(four);
    return true;
  }
  if (::inet_pton(AF_INET6, text.c_str(), &six) == 1) {
    gid = from_ipv6(six);
    return true;
  }
  return false;
}

bool rdma_address_towards(const RdmaAddress& peer, RdmaAddress& mine) {
  sockaddr_storage address{};
  socklen_t bytes = sizeof(sockaddr_in);
  if (is_mapped_ipv4(peer)) {
    sockaddr_in& four = reinterpret_cast<sockaddr_in&>(address);
    four.sin_family = AF_INET;
    four.sin_port = htons(kRocePort);
    std::copy_n(peer.begin() + 12, 4, reinterpret_cast<uint8_t*>(&four.sin_addr));
  } else {
    sockaddr_in6& six = reinterpret_cast<sockaddr_in6&>(address);
    six.sin6_family = AF_INET6;
    six.sin6_port = htons(kRocePort);
    std::copy(peer.begin(), peer.end(), six.sin6_addr.s6_addr);
    bytes = sizeof(sockaddr_in6);
  }
  const int probe = ::socket(address.ss_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (probe < 0) return false;
  // Connecting a datagram socket sends nothing; it asks the routing table.
  const bool routed = ::connect(probe, reinterpret_cast<sockaddr*>(&address), bytes) == 0 &&
                      ::getsockname(probe, reinterpret_cast<sockaddr*>(&address), &bytes) == 0;
  ::close(probe);
  if (!routed) return false;
  mine = address.ss_family == AF_INET
             ? from_ipv4(reinterpret_cast<sockaddr_in&>(address).sin_addr)
             : from_ipv6(reinterpret_cast<sockaddr_in6&>(address).sin6_addr);
  return true;
}

void ClosePort::operator()(kv_verbs_port* port) const {
  std::string unused;
  verbs_library(unused)->close_port(port);
}

VerbsPort open_verbs_port(const std::string& device, const RdmaAddress* gid, std::string& error) {
  const kv_verbs_api* const api = verbs_library(error);
  if (api == nullptr) return nullptr;
  char line[512] = "";
  VerbsPort port(
      api->open_port(device.c_str(), gid == nullptr ? nullptr : gid->data(), line, sizeof line));
  if (!port) error = line;
  return port;
}

}  // namespace kvstore
