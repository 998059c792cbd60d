// Messages that are lost or late on purpose, for tests between real processes. The environment
// variable KVSTORE_TEST_MESSAGES says `LOST,LATE,DELAY_US`: of a million messages that this process
// sends, so many are lost and so many late, by up to the delay. Without it nothing happens.

#pragma once

#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <vector>

#include "base/random.hpp"
#include "coro/clock.hpp"
#include "fabric/port.hpp"

namespace kvstore {

class MessageFaults {
 public:
  MessageFaults() {
    const char* given = std::getenv("KVSTORE_TEST_MESSAGES");
    if (given == nullptr) return;
    unsigned lost = 0, late = 0, delay_us = 0;
    if (std::sscanf(given, "%u,%u,%u", &lost, &late, &delay_us) != 3) return;
    lost_ = lost;
    late_ = late;
    delay_ns_ = uint64_t{delay_us} * 1000;
  }
  bool any() const { return lost_ != 0 || late_ != 0; }

  // Whether the message is not to be sent now.
  bool keeps(const kv_datagram_address& to, const void* data, uint32_t bytes) {
    const uint64_t chance = thread_random() % 1'000'000;
    if (chance < lost_) return true;
    if (chance >= uint64_t{lost_} + late_ || bytes > KV_DATAGRAM_BYTES_MAX) return false;
    const std::lock_guard lock(mutex_);
    if (late_messages_.size() >= kLateMax) return true;
    Late& message = late_messages_.emplace_back();
    message.due_ns = monotonic_ns() + thread_random() % (delay_ns_ + 1);
    message.to = to;
    message.bytes = bytes;
    std::memcpy(message.data.data(), data, bytes);
    return true;
  }
  // Sends those whose time has come; called with every message that comes or goes.
  void release(kv_port& port) {
    const std::lock_guard lock(mutex_);
    const uint64_t now_ns = monotonic_ns();
    std::erase_if(late_messages_, [&](const Late& message) {
      if (message.due_ns > now_ns) return false;
      port.ops->send(&port, &message.to, message.data.data(), message.bytes);
      return true;
    });
  }

 private:
  static constexpr size_t kLateMax = 4096;
  struct Late {
    uint64_t due_ns;
    kv_datagram_address to;
    uint32_t bytes;
    std::array<uint8_t, KV_DATAGRAM_BYTES_MAX> data;
  };

  uint32_t lost_ = 0;
  uint32_t late_ = 0;
  uint64_t delay_ns_ = 0;
  std::mutex mutex_;
  std::vector<Late> late_messages_;
};

}  // namespace kvstore
