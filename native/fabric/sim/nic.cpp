#include "fabric/sim/nic.hpp"

#include <algorithm>

#include "fabric/fabric.h"

namespace kvstore::sim {
namespace {

constexpr uint64_t kSecondPs = 1'000'000'000'000;
constexpr uint64_t kAddressLocks = 4096;

uint64_t share_ps(uint64_t amount, uint64_t per_s) {
  return per_s == 0 ? 0 : uint64_t(static_cast<unsigned __int128>(amount) * kSecondPs / per_s);
}

}  // namespace

uint64_t Nic::service_ps(uint32_t kind, uint64_t bytes) const {
  switch (kind) {
    case KV_OP_READ:
      return std::max(share_ps(1, model_.reads_per_s), share_ps(bytes, model_.bytes_per_s));
    case KV_OP_WRITE:
      return std::max(share_ps(1, model_.writes_per_s), share_ps(bytes, model_.bytes_per_s));
    default:
      return share_ps(1, model_.atomics_per_s);
  }
}

// The end of the atomic's turn at its address.
uint64_t Nic::wait_for_address(uint64_t offset, uint64_t ready_ps) {
  if (address_free_ps_.empty()) address_free_ps_.assign(kAddressLocks, 0);
  uint64_t& free_ps = address_free_ps_[offset / 8 % kAddressLocks];
  const uint64_t begin_ps = std::max(ready_ps, free_ps);
  free_ps = begin_ps + model_.atomic_ns * 1000;
  if (model_.head_of_line) {
    busy_ps_ += begin_ps - ready_ps;
    blocked_ps_ += begin_ps - ready_ps;
    free_ps_ = begin_ps;
  }
  return free_ps;
}

uint64_t Nic::admit(uint32_t kind, uint64_t offset, uint64_t bytes, uint64_t now_ns) {
  const uint64_t service = service_ps(kind, bytes);
  free_ps_ = std::max(free_ps_, now_ns * 1000) + service;
  busy_ps_ += service;
  uint64_t end_ps = free_ps_;
  const bool atomic = kind != KV_OP_READ && kind != KV_OP_WRITE;
  if (atomic && model_.atomic_ns > 0) end_ps = wait_for_address(offset, end_ps);
  return end_ps / 1000 + model_.memory_ns;
}

}  // namespace kvstore::sim
