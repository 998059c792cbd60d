// A table of entries that is read at random places, all of them zero at first. Where it fills huge
// pages it lies in such, if the system gives any: a processor remembers where so many pages are,
// and looks up that of a small one anew at almost each read.

#pragma once

#include <sys/mman.h>

#include <cstdint>
#include <new>
#include <type_traits>

namespace kvstore {

// Memory of its own, of zeros, taken as it comes to be used: in pages of either size.
class ZeroMemory {
 public:
  // Throws std::bad_alloc.
  explicit ZeroMemory(uint64_t bytes)
      : mapped_bytes_(bytes < kHugePageBytes ? bytes : bytes + kHugePageBytes),
        mapped_(::mmap(nullptr, mapped_bytes_, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)),
        data_(mapped_) {
    if (mapped_ == MAP_FAILED) throw std::bad_alloc();
    if (bytes < kHugePageBytes) return;
    data_ = reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(mapped_) + kHugePageBytes - 1) &
                                    ~(kHugePageBytes - 1));
    // Small ones do as well.
    ::madvise(data_, bytes, MADV_HUGEPAGE);
  }
  ~ZeroMemory() { ::munmap(mapped_, mapped_bytes_); }
  ZeroMemory(const ZeroMemory&) = delete;
  ZeroMemory& operator=(const ZeroMemory&) = delete;
  void* data() const { return data_; }

 private:
  static constexpr uint64_t kHugePageBytes = 2 << 20;

  uint64_t mapped_bytes_;
  void* mapped_;
  void* data_;
};

template <typename T>
class Table {
 public:
  explicit Table(uint64_t size) : memory_(size * sizeof(T)) {}
  T& operator[](uint64_t number) const { return static_cast<T*>(memory_.data())[number]; }

 private:
  // What is all zero is a T, and needs no end.
  static_assert(std::is_trivially_destructible_v<T> && std::is_standard_layout_v<T>);

  ZeroMemory memory_;
};

}  // namespace kvstore
