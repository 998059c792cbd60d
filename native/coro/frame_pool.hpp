// Memory for coroutine frames. A get is two or three frames, and malloc would cost as much as the
// rest of it, so frames come from per-thread free lists by size. Under the sanitizers the pool is
// off, so that a use after the end of a frame is seen.

#pragma once

#include <cstddef>
#include <cstdlib>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define KV_POOL_FRAMES 0
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define KV_POOL_FRAMES 0
#endif
#endif
#ifndef KV_POOL_FRAMES
#define KV_POOL_FRAMES 1
#endif

namespace kvstore {

class FramePool {
 public:
  static void* allocate(size_t bytes) {
    const size_t bin = (bytes + kGrain - 1) / kGrain;
#if KV_POOL_FRAMES
    if (bin < kBins && lists_.heads[bin] != nullptr) {
      Node* node = lists_.heads[bin];
      lists_.heads[bin] = node->next;
      --lists_.counts[bin];
      return node;
    }
#endif
    void* memory = std::malloc(bin * kGrain);
    if (memory == nullptr) std::abort();  // a few hundred bytes: nothing sensible is left to do
    return memory;
  }

  static void release(void* memory, size_t bytes) noexcept {
#if KV_POOL_FRAMES
    const size_t bin = (bytes + kGrain - 1) / kGrain;
    if (bin < kBins && lists_.counts[bin] < kFramesPerBinMax) {
      if (!drained_at_exit_) drained_at_exit_ = drain_.armed = true;
      Node* node = static_cast<Node*>(memory);
      node->next = lists_.heads[bin];
      lists_.heads[bin] = node;
      ++lists_.counts[bin];
      return;
    }
#else
    (void)bytes;
#endif
    std::free(memory);
  }

 private:
  static constexpr size_t kGrain = 64;
  static constexpr size_t kBins = 80;  // up to 5 KiB
  static constexpr unsigned kFramesPerBinMax = 256;

  struct Node {
    Node* next;
  };
  // Trivial, so that the hot path has no guard to check; Drain frees the lists with the thread.
  struct Lists {
    Node* heads[kBins];
    unsigned counts[kBins];
  };
  struct Drain {
    bool armed;
    ~Drain() {
      for (Node*& head : lists_.heads) {
        while (head != nullptr) {
          Node* next = head->next;
          std::free(head);
          head = next;
        }
      }
      for (unsigned& count : lists_.counts) count = kFramesPerBinMax;  // what comes later is freed
    }
  };
  static constinit inline thread_local Lists lists_ = {};
  static constinit inline thread_local bool drained_at_exit_ = false;
  static inline thread_local Drain drain_ = {false};
};

// Scratch memory for one step of a protocol, from the same lists.
class Scratch {
 public:
  explicit Scratch(size_t bytes)
      : data_(static_cast<unsigned char*>(FramePool::allocate(bytes))), bytes_(bytes) {}
  ~Scratch() { FramePool::release(data_, bytes_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  unsigned char* data() const { return data_; }
  size_t size() const { return bytes_; }

 private:
  unsigned char* data_;
  size_t bytes_;
};

}  // namespace kvstore
