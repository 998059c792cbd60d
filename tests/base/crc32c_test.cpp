// CRC32C and region copies: every implementation that this processor supports against a bitwise
// reference, over all short lengths and all alignments.

#include "base/crc32c.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <random>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "base/crc32c_implementations.hpp"

namespace {

using kvstore::Crc32cImplementation;

constexpr uint8_t kUntouched = 0xA5;

uint32_t reference_crc32c(uint32_t crc, const uint8_t* data, size_t bytes) {
  uint32_t state = ~crc;
  for (size_t i = 0; i < bytes; ++i) {
    state ^= data[i];
    for (int bit = 0; bit < 8; ++bit) state = (state >> 1) ^ ((state & 1) ? 0x82F63B78u : 0);
  }
  return ~state;
}

std::vector<uint8_t> random_bytes(size_t bytes, uint32_t seed) {
  std::mt19937 generator(seed);
  std::vector<uint8_t> data(bytes);
  for (uint8_t& byte : data) byte = static_cast<uint8_t>(generator());
  return data;
}

std::vector<const Crc32cImplementation*> supported_implementations() {
  std::vector<const Crc32cImplementation*> supported;
  for (const Crc32cImplementation* implementation : kvstore::crc32c_implementations()) {
    if (implementation->supported()) supported.push_back(implementation);
  }
  return supported;
}

uint32_t run_update(const Crc32cImplementation& implementation, uint32_t crc, const uint8_t* data,
                    size_t bytes) {
  return ~implementation.update(~crc, data, bytes);
}

uint32_t run_copy(const Crc32cImplementation& implementation, uint32_t crc, uint8_t* destination,
                  const uint8_t* source, size_t bytes) {
  return ~implementation.copy_update(~crc, destination, source, bytes);
}

// A destination with a guard on both sides, so that a store outside the range is seen.
class GuardedBuffer {
 public:
  GuardedBuffer(size_t alignment, size_t bytes)
      : alignment_(alignment), bytes_(bytes), storage_(kGuardBytes + bytes + 2 * kGuardBytes) {
    refill();
  }

  void refill() { std::fill(storage_.begin(), storage_.end(), kUntouched); }

  uint8_t* data() {
    const uintptr_t base = reinterpret_cast<uintptr_t>(storage_.data()) + kGuardBytes;
    const uintptr_t aligned = (base + 63) / 64 * 64 + alignment_;
    return reinterpret_cast<uint8_t*>(aligned);
  }

  bool guards_untouched() {
    const uint8_t* begin = data();
    const auto untouched = [](uint8_t byte) { return byte == kUntouched; };
    return std::all_of(static_cast<const uint8_t*>(storage_.data()), begin, untouched) &&
           std::all_of(begin + bytes_,
                       static_cast<const uint8_t*>(storage_.data() + storage_.size()), untouched);
  }

 private:
  static constexpr size_t kGuardBytes = 160;

  size_t alignment_;
  size_t bytes_;
  std::vector<uint8_t> storage_;
};

}  // namespace

TEST_CASE("crc32c: known vectors of RFC 3720, appendix B.4") {
  std::array<uint8_t, 32> zeros{};
  std::array<uint8_t, 32> ones;
  std::array<uint8_t, 32> ascending;
  std::array<uint8_t, 32> descending;
  for (size_t i = 0; i < 32; ++i) {
    ones[i] = 0xFF;
    ascending[i] = static_cast<uint8_t>(i);
    descending[i] = static_cast<uint8_t>(31 - i);
  }
  const std::string_view digits = "123456789";
  const auto* digit_bytes = reinterpret_cast<const uint8_t*>(digits.data());
  for (const Crc32cImplementation* implementation : supported_implementations()) {
    CAPTURE(std::string(implementation->name));
    CHECK(run_update(*implementation, 0, zeros.data(), 32) == 0x8A9136AAu);
    CHECK(run_update(*implementation, 0, ones.data(), 32) == 0x62A8AB43u);
    CHECK(run_update(*implementation, 0, ascending.data(), 32) == 0x46DD794Eu);
    CHECK(run_update(*implementation, 0, descending.data(), 32) == 0x113FDB5Cu);
    CHECK(run_update(*implementation, 0, digit_bytes, digits.size()) == 0xE3069283u);
    CHECK(run_update(*implementation, 0, nullptr, 0) == 0);
  }
  CHECK(kvstore::crc32c(0, digits.data(), digits.size()) == 0xE3069283u);
  CHECK(kvstore::crc32c(0, nullptr, 0) == 0);
  CHECK(kvstore::crc32c(0x12345678u, nullptr, 0) == 0x12345678u);
}

