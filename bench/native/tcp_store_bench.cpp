// The store over tcp, through the C ABI, beside a bare loopback socket that moves about the same
// bytes under the same waiting policy: one get, a batch of gets, large values one at a time.
//
// Usage: tcp_store_bench [CONTEST...]: get, get_many, get_into, put_from; all without arguments.
// The node, and each bare peer, is a process of its own. Rounds of all contestants are interleaved;
// each figure is the median over the rounds of the median call of a round, with its ratio to the
// first contestant in the same round.

#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "api/kvstore.h"
#include "base/assert.hpp"
#include "fabric/cpu/tcp_socket.hpp"

namespace {

using namespace kvstore;

constexpr uint64_t kSpinNs = 50'000;
constexpr uint64_t kSecondNs = 1'000'000'000;
constexpr int kRounds = 7;
constexpr size_t kSmallBytes = 1 << 10;
constexpr size_t kLargeBytes = 2 << 20;
constexpr size_t kKeyBytes = 16;
constexpr uint32_t kSmallKeys = 10'000;
constexpr uint32_t kLargeKeys = 16;
constexpr uint32_t kBatch = 64;
// What a request for one value and the answer around it take on the wire, as in the fabric.
constexpr size_t kRequestBytes = 16 + 2 * 32;
constexpr size_t kAnswerBytes = 16 + 8 + 80 + 8;

void wait_ready(int fd, short events) {
  pollfd entry{fd, events, 0};
  poll(&entry, 1, 10'000);
}

// Moves exactly `count` bytes; polls for a while before it sleeps.
bool move_all(int fd, bool sending, uint8_t* bytes, size_t count) {
  uint64_t spin_end_ns = 0;
  while (count > 0) {
    const ssize_t moved = sending ? send(fd, bytes, count, MSG_DONTWAIT | MSG_NOSIGNAL)
                                  : recv(fd, bytes, count, MSG_DONTWAIT);
    if (moved == 0 || (moved < 0 && errno != EAGAIN)) return false;
    if (moved > 0) {
      bytes += moved;
      count -= static_cast<size_t>(moved);
      spin_end_ns = 0;
    } else if (spin_end_ns == 0) {
      spin_end_ns = monotonic_ns() + kSpinNs;
    } else if (monotonic_ns() > spin_end_ns) {
      wait_ready(fd, sending ? POLLOUT : POLLIN);
    } else {
      sched_yield();
    }
  }
  return true;
}

// A child process that ends with its parent. `serve` does not return.
pid_t start_child(const std::function<void()>& serve) {
  const pid_t child = fork();
  KV_ASSERT(child >= 0);
  if (child != 0) return child;
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  serve();
  _exit(0);
}

void end_child(pid_t child) {
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
}

// Answers each request of `request_bytes` with `answer_bytes`. The serving side uses `places`
// buffers in turn: with as many as there are values its memory is as cold as a node's.
class BarePair {
 public:
  BarePair(size_t request_bytes, size_t answer_bytes, size_t places = 1)
      : request_bytes_(request_bytes),
        answer_bytes_(answer_bytes),
        buffer_(std::max(request_bytes, answer_bytes), 1) {
    std::string error;
    uint16_t port = 0;
    const OwnedFd listener = listen_socket("127.0.0.1", 0, port, error);
    KV_ASSERT(listener.valid());
    child_ = start_child([&] {
      wait_ready(listener.get(), POLLIN);
      const OwnedFd peer(accept4(listener.get(), nullptr, nullptr, SOCK_NONBLOCK));
      set_data_socket_options(peer.get(), 10'000);
      std::vector<std::vector<uint8_t>> buffers(places, buffer_);
      size_t turn = 0;
      while (move_all(peer.get(), false, buffers[turn % places].data(), request_bytes_) &&
             move_all(peer.get(), true, buffers[turn % places].data(), answer_bytes_)) {
        ++turn;
      }
    });
    fd_ = connect_socket("127.0.0.1", port, monotonic_ns() + 5 * kSecondNs, error);
    KV_ASSERT(fd_.valid());
    set_data_socket_options(fd_.get(), 10'000);
  }
  ~BarePair() { end_child(child_); }

  void call() {
    KV_ASSERT(move_all(fd_.get(), true, buffer_.data(), request_bytes_));
    KV_ASSERT(move_all(fd_.get(), false, buffer_.data(), answer_bytes_));
  }

 private:
  size_t request_bytes_;
  size_t answer_bytes_;
  std::vector<uint8_t> buffer_;
  OwnedFd fd_;
  pid_t child_ = -1;
};

struct Invitation {
  kv_node_description description;
  kv_admission admissions[2];
};

// A node in a child process, and the means to attach two clients to it.
class NodeProcess {
 public:
  NodeProcess() {
    int ends[2];
    KV_ASSERT(pipe(ends) == 0);
    child_ = start_child([&] { serve(ends[1]); });
    KV_ASSERT(read(ends[0], &invitation_, sizeof invitation_) == sizeof invitation_);
    close(ends[0]);
    close(ends[1]);
  }
  ~NodeProcess() { end_child(child_); }

  kv_client* attach(unsigned number, uint32_t address_entries) const {
    char error[256] = "";
    kv_client_config config{};
    config.address_cache_entries = address_entries;
    config.cluster_id = "bench";
    config.members = "node";
    kv_client* client = kv_client_open(&config, error, sizeof error);
    KV_ASSERT(client != nullptr);
    const int status =
        kv_client_attach_tcp(client, 0, "127.0.0.1", invitation_.description.tcp_port,
                             invitation_.description.incarnation, &invitation_.admissions[number],
                             5 * kSecondNs, error, sizeof error);
    if (status != KV_OK) std::fprintf(stderr, "%s\n", error);
    KV_ASSERT(status == KV_OK);
    return client;
  }

 private:
  static void serve(int report) {
    char error[256] = "";
    kv_node_config config{};
    config.capacity_bytes = uint64_t{1} << 30;
    config.tcp_host = "127.0.0.1";
    config.cluster_id = "bench";
    config.members = "node";
    kv_node* node = kv_node_open(&config, error, sizeof error);
    if (node == nullptr) std::fprintf(stderr, "%s\n", error);
    KV_ASSERT(node != nullptr);
    static Invitation invitation;
    kv_node_describe(node, &invitation.description);
    for (kv_admission& admission : invitation.admissions) {
      KV_ASSERT(kv_node_admit(node, "bench", &admission, error, sizeof error) == KV_OK);
    }
    KV_ASSERT(write(report, &invitation, sizeof invitation) == sizeof invitation);
    for (;;) pause();
  }

  pid_t child_ = -1;
  Invitation invitation_{};
};

// Calls of one kind over keys in a fixed pseudo-random order.
class Caller {
 public:
  Caller(kv_client* client, uint32_t kind, size_t value_bytes, uint32_t keys, uint32_t batch)
      : client_(client),
        kind_(kind),
        keys_(keys),
        value_bytes_(value_bytes),
        names_(batch),
        values_(batch, std::vector<uint8_t>(value_bytes, 7)),
        calls_(batch) {}

  void call() {
    for (size_t i = 0; i < calls_.size(); ++i) {
      next_ = next_ * 6364136223846793005u + 1442695040888963407u;
      prepare(i, (next_ >> 33) % keys_);
    }
    run();
  }
  void call(uint32_t number) {
    prepare(0, number);
    run();
  }

 private:
  void prepare(size_t i, uint64_t number) {
    std::snprintf(names_[i].text, sizeof names_[i].text, "%c%015u", keys_ == kSmallKeys ? 's' : 'l',
                  static_cast<unsigned>(number));
    kv_call& call = calls_[i];
    call = kv_call{};
    call.kind = kind_;
    call.key = names_[i].text;
    call.key_bytes = kKeyBytes;
    if (kind_ == KV_PUT) {
      call.value = values_[i].data();
      call.value_bytes = value_bytes_;
    } else {
      call.buffer = values_[i].data();
      call.buffer_bytes = value_bytes_;
    }
  }
  void run() {
    kv_session* session = nullptr;
    KV_ASSERT(kv_session_acquire(client_, kSecondNs, &session) == KV_OK);
    const uint32_t count = static_cast<uint32_t>(calls_.size());
    KV_ASSERT(kv_run(session, calls_.data(), count, 10 * kSecondNs, 0) == KV_OK);
    kv_session_release(session);
    for (const kv_call& call : calls_) {
      KV_ASSERT(call.status == KV_OK);
    }
  }

  struct Name {
    char text[24];
  };
  kv_client* client_;
  uint32_t kind_;
  uint32_t keys_;
  size_t value_bytes_;
  std::vector<Name> names_;
  std::vector<std::vector<uint8_t>> values_;
  std::vector<kv_call> calls_;
  uint64_t next_ = 1;
};

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

struct Contestant {
  std::string name;
  std::function<void()> call;
  std::vector<double> p50_us{};
  std::vector<double> ratios{};
};

void compare(const char* title, int calls_a_round, std::vector<Contestant> contestants) {
  for (int round = 0; round <= kRounds; ++round) {
    for (Contestant& contestant : contestants) {
      std::vector<double> times;
      for (int i = 0; i < calls_a_round; ++i) {
        const uint64_t begin_ns = monotonic_ns();
        contestant.call();
        times.push_back(static_cast<double>(monotonic_ns() - begin_ns) * 1e-3);
      }
      if (round == 0) continue;  // to warm up
      contestant.p50_us.push_back(median(std::move(times)));
      contestant.ratios.push_back(contestant.p50_us.back() / contestants[0].p50_us.back());
    }
  }
  for (const Contestant& contestant : contestants) {
    std::printf("%-9s %-24s p50 %9.2f us   time %5.2fx, rate %5.2fx of bare\n", title,
                contestant.name.c_str(), median(contestant.p50_us), median(contestant.ratios),
                1 / median(contestant.ratios));
  }
}

template <typename Kind>
Contestant contestant(std::string name, std::shared_ptr<Kind> kind) {
  return Contestant{std::move(name), [kind] { kind->call(); }};
}

void fill(kv_client* client) {
  Caller small(client, KV_PUT, kSmallBytes, kSmallKeys, 1);
  for (uint32_t i = 0; i < kSmallKeys; ++i) small.call(i);
  Caller large(client, KV_PUT, kLargeBytes, kLargeKeys, 1);
  // Twice, so that a later put finds its blocks warm.
  for (uint32_t i = 0; i < 2 * kLargeKeys; ++i) large.call(i % kLargeKeys);
}

}  // namespace

int main(int argument_count, char** arguments) {
  const auto wanted = [&](const char* contest) {
    for (int i = 1; i < argument_count; ++i) {
      if (std::strcmp(arguments[i], contest) == 0) return true;
    }
    return argument_count == 1;
  };
  // Processes are forked before this one has threads.
  const auto small = std::make_shared<BarePair>(kRequestBytes, kAnswerBytes + kSmallBytes);
  const auto many =
      std::make_shared<BarePair>(kBatch * kRequestBytes, kBatch * (kAnswerBytes + kSmallBytes));
  const auto down = std::make_shared<BarePair>(kRequestBytes, kAnswerBytes + kLargeBytes);
  const auto down_cold =
      std::make_shared<BarePair>(kRequestBytes, kAnswerBytes + kLargeBytes, kLargeKeys);
  const auto up_cold =
      std::make_shared<BarePair>(kRequestBytes + kLargeBytes, kAnswerBytes, kLargeKeys);
  const auto up = std::make_shared<BarePair>(kRequestBytes + kLargeBytes, kAnswerBytes);
  const NodeProcess node;
  kv_client* const client = node.attach(0, 0);
  kv_client* const forgetful = node.attach(1, 1);
  fill(client);
  const auto caller = [&](kv_client* of, uint32_t kind, size_t bytes, uint32_t keys, uint32_t n) {
    return std::make_shared<Caller>(of, kind, bytes, keys, n);
  };
  if (wanted("get")) {
    compare("get", 2000,
            {contestant("bare, 1 KiB", small),
             contestant("address known", caller(client, KV_GET, kSmallBytes, kSmallKeys, 1)),
             contestant("cold", caller(forgetful, KV_GET, kSmallBytes, kSmallKeys, 1))});
  }
  if (wanted("get_many")) {
    compare("get_many", 400,
            {contestant("bare, 64 x 1 KiB", many),
             contestant("addresses known", caller(client, KV_GET, kSmallBytes, kSmallKeys, kBatch)),
             contestant("cold", caller(forgetful, KV_GET, kSmallBytes, kSmallKeys, kBatch))});
  }
  if (wanted("get_into")) {
    compare("get_into", 60,
            {contestant("bare, 2 MiB", down), contestant("bare, of 16 values", down_cold),
             contestant("2 MiB", caller(client, KV_GET, kLargeBytes, kLargeKeys, 1))});
  }
  if (wanted("put_from")) {
    compare("put_from", 60,
            {contestant("bare, 2 MiB", up), contestant("bare, of 16 values", up_cold),
             contestant("2 MiB", caller(client, KV_PUT, kLargeBytes, kLargeKeys, 1))});
  }
  kv_client_close(client);
  kv_client_close(forgetful);
  return 0;
}
