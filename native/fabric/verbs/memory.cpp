// Registration of memory. What is registered stays in memory, and its pages count as locked: there
// are limits, and whoever meets one is told which, and how it is raised.

#include <sys/resource.h>

#include <cerrno>
#include <cstring>
#include <mutex>

#include "fabric/verbs/port.hpp"

namespace kvstore::verbs {
namespace {

std::string in_mebibytes(uint64_t bytes) {
  return std::to_string(bytes >> 20) + " MiB";
}

// Why a registration failed with `code`.
std::string refusal(uint64_t bytes, int code) {
  std::string line = "can't register " + in_mebibytes(bytes) + " for RDMA: ";
  rlimit limit{};
  const bool limited = ::getrlimit(RLIMIT_MEMLOCK, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY;
  if (code == ENOMEM && limited && limit.rlim_cur < bytes) {
    return line + "the limit of locked memory is " + std::to_string(limit.rlim_cur >> 10) +
           " KiB; raise it with `ulimit -l unlimited`, LimitMEMLOCK=infinity in the service, or " +
           "--ulimit memlock=-1 of a container";
  }
  return line + std::strerror(code);
}

}  // namespace

MemoryPtr register_memory(ibv_pd* domain, const ibv_device_attr& limits, void* memory,
                          uint64_t bytes, int access, std::string& error) {
  if (bytes > limits.max_mr_size) {
    error = "can't register " + in_mebibytes(bytes) + " for RDMA: the device takes at most " +
            in_mebibytes(limits.max_mr_size) + " at once; start the node with a smaller --capacity";
    return nullptr;
  }
  MemoryPtr registered(ibv_reg_mr(domain, memory, bytes, access));
  if (!registered) error = refusal(bytes, errno);
  return registered;
}

bool LocalMemory::add(ibv_pd* domain, const ibv_device_attr& limits, void* memory, uint64_t bytes,
                      std::string& error) {
  MemoryPtr registered =
      register_memory(domain, limits, memory, bytes, IBV_ACCESS_LOCAL_WRITE, error);
  if (!registered) return false;
  const std::unique_lock lock(mutex_);
  registered_[reinterpret_cast<uintptr_t>(memory)] = std::move(registered);
  return true;
}

void LocalMemory::remove(void* memory) {
  const std::unique_lock lock(mutex_);
  registered_.erase(reinterpret_cast<uintptr_t>(memory));
}

bool LocalMemory::find(const void* memory, uint64_t bytes, uint32_t& key) const {
  const uintptr_t begin = reinterpret_cast<uintptr_t>(memory);
  const std::shared_lock lock(mutex_);
  auto next = registered_.upper_bound(begin);
  if (next == registered_.begin()) return false;
  const ibv_mr& candidate = *std::prev(next)->second;
  const uint64_t before = begin - reinterpret_cast<uintptr_t>(candidate.addr);
  if (before > candidate.length || bytes > candidate.length - before) return false;
  key = candidate.lkey;
  return true;
}

}  // namespace kvstore::verbs
