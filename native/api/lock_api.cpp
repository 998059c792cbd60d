// The C ABI of locks.

#include <algorithm>
#include <new>

#include "api/guard.hpp"
#include "api/kvstore.h"
#include "store/hold.hpp"

using namespace kvstore;

namespace {

// A kv_lock has a LockHold in it from its acquisition to its release. The sleeper stands beside it,
// since whoever cancels does not know how far the other thread has come.
struct Storage {
  uint64_t in_use;
  Sleeper sleeper;
  alignas(LockHold) unsigned char hold[sizeof(LockHold)];
};
static_assert(sizeof(Storage) <= sizeof(kv_lock) && alignof(Storage) <= alignof(kv_lock));

Storage& storage_of(const kv_lock* lock) {
  return *reinterpret_cast<Storage*>(const_cast<uint64_t*>(lock->opaque));
}
LockHold& hold_of(Storage& storage) {
  return *std::launder(reinterpret_cast<LockHold*>(storage.hold));
}
void end(Storage& storage) {
  hold_of(storage).~LockHold();
  storage.in_use = 0;
}

}  // namespace

extern "C" {

int kv_lock_acquire(kv_client* client, kv_lock* lock, const void* name, uint64_t name_bytes,
                    uint64_t owner, uint64_t timeout_ns, uint64_t lease_ns, uint32_t flags) {
  if (name_bytes == 0 || name_bytes > KV_KEY_BYTES_MAX) return KV_KEY_INVALID;
  Storage& storage = storage_of(lock);
  if (storage.in_use == 0) {
    new (storage.hold) LockHold(client_of(client), &storage.sleeper);
    storage.in_use = 1;
  }
  LockHold& hold = hold_of(storage);
  if (hold.stage() == LockHold::Stage::kHeld) return KV_WOULD_DEADLOCK;
  const uint64_t now_ns = monotonic_ns();
  const uint64_t deadline_ns = timeout_ns > UINT64_MAX - now_ns ? UINT64_MAX : now_ns + timeout_ns;
  const bool may_block = (flags & KV_LOCK_INLINE) == 0;
  Status status = Status::kPending;
  if (hold.stage() == LockHold::Stage::kFree) {
    const LockHold::Wish wish{make_lock_name(name, name_bytes), owner,
                              (flags & KV_LOCK_SHARED) == 0, (flags & KV_LOCK_IF_FREE) != 0,
                              lease_ns};
    status = hold.begin(wish, deadline_ns, may_block);
  }
  if (status == Status::kPending && may_block) status = hold.wait(deadline_ns);
  if (status != Status::kOk && status != Status::kPending) end(storage);
  return int(status);
}

int kv_lock_release(kv_lock* lock, uint32_t flags) {
  Storage& storage = storage_of(lock);
  if (storage.in_use == 0 || hold_of(storage).stage() != LockHold::Stage::kHeld) return KV_INVALID;
  const Status status = hold_of(storage).release((flags & KV_LOCK_INLINE) == 0);
  end(storage);
  return int(status);
}

void kv_lock_cancel(kv_lock* lock) {
  storage_of(lock).sleeper.cancel();
}

kv_fence kv_lock_fence(const kv_lock* lock) {
  Storage& storage = storage_of(lock);
  if (storage.in_use == 0) return {};
  const layout::Fence fence = hold_of(storage).fence();
  return {fence.lock, fence.token};
}

int kv_lock_is_lost(const kv_lock* lock) {
  Storage& storage = storage_of(lock);
  return storage.in_use != 0 && hold_of(storage).is_lost() ? 1 : 0;
}

uint64_t kv_lock_order(kv_client* client, const void* name, uint64_t name_bytes) {
  const LockName hashed = make_lock_name(name, name_bytes);
  return uint64_t{client_of(client).member_of(hashed.low)} << 54 | hashed.order() >> 10;
}

uint64_t kv_bench_lock_loop(kv_client* client, const void* name, uint64_t name_bytes,
                            uint64_t pairs, uint32_t* latency_ns) {
  kv_lock lock{};
  const uint64_t began_ns = monotonic_ns();
  uint64_t start_ns = began_ns;
  for (uint64_t i = 0; i < pairs; ++i) {
    if (kv_lock_acquire(client, &lock, name, name_bytes, 1, 10 * kSecond, 0, 0) != KV_OK) return 0;
    if (kv_lock_release(&lock, 0) != KV_OK) return 0;
    if (latency_ns == nullptr) continue;
    const uint64_t end_ns = monotonic_ns();
    latency_ns[i] = uint32_t(end_ns - start_ns);
    start_ns = end_ns;
  }
  return std::max<uint64_t>(monotonic_ns() - began_ns, 1);
}

void kv_lock_forget(kv_lock* lock) {
  Storage& storage = storage_of(lock);
  if (storage.in_use == 0) return;
  hold_of(storage).forget();
  end(storage);
}

}  // extern "C"
