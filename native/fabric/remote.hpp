// The memory of one node as protocols see it: one-sided operations that are awaited.
//
//   kv_op ops[2] = {read_op(a, &x, 8), cas_op(b, expect, desire)};
//   if (co_await remote.batch(ops) != KV_FABRIC_OK) ...
//
// A Remote belongs to a lane. The array of operations and all local memory live in the awaiting
// coroutine's frame until the batch completes.

#pragma once

#include <algorithm>
#include <coroutine>
#include <cstdint>
#include <span>

#include "base/assert.hpp"
#include "base/counter.hpp"
#include "coro/executor.hpp"
#include "fabric/fabric.h"

namespace kvstore {

inline kv_op read_op(uint64_t offset, void* into, uint64_t bytes) {
  return kv_op{offset, bytes, into, 0, 0, 0, KV_OP_READ, 0};
}
inline kv_op write_op(uint64_t offset, const void* from, uint64_t bytes) {
  return kv_op{offset, bytes, const_cast<void*>(from), 0, 0, 0, KV_OP_WRITE, 0};
}
inline kv_op cas_op(uint64_t offset, uint64_t expect, uint64_t desire) {
  return kv_op{offset, 8, nullptr, expect, desire, 0, KV_OP_CAS, 0};
}
inline kv_op faa_op(uint64_t offset, uint64_t addend) {
  return kv_op{offset, 8, nullptr, addend, 0, 0, KV_OP_FAA, 0};
}
// Has the fabric return in `result` the CRC32C of the bytes as they pass, continued from `crc`.
inline kv_op with_crc(kv_op op, uint32_t crc) {
  op.flags |= KV_OP_CRC32C;
  op.operand = crc;
  return op;
}

// Verbs and round trips, counted where they are posted.
struct VerbCounts {
  Counter reads;
  Counter writes;
  Counter cas;
  Counter faa;
  Counter round_trips;
  Counter bytes_read;
  Counter bytes_written;

  void add(std::span<const kv_op> ops) {
    for (const kv_op& op : ops) {
      switch (op.kind) {
        case KV_OP_READ:
          ++reads;
          bytes_read += op.length;
          break;
        case KV_OP_WRITE:
          ++writes;
          bytes_written += op.length;
          break;
        case KV_OP_CAS:
          ++cas;
          break;
        default:
          ++faa;
      }
    }
    ++round_trips;
  }
};

class Remote {
 public:
  static constexpr unsigned kFanOut = 96;

  Remote() = default;
  Remote(const Remote&) = delete;
  Remote& operator=(const Remote&) = delete;

  // The connection is owned elsewhere; it may be replaced after it broke and nothing is pending.
  void bind(kv_connection* connection, Executor* executor) {
    KV_ASSERT(pending_ == 0);
    connection_ = connection;
    executor_ = executor;
  }
  bool bound() const { return connection_ != nullptr; }
  bool broken() const { return connection_ == nullptr || connection_->broken != 0; }
  kv_connection* connection() const { return connection_; }
  uint32_t pending() const { return pending_; }
  Executor& executor() const { return *executor_; }
  uint32_t eager_read_bytes() const { return connection_->eager_read_bytes; }
  VerbCounts& counts() { return counts_; }

  class [[nodiscard]] BatchAwaiter : private kv_batch {
   public:
    BatchAwaiter(Remote& remote, std::span<kv_op> operations) : remote_(remote) {
      ops = operations.data();
      op_count = uint32_t(operations.size());
      status = KV_FABRIC_PENDING;
      complete = &BatchAwaiter::on_complete;
      context = this;
      next = nullptr;
      sequence = 0;
    }
    bool await_ready() {
      remote_.counts_.add({ops, op_count});
      status = remote_.connection_->ops->post(remote_.connection_, this);
      if (status != KV_FABRIC_PENDING) return true;
      ++remote_.pending_;
      return false;
    }
    void await_suspend(std::coroutine_handle<> waiter) { waiter_ = waiter; }
    // A kv_fabric_status.
    uint32_t await_resume() const { return status; }

   private:
    static void on_complete(kv_batch* batch) {
      BatchAwaiter* self = static_cast<BatchAwaiter*>(batch->context);
      --self->remote_.pending_;
      self->remote_.executor_->make_ready(self->waiter_);
    }
    Remote& remote_;
    std::coroutine_handle<> waiter_;
  };

  // Leave to have up to `wanted` batches of one step under way, besides the one that every
  // operation may have: what is left of a budget, at least one. So a connection never has more
  // outstanding than it allows, whatever the operations of a lane do at once.
  class FanOut {
   public:
    FanOut(Remote& remote, unsigned wanted)
        : remote_(remote), taken_(std::min(wanted, remote.fan_out_left_)) {
      remote_.fan_out_left_ -= taken_;
    }
    ~FanOut() { remote_.fan_out_left_ += taken_; }
    FanOut(const FanOut&) = delete;
    FanOut& operator=(const FanOut&) = delete;
    unsigned width() const { return std::max(taken_, 1u); }

   private:
    Remote& remote_;
    const unsigned taken_;
  };

  // Whether a READ is a load, which `prefetch` may hasten.
  bool loads_from_memory() const {
    return connection_ != nullptr && connection_->mapped_region != nullptr;
  }
  // Hints that the bytes will be read soon. The range may be anything.
  void prefetch(uint64_t offset, uint64_t bytes) const {
    if (!loads_from_memory()) return;
    if (offset >= connection_->region_bytes) return;
    constexpr uint64_t kLineBytes = 64;
    constexpr uint64_t kPrefetchBytesMax = 2048;  // beyond that the processor has caught on
    const uint64_t end = std::min({bytes, kPrefetchBytesMax, connection_->region_bytes - offset});
    const uint8_t* at = connection_->mapped_region + offset;
    for (uint64_t line = 0; line < end; line += kLineBytes) __builtin_prefetch(at + line);
    // A function that does nothing but prefetch is one without effect to GCC, which drops its
    // calls.
    asm volatile("");
  }

  // Posts the operations as one batch: executed in order at the node, completed once.
  BatchAwaiter batch(std::span<kv_op> operations) { return BatchAwaiter(*this, operations); }

 private:
  kv_connection* connection_ = nullptr;
  Executor* executor_ = nullptr;
  uint32_t pending_ = 0;
  unsigned fan_out_left_ = kFanOut;
  VerbCounts counts_;
};

}  // namespace kvstore
