// The sending half of a client connection: turns queued batches into gather lists.
//
// Heads of requests and small WRITE payloads are copied into an arena, larger payloads are sent
// from where they lie. One gather list takes in as many batches as fit, so many batches cost one
// system call. It is bounded in bytes, so that a payload whose CRC32C is wanted is still in the
// cache when the kernel copies it. Nothing is allocated after construction.

#pragma once

#include <sys/uio.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "fabric/cpu/frame.hpp"
#include "fabric/fabric.h"

namespace kvstore {

class RequestGather {
 public:
  RequestGather();

  // Appends to the queue. `well_formed` is false for a batch that the agent will refuse: it goes
  // out without payloads, whose lengths cannot be trusted, and nothing is encoded after it.
  void enqueue(kv_batch* batch, bool well_formed);

  // Encodes up to the limits if the list is empty. Returns whether there is something to send.
  bool fill();

  const iovec* vectors() const { return &vectors_[first_vector_]; }
  size_t vector_count() const { return vector_count_ - first_vector_; }
  size_t unsent_bytes() const { return unsent_bytes_; }

  // The first `bytes` bytes of the list have been handed to the kernel.
  void sent(size_t bytes);

  // Whether the whole request of a queued batch has been handed to the kernel.
  bool fully_sent(const kv_batch& batch) const;

  bool idle() const { return unsent_bytes_ == 0 && batch_ == nullptr; }

 private:
  bool encode_head();
  bool encode_payload(const kv_op& op);
  void begin_payload();
  void append_arena(const void* bytes, size_t count);
  uint8_t* extend_arena(size_t count);
  void append_vector(void* base, size_t bytes);
  bool arena_has(size_t bytes) const;
  void finish_batch();

  kv_batch* batch_ = nullptr;  // the one being encoded, the rest follow by `next`
  kv_batch* ill_formed_ = nullptr;
  bool head_done_ = false;
  bool closed_ = false;  // an ill-formed batch has been encoded
  uint32_t op_index_ = 0;
  uint64_t op_bytes_ = 0;

  std::unique_ptr<uint8_t[]> arena_;
  size_t arena_used_ = 0;
  static constexpr size_t kMaxVectors = 64;
  std::array<iovec, kMaxVectors> vectors_{};
  size_t first_vector_ = 0;
  size_t vector_count_ = 0;
  size_t unsent_bytes_ = 0;

  uint64_t stream_encoded_ = 0;  // bytes of the stream, ever
  uint64_t stream_sent_ = 0;
  // Where the request of a pending batch ends in the stream, by sequence.
  std::array<uint64_t, frame::kMaxOutstanding> request_end_{};
};

}  // namespace kvstore
