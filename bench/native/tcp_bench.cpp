// The tcp fabric beside a bare loopback socket that moves the same bytes under the same waiting
// policy: one-READ round trips, and large READs and WRITEs one at a time.
//
// Usage: tcp_bench. Client and server are threads of this process. Rounds of all contestants are
// interleaved; each figure is the median of the rounds. Policies: "block" waits in the kernel at
// once, "spin" polls for up to 50 us first, on both sides, and gives way between two looks.

#include <poll.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/assert.hpp"
#include "base/crc32c.hpp"
#include "fabric/cpu/frame.hpp"
#include "fabric/cpu/tcp.hpp"
#include "fabric/cpu/tcp_socket.hpp"

namespace {

using namespace kvstore;

constexpr uint64_t kRegionBytes = 64 << 20;
constexpr uint64_t kSpinNs = 50'000;
constexpr int kRounds = 15;
constexpr int kRoundTripsARound = 2000;
constexpr int kTransfersARound = 40;
constexpr size_t kSmallBytes = 1024;
constexpr size_t kLargeBytes = 2 << 20;
constexpr size_t kRequestBytes = sizeof(frame::RequestHeader) + sizeof(frame::OpDescriptor);
constexpr size_t kAnswerBytes = sizeof(frame::ResponseHeader) + sizeof(frame::ResponseEnd);

uint8_t* map_warm_pages(size_t bytes) {
  void* pages = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  KV_ASSERT(pages != MAP_FAILED);
  std::fill_n(static_cast<uint8_t*>(pages), bytes, uint8_t{1});
  return static_cast<uint8_t*>(pages);
}

void wait_ready(int fd, short events) {
  pollfd entry{fd, events, 0};
  poll(&entry, 1, 10'000);
}

// A bare socket with the waiting policy.
class BareEnd {
 public:
  BareEnd(OwnedFd fd, bool spin) : fd_(std::move(fd)), spin_(spin) {
    set_data_socket_options(fd_.get(), 10'000);
  }
  bool send_all(const uint8_t* bytes, size_t count) {
    return move(true, const_cast<uint8_t*>(bytes), count);
  }
  bool receive_all(uint8_t* bytes, size_t count) { return move(false, bytes, count); }

 private:
  bool move(bool sending, uint8_t* bytes, size_t count) {
    uint64_t spin_end_ns = 0;
    while (count > 0) {
      const ssize_t moved = sending ? send(fd_.get(), bytes, count, MSG_DONTWAIT | MSG_NOSIGNAL)
                                    : recv(fd_.get(), bytes, count, MSG_DONTWAIT);
      if (moved == 0 || (moved < 0 && errno != EAGAIN)) return false;
      if (moved > 0) {
        bytes += moved;
        count -= static_cast<size_t>(moved);
        spin_end_ns = 0;
      } else if (spin_ && spin_end_ns == 0) {
        spin_end_ns = monotonic_ns() + kSpinNs;
      } else if (!spin_ || monotonic_ns() > spin_end_ns) {
        wait_ready(fd_.get(), sending ? POLLOUT : POLLIN);
      } else {
        sched_yield();
      }
    }
    return true;
  }

  OwnedFd fd_;
  bool spin_;
};

// Answers each request of `request_bytes` with `answer_bytes`.
class BarePair {
 public:
  BarePair(bool spin, size_t request_bytes, size_t answer_bytes)
      : request_bytes_(request_bytes), answer_bytes_(answer_bytes) {
    std::string error;
    uint16_t port = 0;
    const OwnedFd listener = listen_socket("127.0.0.1", 0, port, error);
    const uint64_t deadline_ns = monotonic_ns() + 5'000'000'000;
    OwnedFd client = connect_socket("127.0.0.1", port, deadline_ns, error);
    KV_ASSERT(client.valid());
    wait_ready(listener.get(), POLLIN);
    OwnedFd server(accept4(listener.get(), nullptr, nullptr, SOCK_NONBLOCK));
    KV_ASSERT(server.valid());
    client_ = std::make_unique<BareEnd>(std::move(client), spin);
    buffer_ = map_warm_pages(std::max(request_bytes, answer_bytes));
    thread_ = std::thread([this, spin, fd = server.release()] {
      BareEnd end(OwnedFd(fd), spin);
      uint8_t* memory = map_warm_pages(std::max(request_bytes_, answer_bytes_));
      while (end.receive_all(memory, request_bytes_) && end.send_all(memory, answer_bytes_)) {
      }
    });
  }
  ~BarePair() {
    client_.reset();
    thread_.join();
  }
  void round_trip() {
    KV_ASSERT(client_->send_all(buffer_, request_bytes_));
    KV_ASSERT(client_->receive_all(buffer_, answer_bytes_));
  }

 private:
  size_t request_bytes_;
  size_t answer_bytes_;
  uint8_t* buffer_;
  std::unique_ptr<BareEnd> client_;
  std::thread thread_;
};

class FabricPair {
 public:
  FabricPair(bool spin, kv_op op) : spin_(spin), op_(op) {
    std::string error;
    TcpAgentConfig config;
    config.listen_host = "127.0.0.1";
    config.region = map_warm_pages(kRegionBytes);
    config.region_bytes = kRegionBytes;
    config.spin_us = spin ? kSpinNs / 1000 : 0;
    config.authenticate = [](uint32_t, const std::array<uint8_t, 16>&) { return true; };
    agent_ = TcpAgent::start(std::move(config), error);
    KV_ASSERT(agent_ != nullptr);
    TcpTarget target;
    target.host = "127.0.0.1";
    target.port = agent_->port();
    connection_ = tcp_connect(target, monotonic_ns() + 5'000'000'000, error);
    KV_ASSERT(connection_ != nullptr);
    op_.local = map_warm_pages(op.length);
  }
  ~FabricPair() { connection_->ops->destroy(connection_); }

  void round_trip() {
    bool done = false;
    kv_batch batch{};
    batch.ops = &op_;
    batch.op_count = 1;
    batch.context = &done;
    batch.complete = [](kv_batch* completed) { *static_cast<bool*>(completed->context) = true; };
    KV_ASSERT(connection_->ops->post(connection_, &batch) == KV_FABRIC_PENDING);
    uint64_t spin_end_ns = 0;
    connection_->ops->poll(connection_);
    while (!done) {
      short events = 0;
      const int fd = connection_->ops->wait_descriptor(connection_, &events);
      if (spin_ && spin_end_ns == 0) spin_end_ns = monotonic_ns() + kSpinNs;
      if (!spin_ || monotonic_ns() > spin_end_ns) {
        wait_ready(fd, events);
        spin_end_ns = 0;
      } else {
        sched_yield();
      }
      connection_->ops->poll(connection_);
    }
    KV_ASSERT(batch.status == KV_FABRIC_OK);
  }

 private:
  bool spin_;
  kv_op op_;
  std::unique_ptr<TcpAgent> agent_;
  kv_connection* connection_;
};

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

struct Contestant {
  std::string name;
  std::function<void()> round_trip;
  std::vector<double> rounds{};
};

// The median over rounds of the p50 of a round trip, in microseconds.
void compare_round_trips(const char* policy, std::vector<Contestant> contestants) {
  for (int round = 0; round <= kRounds; ++round) {
    for (Contestant& contestant : contestants) {
      std::vector<double> times;
      for (int i = 0; i < kRoundTripsARound; ++i) {
        const uint64_t begin_ns = monotonic_ns();
        contestant.round_trip();
        times.push_back(static_cast<double>(monotonic_ns() - begin_ns) * 1e-3);
      }
      if (round > 0) contestant.rounds.push_back(median(std::move(times)));
    }
  }
  const double base = median(contestants[0].rounds);
  for (const Contestant& contestant : contestants) {
    const double p50 = median(contestant.rounds);
    std::printf("%-6s %-28s p50 %8.2f us   %.2fx bare\n", policy, contestant.name.c_str(), p50,
                p50 / base);
  }
}

void compare_throughput(const char* policy, size_t bytes, std::vector<Contestant> contestants) {
  for (int round = 0; round <= kRounds; ++round) {
    for (Contestant& contestant : contestants) {
      const uint64_t begin_ns = monotonic_ns();
      for (int i = 0; i < kTransfersARound; ++i) contestant.round_trip();
      const double seconds = static_cast<double>(monotonic_ns() - begin_ns) * 1e-9;
      const double moved = static_cast<double>(bytes) * kTransfersARound * 1e-9;
      if (round > 0) contestant.rounds.push_back(moved / seconds);
    }
  }
  const double base = median(contestants[0].rounds);
  for (const Contestant& contestant : contestants) {
    const double rate = median(contestant.rounds);
    std::printf("%-6s %-28s %8.2f GB/s     %.2fx bare\n", policy, contestant.name.c_str(), rate,
                rate / base);
  }
}

template <typename Pair>
Contestant contestant(std::string name, std::shared_ptr<Pair> pair) {
  return Contestant{std::move(name), [pair] { pair->round_trip(); }};
}

kv_op large_op(uint32_t kind, uint32_t flags) {
  return kv_op{4096, kLargeBytes, nullptr, 0, 0, 0, kind, flags};
}

void run_policy(const char* policy, bool spin) {
  const kv_op small{4096, kSmallBytes, nullptr, 0, 0, 0, KV_OP_READ, 0};
  compare_round_trips(
      policy,
      {contestant("bare ping-pong 1 KiB",
                  std::make_shared<BarePair>(spin, kRequestBytes, kAnswerBytes + kSmallBytes)),
       contestant("tcp READ 1 KiB", std::make_shared<FabricPair>(spin, small))});
  compare_throughput(
      policy, kLargeBytes,
      {contestant("bare receive 2 MiB",
                  std::make_shared<BarePair>(spin, kRequestBytes, kAnswerBytes + kLargeBytes)),
       contestant("tcp READ 2 MiB", std::make_shared<FabricPair>(spin, large_op(KV_OP_READ, 0))),
       contestant("tcp READ 2 MiB, CRC32C",
                  std::make_shared<FabricPair>(spin, large_op(KV_OP_READ, KV_OP_CRC32C)))});
  compare_throughput(
      policy, kLargeBytes,
      {contestant("bare send 2 MiB",
                  std::make_shared<BarePair>(spin, kRequestBytes + kLargeBytes, kAnswerBytes)),
       contestant("tcp WRITE 2 MiB", std::make_shared<FabricPair>(spin, large_op(KV_OP_WRITE, 0))),
       contestant("tcp WRITE 2 MiB, CRC32C",
                  std::make_shared<FabricPair>(spin, large_op(KV_OP_WRITE, KV_OP_CRC32C)))});
}

}  // namespace

int main() {
  std::printf("crc32c: %s\n", crc32c_implementation());
  run_policy("block", false);
  run_policy("spin", true);
  return 0;
}