TEST_CASE("crc32c: every short length and alignment against the bitwise reference") {
  constexpr size_t kLengthMax = 600;
  const std::vector<uint8_t> data = random_bytes(kLengthMax + 80, 1);
  const auto base = reinterpret_cast<uintptr_t>(data.data());
  const uint8_t* aligned = data.data() + (64 - base % 64) % 64;
  for (size_t alignment = 0; alignment < 16; ++alignment) {
    for (size_t bytes = 0; bytes <= kLengthMax; ++bytes) {
      const auto crc = static_cast<uint32_t>(bytes * 0x9E3779B9u);
      const uint32_t expected = reference_crc32c(crc, aligned + alignment, bytes);
      for (const Crc32cImplementation* implementation : supported_implementations()) {
        const uint32_t actual = run_update(*implementation, crc, aligned + alignment, bytes);
        if (actual == expected) continue;
        FAIL_CHECK(implementation->name << " bytes " << bytes << " alignment " << alignment);
      }
    }
  }
}

TEST_CASE("crc32c_copy: every short length and pair of alignments, nothing outside the range") {
  constexpr size_t kLengthMax = 600;
  const std::vector<uint8_t> data = random_bytes(kLengthMax + 80, 2);
  const auto base = reinterpret_cast<uintptr_t>(data.data());
  const uint8_t* aligned = data.data() + (64 - base % 64) % 64;
  const std::vector<const Crc32cImplementation*> implementations = supported_implementations();
  for (size_t from = 0; from < 16; ++from) {
    const uint8_t* source = aligned + from;
    for (size_t bytes = 0; bytes <= kLengthMax; ++bytes) {
      const auto crc = static_cast<uint32_t>(bytes * 0x85EBCA6Bu);
      const uint32_t expected = reference_crc32c(crc, source, bytes);
      for (size_t to = 0; to < 16; ++to) {
        GuardedBuffer destination(to, bytes);
        for (const Crc32cImplementation* implementation : implementations) {
          destination.refill();
          const uint32_t actual = run_copy(*implementation, crc, destination.data(), source, bytes);
          const bool right = actual == expected &&
                             std::equal(source, source + bytes, destination.data()) &&
                             destination.guards_untouched();
          if (right) continue;
          FAIL_CHECK(implementation->name << " bytes " << bytes << " from " << from << " to "
                                          << to);
        }
      }
    }
  }
}

TEST_CASE("crc32c: long lengths at odd offsets, checksum and copy") {
  constexpr std::array<size_t, 16> kLengths = {
      1023, 1024, 3071, 3072, 3073,  4032,  4095,   4096,
      4097, 4159, 4160, 9001, 65537, 99999, 262151, 3 * 1024 * 1024 + 77};
  const std::vector<uint8_t> data = random_bytes(kLengths.back() + 64, 3);
  for (const size_t bytes : kLengths) {
    for (const size_t alignment : {0, 1, 13, 31, 63}) {
      const uint8_t* source = data.data() + alignment;
      const uint32_t expected = reference_crc32c(7, source, bytes);
      GuardedBuffer destination((alignment * 5 + 3) % 64, bytes);
      for (const Crc32cImplementation* implementation : supported_implementations()) {
        CAPTURE(std::string(implementation->name));
        CAPTURE(bytes);
        CAPTURE(alignment);
        destination.refill();
        CHECK(run_update(*implementation, 7, source, bytes) == expected);
        CHECK(run_copy(*implementation, 7, destination.data(), source, bytes) == expected);
        CHECK(std::memcmp(destination.data(), source, bytes) == 0);
        CHECK(destination.guards_untouched());
      }
    }
  }
}

TEST_CASE("crc32c_copy: lengths whose stores may bypass the caches") {
  constexpr size_t kBytes = size_t{32} * 1024 * 1024 + 4567;
  std::vector<uint8_t> data = random_bytes(4099, 6);
  data.resize(kBytes);
  for (size_t i = 4099; i < kBytes; ++i) data[i] = static_cast<uint8_t>(data[i - 4099] + i / 4099);
  const uint32_t expected = reference_crc32c(0, data.data(), kBytes);
  GuardedBuffer destination(43, kBytes);
  for (const Crc32cImplementation* implementation : supported_implementations()) {
    CAPTURE(std::string(implementation->name));
    destination.refill();
    CHECK(run_copy(*implementation, 0, destination.data(), data.data(), kBytes) == expected);
    CHECK(std::memcmp(destination.data(), data.data(), kBytes) == 0);
    CHECK(destination.guards_untouched());
  }
}

