// Throughput of CRC32C alone and fused with a copy, beside memcpy and memcpy followed by a pass.
//
// Usage: crc32c_bench [implementation]. Source and destination begin at odd offsets, as values do,
// and their pages are warm. Each figure is the median of interleaved rounds, in GB/s (1e9 bytes of
// payload a second); the last columns are the nanoseconds and the ratios of the fused copy.

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <string_view>

#include "base/assert.hpp"
#include "base/crc32c.hpp"
#include "base/crc32c_implementations.hpp"

namespace {

constexpr size_t kRounds = 15;
constexpr size_t kBytesARound = size_t{64} << 20;
constexpr size_t kCallsARoundMax = 200'000;
constexpr size_t kLengthMax = size_t{16} << 20;
constexpr size_t kSourceOffset = 29;
constexpr size_t kDestinationOffset = 43;

volatile uint32_t result_sink;

struct Buffers {
  uint8_t* destination;
  const uint8_t* source;
};

uint8_t* map_warm_pages(size_t bytes, uint8_t fill) {
  void* pages = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  KV_ASSERT(pages != MAP_FAILED);
  std::memset(pages, fill, bytes);
  return static_cast<uint8_t*>(pages);
}

// Keeps the compiler from dropping or merging the calls of a round.
void clobber_memory() {
  asm volatile("" ::: "memory");
}

template <typename Operation>
double seconds_per_call(size_t calls, Operation operation) {
  const auto begin = std::chrono::steady_clock::now();
  for (size_t i = 0; i < calls; ++i) {
    operation();
    clobber_memory();
  }
  const auto end = std::chrono::steady_clock::now();
  return std::chrono::duration<double>(end - begin).count() / static_cast<double>(calls);
}

using Seconds = std::array<double, kRounds>;

double median(Seconds seconds) {
  std::nth_element(seconds.begin(), seconds.begin() + kRounds / 2, seconds.end());
  return seconds[kRounds / 2];
}

void measure(const kvstore::Crc32cImplementation& implementation, Buffers buffers, size_t bytes) {
  const size_t calls = std::clamp<size_t>(kBytesARound / bytes, 1, kCallsARoundMax);
  const auto copy = [&] { std::memcpy(buffers.destination, buffers.source, bytes); };
  const auto checksum = [&] { result_sink = implementation.update(0, buffers.source, bytes); };
  const auto copy_then_checksum = [&] {
    std::memcpy(buffers.destination, buffers.source, bytes);
    result_sink = implementation.update(0, buffers.destination, bytes);
  };
  const auto fused = [&] {
    result_sink = implementation.copy_update(0, buffers.destination, buffers.source, bytes);
  };
  Seconds copy_s, checksum_s, both_s, fused_s;
  for (size_t round = 0; round < kRounds; ++round) {
    copy_s[round] = seconds_per_call(calls, copy);
    checksum_s[round] = seconds_per_call(calls, checksum);
    both_s[round] = seconds_per_call(calls, copy_then_checksum);
    fused_s[round] = seconds_per_call(calls, fused);
  }
  const auto gigabytes_per_second = [&](const Seconds& seconds) {
    return static_cast<double>(bytes) / median(seconds) / 1e9;
  };
  std::printf("%10zu %9.2f %9.2f %11.2f %9.2f %12.1f %13.2f %10.2f\n", bytes,
              gigabytes_per_second(copy_s), gigabytes_per_second(checksum_s),
              gigabytes_per_second(both_s), gigabytes_per_second(fused_s), median(fused_s) * 1e9,
              median(both_s) / median(fused_s), median(copy_s) / median(fused_s));
}

}  // namespace

int main(int argument_count, char** arguments) {
  const std::string_view wanted =
      argument_count > 1 ? arguments[1] : kvstore::crc32c_implementation();
  const Buffers buffers{map_warm_pages(kLengthMax + 4096, 1) + kDestinationOffset,
                        map_warm_pages(kLengthMax + 4096, 2) + kSourceOffset};
  for (const kvstore::Crc32cImplementation* implementation : kvstore::crc32c_implementations()) {
    if (implementation->name != wanted || !implementation->supported()) continue;
    std::printf("%s\n%10s %9s %9s %11s %9s %12s %13s %10s\n", implementation->name, "bytes",
                "memcpy", "crc", "memcpy+crc", "fused", "fused_ns", "x memcpy+crc", "x memcpy");
    for (size_t bytes = 64; bytes <= kLengthMax; bytes *= 2) {
      measure(*implementation, buffers, bytes);
    }
    return 0;
  }
  std::fprintf(stderr, "no supported implementation is named so; there are:\n");
  for (const kvstore::Crc32cImplementation* implementation : kvstore::crc32c_implementations()) {
    if (implementation->supported()) std::fprintf(stderr, "  %s\n", implementation->name);
  }
  return 2;
}
