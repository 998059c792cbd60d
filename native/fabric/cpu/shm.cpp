#include "fabric/cpu/shm.hpp"

#include <linux/futex.h>

#include "base/crc32c.hpp"

namespace kvstore {
namespace {

// Copying twice through the cache costs less than reading a second time up to about here.
constexpr uint32_t kEagerReadBytes = 4096;

struct ShmConnection : kv_connection {
  uint8_t* region;
  const std::atomic<uint32_t>* region_dead;
  const uint32_t* holder;
};

// A futex word whose holder has not died and has not let go.
bool is_held(const uint32_t* word) {
  const uint32_t seen = __atomic_load_n(word, __ATOMIC_ACQUIRE);
  return (seen & FUTEX_TID_MASK) != 0 && (seen & FUTEX_OWNER_DIED) == 0;
}

bool is_over(const ShmConnection& connection) {
  return connection.region_dead->load(std::memory_order_acquire) != 0 ||
         (connection.holder != nullptr && !is_held(connection.holder));
}

bool acceptable(const ShmConnection& connection, const kv_op& op) {
  if (op.length == 0 || op.offset > connection.region_bytes ||
      op.length > connection.region_bytes - op.offset) {
    return false;
  }
  const bool atomic = op.kind == KV_OP_CAS || op.kind == KV_OP_FAA;
  if (atomic) return op.length == 8 && op.offset % 8 == 0;
  return op.kind == KV_OP_READ || op.kind == KV_OP_WRITE;
}

// Orders a copy of many words against the operations after and before it. Processors that keep
// loads and stores in order need no instruction for it, only a compiler that leaves them in order.
void order_copy() {
#if defined(__aarch64__)
  asm volatile("dmb ish" ::: "memory");
#else
  asm volatile("" ::: "memory");
#endif
}

bool is_word(const kv_op& op) {
  return op.length == 8 && op.offset % 8 == 0;
}

void execute_read(const uint8_t* at, kv_op& op) {
  if ((op.flags & KV_OP_CRC32C) != 0) {
    op.result = crc32c_copy(uint32_t(op.operand), op.local, at, op.length);
    order_copy();
  } else if (is_word(op)) {
    const uint64_t word = __atomic_load_n(reinterpret_cast<const uint64_t*>(at), __ATOMIC_ACQUIRE);
    __builtin_memcpy(op.local, &word, 8);
  } else {
    region_copy(op.local, at, op.length);
    order_copy();
  }
}

void execute_write(uint8_t* at, kv_op& op) {
  if ((op.flags & KV_OP_CRC32C) != 0) {
    order_copy();
    op.result = crc32c_copy(uint32_t(op.operand), at, op.local, op.length);
  } else if (is_word(op)) {
    uint64_t word;
    __builtin_memcpy(&word, op.local, 8);
    __atomic_store_n(reinterpret_cast<uint64_t*>(at), word, __ATOMIC_RELEASE);
  } else {
    order_copy();
    region_copy(at, op.local, op.length);
  }
}

void execute(uint8_t* region, kv_op& op) {
  uint8_t* at = region + op.offset;
  uint64_t* word = reinterpret_cast<uint64_t*>(at);
  switch (op.kind) {
    case KV_OP_READ:
      execute_read(at, op);
      break;
    case KV_OP_WRITE:
      execute_write(at, op);
      break;
    case KV_OP_CAS: {
      uint64_t seen = op.operand;
      __atomic_compare_exchange_n(word, &seen, op.desire, false, __ATOMIC_SEQ_CST,
                                  __ATOMIC_SEQ_CST);
      op.result = seen;
      order_copy();
      break;
    }
    default:
      op.result = __atomic_fetch_add(word, op.operand, __ATOMIC_SEQ_CST);
      order_copy();
  }
}

uint32_t shm_post(kv_connection* base, kv_batch* batch) {
  ShmConnection& connection = *static_cast<ShmConnection*>(base);
  if (connection.broken || is_over(connection)) {
    connection.broken = 1;
    return KV_FABRIC_DOWN;
  }
  for (uint32_t i = 0; i < batch->op_count; ++i) {
    if (!acceptable(connection, batch->ops[i])) {
      connection.broken = 1;
      return KV_FABRIC_REFUSED;
    }
    execute(connection.region, batch->ops[i]);
  }
  if (is_over(connection)) {
    connection.broken = 1;
    return KV_FABRIC_LOST;
  }
  return KV_FABRIC_OK;
}

uint32_t shm_poll(kv_connection*) {
  return 0;
}
int shm_wait_descriptor(kv_connection*, short*) {
  return -1;
}
void shm_close(kv_connection* connection) {
  connection->broken = 1;
}
void shm_destroy(kv_connection* connection) {
  delete static_cast<ShmConnection*>(connection);
}

constexpr kv_connection_ops kShmOps = {KV_FABRIC_ABI_VERSION, shm_post,  shm_poll,
                                       shm_wait_descriptor,   shm_close, shm_destroy};

}  // namespace

kv_connection* shm_connection(void* region, uint64_t region_bytes,
                              const std::atomic<uint32_t>* region_dead, const uint32_t* holder) {
  ShmConnection* connection = new ShmConnection{};
  connection->ops = &kShmOps;
  connection->region_bytes = region_bytes;
  connection->max_batch_ops = UINT32_MAX;
  connection->max_outstanding = UINT32_MAX;
  connection->eager_read_bytes = kEagerReadBytes;
  connection->completes_inline = 1;
  connection->region = static_cast<uint8_t*>(region);
  connection->mapped_region = connection->region;
  connection->region_dead = region_dead;
  connection->holder = holder;
  return connection;
}

}  // namespace kvstore