TEST_CASE("crc32c: a message may be continued at any point") {
  const std::vector<uint8_t> data = random_bytes(700, 4);
  std::vector<uint8_t> copy(data.size());
  const uint32_t whole = reference_crc32c(0, data.data(), data.size());
  for (size_t split = 0; split <= data.size(); ++split) {
    const size_t rest = data.size() - split;
    for (const Crc32cImplementation* implementation : supported_implementations()) {
      const uint32_t first = run_update(*implementation, 0, data.data(), split);
      const uint32_t second =
          run_copy(*implementation, first, copy.data() + split, data.data() + split, rest);
      if (second != whole) FAIL_CHECK(implementation->name << " split at " << split);
    }
    const uint32_t first = kvstore::crc32c_copy(0, copy.data(), data.data(), split);
    REQUIRE(kvstore::crc32c(first, data.data() + split, rest) == whole);
  }
  CHECK(copy == data);
}

TEST_CASE("crc32c: the dispatcher takes the first supported implementation") {
  const auto supported = supported_implementations();
  REQUIRE(!supported.empty());
  CHECK(std::string(kvstore::crc32c_implementation()) == supported.front()->name);
  CHECK(std::string(kvstore::crc32c_implementations().back()->name) == "portable");
}

TEST_CASE("region_copy: every short length and pair of alignments, nothing outside the range") {
  using Copy = void (*)(void*, const void*, size_t) noexcept;
  constexpr size_t kLengthMax = 80;
  const std::vector<uint8_t> data = random_bytes(kLengthMax + 80, 5);
  for (const Copy copy : {Copy{&kvstore::region_copy}, Copy{&kvstore::region_copy_atomic}}) {
    for (size_t from = 0; from < 16; ++from) {
      for (size_t to = 0; to < 16; ++to) {
        for (size_t bytes = 0; bytes <= kLengthMax; ++bytes) {
          GuardedBuffer destination(to, bytes);
          copy(destination.data(), data.data() + from, bytes);
          const bool right = std::memcmp(destination.data(), data.data() + from, bytes) == 0 &&
                             destination.guards_untouched();
          if (!right) FAIL_CHECK("bytes " << bytes << " from " << from << " to " << to);
        }
      }
    }
  }
}

// The result must describe the bytes that the reader got, torn or not. Under ThreadSanitizer only
// the public functions may run, and that they run without a report is the point.
TEST_CASE("crc32c_copy: the result describes the destination while another thread writes") {
  constexpr size_t kBytes = 8192 + 21;
  constexpr size_t kCopies = kvstore::kThreadSanitizer ? 100 : 10'000;
  std::vector<uint8_t> region(kBytes + 13);
  std::atomic<bool> stop{false};
  std::atomic<size_t> writes{0};
  std::thread writer([&] {
    const std::array<std::vector<uint8_t>, 2> contents = {random_bytes(kBytes, 7),
                                                          random_bytes(kBytes, 8)};
    for (size_t i = 0; !stop.load(std::memory_order_relaxed); ++i) {
      kvstore::region_copy(region.data() + 13, contents[i % 2].data(), kBytes);
      writes.store(i + 1, std::memory_order_relaxed);
    }
  });
  while (writes.load(std::memory_order_relaxed) == 0) std::this_thread::yield();
  std::vector<uint8_t> copy(kBytes);
  size_t wrong = 0;
  for (size_t i = 0; i < kCopies; ++i) {
    const uint32_t crc = kvstore::crc32c_copy(0, copy.data(), region.data() + 13, kBytes);
    if (crc != kvstore::crc32c(0, copy.data(), kBytes)) ++wrong;
    if (kvstore::kThreadSanitizer) continue;
    for (const Crc32cImplementation* implementation : supported_implementations()) {
      const uint32_t other = run_copy(*implementation, 0, copy.data(), region.data() + 13, kBytes);
      if (other != kvstore::crc32c(0, copy.data(), kBytes)) ++wrong;
    }
  }
  stop.store(true, std::memory_order_relaxed);
  writer.join();
  CHECK(wrong == 0);
  CHECK(writes.load() > 1);
}
