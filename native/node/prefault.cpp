#include "node/prefault.hpp"

#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

namespace kvstore {
namespace {

constexpr uint64_t kSliceBytes = uint64_t{2} << 20;
constexpr int kLeastNice = 19;  // whoever has work to do goes first
// Of Linux 5.14; older headers lack it.
constexpr int kPopulateWrite = 23;

}  // namespace

Prefault::Prefault(std::shared_ptr<Region> region)
    : region_(std::move(region)), thread_([this] { run(); }) {}

Prefault::~Prefault() {
  stopping_.store(true, std::memory_order_relaxed);
  thread_.join();
}

// It writes nothing: pages are made present with what they hold. A kernel that can't do it leaves
// them to whoever touches them first.
void Prefault::run() {
  ::setpriority(PRIO_PROCESS, id_t(::syscall(SYS_gettid)), kLeastNice);
  for (uint64_t offset = 0; offset < region_->bytes(); offset += kSliceBytes) {
    if (stopping_.load(std::memory_order_relaxed)) return;
    const uint64_t bytes = std::min(kSliceBytes, region_->bytes() - offset);
    if (::madvise(region_->data() + offset, bytes, kPopulateWrite) != 0) return;
  }
}

}  // namespace kvstore
