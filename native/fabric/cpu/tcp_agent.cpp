// The agent of the tcp fabric: a listening socket and the threads that serve its connections.
//
// Thread 0 accepts and reads greetings. A greeting names a lane of a registration, and a lane
// belongs to one thread: the connection moves there, once, and needs no lock. So the newest
// connection of a lane replaces the older one, which executes nothing any more, before it is
// welcomed: a client that has connected again knows that what it had asked before can no longer
// happen. A thread waits in epoll (edge-triggered), gives every connection that has work one
// bounded share a round, and takes requests of other threads (a new connection, a fence, the end)
// from its inbox between shares.

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <system_error>
#include <thread>
#include <unordered_map>
#include <vector>

#include "base/assert.hpp"
#include "fabric/cpu/adaptive_spin.hpp"
#include "fabric/cpu/tcp.hpp"
#include "fabric/cpu/tcp_agent_connection.hpp"
#include "fabric/cpu/tcp_registrations.hpp"

namespace kvstore {

namespace {

constexpr uint32_t kMaxConnections = 4096;
// Connections beyond the limit that are told so; still more are closed without a word.
constexpr uint32_t kMaxRefusedConnections = 64;
constexpr uint32_t kMaxThreads = 64;
constexpr int kMaxEvents = 128;
constexpr int kAcceptBurst = 64;
constexpr uint64_t kTickNs = 100'000'000;  // between looks at the deadlines of connections
constexpr unsigned kPeerPatienceMs = 30'000;
constexpr std::chrono::seconds kFenceLimit{30};

// What the threads of one agent share.
struct AgentShared {
  TcpAgentConfig config;
  TcpRegistrations registrations;
  SpinQuota spin_quota;
  OwnedFd listener;
  std::atomic<uint32_t> open{0};
  std::atomic<uint64_t> total{0};
};

uint64_t lane_key(uint32_t registration, uint32_t lane) {
  return uint64_t{registration} << 32 | lane;
}

// The thread that serves a lane. Lanes of one client spread over the threads.
size_t thread_number(uint32_t registration, uint32_t lane, uint32_t threads) {
  return (lane_key(registration, lane) * 0x9e37'79b9'7f4a'7c15ull >> 32) % threads;
}

// Counts the threads that have carried out a request.
class Acknowledgement {
 public:
  explicit Acknowledgement(size_t expected) : missing_(expected) {}
  void give() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (--missing_ == 0) complete_.notify_all();
  }
  bool wait(std::chrono::seconds limit) {
    std::unique_lock<std::mutex> lock(mutex_);
    return complete_.wait_for(lock, limit, [this] { return missing_ == 0; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable complete_;
  size_t missing_;
};

struct FenceRequest {
  uint32_t registration;
  std::shared_ptr<Acknowledgement> acknowledgement;
};

class AgentThread : public TcpAgentContext {
 public:
  explicit AgentThread(AgentShared& shared)
      : shared_(shared), spin_(shared.spin_quota, uint64_t{shared.config.spin_us} * 1000) {
    region = static_cast<uint8_t*>(shared.config.region);
    region_bytes = shared.config.region_bytes;
  }

  // Returns 0 or an errno. `peers` is not empty for the thread that accepts.
  int open(std::vector<AgentThread*> peers);
  void start() { thread_ = std::thread(&AgentThread::serve, this); }
  void stop();

  void hand_over(std::unique_ptr<TcpAgentConnection> connection);
  void fence(FenceRequest request);

  bool serves(const frame::Hello& hello) const override;
  frame::WelcomeStatus admit(const frame::Hello& hello, TcpAgentConnection& connection) override;

 private:
  void serve();
  void wait_for_events();
  int wait_limit_ms(uint64_t now_ns) const;
  void handle_events(int count);
  void wake();
  void take_inbox();
  void carry_out_fence(const FenceRequest& request);
  void accept_connections();
  void adopt(OwnedFd fd);
  void take_over(std::unique_ptr<TcpAgentConnection> connection);
  void send_elsewhere(TcpAgentConnection* connection);
  void enqueue(TcpAgentConnection* connection);
  void run_queued();
  void look_at_deadlines();
  void destroy(TcpAgentConnection* connection);

  AgentShared& shared_;
  AdaptiveSpin spin_;
  OwnedFd epoll_;
  OwnedFd wake_;
  std::thread thread_;

  std::mutex inbox_mutex_;
  std::vector<std::unique_ptr<TcpAgentConnection>> handed_over_;
  std::vector<FenceRequest> fences_;
  bool stopping_ = false;

  // Of this thread alone.
  bool stopped_ = false;
  bool accepting_ = false;
  bool inbox_signalled_ = false;
  std::vector<AgentThread*> peers_;  // all threads, this one too; only of the one that accepts
  uint64_t accept_again_ns_ = 0;
  uint64_t next_tick_ns_ = 0;
  uint64_t with_deadline_ = 0;  // connections, counted at the last tick or since
  std::unordered_map<TcpAgentConnection*, std::unique_ptr<TcpAgentConnection>> connections_;
  // The connection that serves a lane of a registration, by both.
  std::unordered_map<uint64_t, TcpAgentConnection*> lanes_;
  std::vector<TcpAgentConnection*> queue_;
  std::vector<TcpAgentConnection*> round_;
  epoll_event events_[kMaxEvents];
};

int AgentThread::open(std::vector<AgentThread*> peers) {
  epoll_ = OwnedFd(epoll_create1(EPOLL_CLOEXEC));
  wake_ = OwnedFd(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
  if (!epoll_.valid() || !wake_.valid()) return errno;
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.ptr = &wake_;
  if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, wake_.get(), &event) != 0) return errno;
  if (peers.empty()) return 0;
  peers_ = std::move(peers);
  event.events = EPOLLIN | EPOLLET;
  event.data.ptr = &shared_.listener;
  if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, shared_.listener.get(), &event) != 0) return errno;
  return 0;
}

void AgentThread::wake() {
  const uint64_t one = 1;
  // The counter can only be full if the thread has not yet seen an earlier signal.
  (void)!write(wake_.get(), &one, sizeof(one));
}

void AgentThread::stop() {
  {
    const std::lock_guard<std::mutex> lock(inbox_mutex_);
    stopping_ = true;
  }
  wake();
  if (thread_.joinable()) thread_.join();
}

void AgentThread::hand_over(std::unique_ptr<TcpAgentConnection> connection) {
  {
    const std::lock_guard<std::mutex> lock(inbox_mutex_);
    handed_over_.push_back(std::move(connection));
  }
  wake();
}

void AgentThread::fence(FenceRequest request) {
  {
    const std::lock_guard<std::mutex> lock(inbox_mutex_);
    fences_.push_back(std::move(request));
  }
  wake();
}

bool AgentThread::serves(const frame::Hello& hello) const {
  const size_t number = thread_number(hello.registration, hello.lane, shared_.config.threads);
  return peers_.empty() || peers_[number] == this;
}

frame::WelcomeStatus AgentThread::admit(const frame::Hello& hello, TcpAgentConnection& connection) {
  if (hello.incarnation != shared_.config.incarnation) return frame::kWelcomeIncarnation;
  std::array<uint8_t, 16> token;
  std::copy(std::begin(hello.token), std::end(hello.token), token.begin());
  if (!shared_.config.authenticate(hello.registration, token)) return frame::kWelcomeToken;
  if (!shared_.registrations.admit(hello.registration)) return frame::kWelcomeToken;
  TcpAgentConnection*& current = lanes_[lane_key(hello.registration, hello.lane)];
  if (current != nullptr) {
    current->supersede();
    enqueue(current);
  }
  current = &connection;
  return frame::kWelcomeOk;
}

void AgentThread::serve() {
  while (!stopped_) {
    wait_for_events();
    run_queued();
    if (inbox_signalled_) take_inbox();
    if (accepting_) accept_connections();
    if (with_deadline_ > 0) look_at_deadlines();
  }
  while (!connections_.empty()) destroy(connections_.begin()->first);
}

int AgentThread::wait_limit_ms(uint64_t now_ns) const {
  if (!queue_.empty()) return 0;
  uint64_t until_ns = UINT64_MAX;
  if (with_deadline_ > 0) until_ns = next_tick_ns_;
  if (accepting_) until_ns = std::min(until_ns, accept_again_ns_);
  if (until_ns == UINT64_MAX) return -1;
  if (now_ns >= until_ns) return 0;
  return static_cast<int>((until_ns - now_ns) / 1'000'000 + 1);
}

void AgentThread::wait_for_events() {
  int count = 0;
  if (queue_.empty() && spin_.worthwhile()) {
    spin_.begin();
    do {
      count = epoll_wait(epoll_.get(), events_, kMaxEvents, 0);
    } while (count == 0 && spin_.go_on());
    spin_.end(count > 0);
  }
  if (count == 0) {
    const uint64_t before_ns = monotonic_ns();
    const int limit_ms = wait_limit_ms(before_ns);
    count = epoll_wait(epoll_.get(), events_, kMaxEvents, limit_ms);
    if (limit_ms != 0) spin_.learn(monotonic_ns() - before_ns);
  }
  KV_ASSERT(count >= 0 || errno == EINTR);
  handle_events(count);
}

void AgentThread::handle_events(int count) {
  for (int i = 0; i < count; ++i) {
    const uint32_t events = events_[i].events;
    void* const source = events_[i].data.ptr;
    if (source == &wake_) {
      uint64_t ignored;
      (void)!read(wake_.get(), &ignored, sizeof(ignored));
      inbox_signalled_ = true;
    } else if (source == &shared_.listener) {
      accepting_ = true;
    } else {
      auto* connection = static_cast<TcpAgentConnection*>(source);
      const bool over = (events & (EPOLLERR | EPOLLHUP)) != 0;
      const bool ended = over || (events & EPOLLRDHUP) != 0;
      connection->on_events(ended || (events & EPOLLIN) != 0, over || (events & EPOLLOUT) != 0,
                            ended);
      enqueue(connection);
    }
  }
}

void AgentThread::enqueue(TcpAgentConnection* connection) {
  if (connection->queued) return;
  connection->queued = true;
  queue_.push_back(connection);
}

void AgentThread::run_queued() {
  round_.swap(queue_);
  for (TcpAgentConnection* connection : round_) {
    connection->queued = false;
    switch (connection->run()) {
      case TcpAgentConnection::Progress::kWaiting:
        break;
      case TcpAgentConnection::Progress::kRunnable:
        enqueue(connection);
        break;
      case TcpAgentConnection::Progress::kElsewhere:
        send_elsewhere(connection);
        continue;
      case TcpAgentConnection::Progress::kClosed:
        destroy(connection);
        continue;
    }
    if (connection->has_deadline()) ++with_deadline_;
  }
  round_.clear();
}

void AgentThread::take_inbox() {
  std::vector<std::unique_ptr<TcpAgentConnection>> handed_over;
  std::vector<FenceRequest> fences;
  {
    const std::lock_guard<std::mutex> lock(inbox_mutex_);
    handed_over.swap(handed_over_);
    fences.swap(fences_);
    stopped_ = stopping_;
  }
  inbox_signalled_ = false;
  for (auto& connection : handed_over) take_over(std::move(connection));
  for (const FenceRequest& request : fences) carry_out_fence(request);
}

void AgentThread::carry_out_fence(const FenceRequest& request) {
  std::vector<TcpAgentConnection*> fenced;
  for (const auto& entry : connections_) {
    TcpAgentConnection* connection = entry.first;
    if (connection->admitted() && connection->registration() == request.registration) {
      fenced.push_back(connection);
    }
  }
  for (TcpAgentConnection* connection : fenced) {
    if (connection->queued) queue_.erase(std::find(queue_.begin(), queue_.end(), connection));
    destroy(connection);
  }
  request.acknowledgement->give();
}

// The listener is edge-triggered; `accepting_` stays set until it is known to be empty, also while
// no descriptors are to be had, and is then tried again after a while.
void AgentThread::accept_connections() {
  if (monotonic_ns() < accept_again_ns_) return;
  accept_again_ns_ = 0;
  for (int i = 0; i < kAcceptBurst; ++i) {
    const int fd = accept4(shared_.listener.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0 && errno == EAGAIN) {
      accepting_ = false;
      return;
    }
    if (fd < 0 && (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM)) {
      accept_again_ns_ = monotonic_ns() + kTickNs;
      return;
    }
    if (fd < 0) continue;
    OwnedFd owned(fd);
    set_data_socket_options(fd, kPeerPatienceMs);
    adopt(std::move(owned));
  }
}

void AgentThread::adopt(OwnedFd fd) {
  const uint32_t before = shared_.open.fetch_add(1, std::memory_order_relaxed);
  if (before >= kMaxConnections + kMaxRefusedConnections) {
    shared_.open.fetch_sub(1, std::memory_order_relaxed);
    return;
  }
  shared_.total.fetch_add(1, std::memory_order_relaxed);
  take_over(std::make_unique<TcpAgentConnection>(std::move(fd), *this, monotonic_ns(),
                                                 before < kMaxConnections));
}

// Being added to epoll raises an event for what has arrived already.
void AgentThread::take_over(std::unique_ptr<TcpAgentConnection> connection) {
  connection->move_to(*this);
  epoll_event event{};
  event.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET;
  event.data.ptr = connection.get();
  if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, connection->fd(), &event) != 0) {
    shared_.open.fetch_sub(1, std::memory_order_relaxed);
    return;
  }
  ++with_deadline_;
  connections_.emplace(connection.get(), std::move(connection));
}

// Precondition: the connection is not queued.
void AgentThread::send_elsewhere(TcpAgentConnection* connection) {
  const auto entry = connections_.find(connection);
  std::unique_ptr<TcpAgentConnection> moving = std::move(entry->second);
  connections_.erase(entry);
  epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, moving->fd(), nullptr);
  const size_t number =
      thread_number(moving->registration(), moving->lane(), shared_.config.threads);
  peers_[number]->hand_over(std::move(moving));
}

void AgentThread::look_at_deadlines() {
  const uint64_t now_ns = monotonic_ns();
  if (now_ns < next_tick_ns_) return;
  next_tick_ns_ = now_ns + kTickNs;
  with_deadline_ = 0;
  std::vector<TcpAgentConnection*> overdue;
  for (const auto& entry : connections_) {
    if (entry.first->overdue(now_ns)) {
      overdue.push_back(entry.first);
    } else if (entry.first->has_deadline()) {
      ++with_deadline_;
    }
  }
  for (TcpAgentConnection* connection : overdue) {
    if (connection->queued) queue_.erase(std::find(queue_.begin(), queue_.end(), connection));
    destroy(connection);
  }
}

// Precondition: the connection is not queued. Closing its socket removes it from epoll.
void AgentThread::destroy(TcpAgentConnection* connection) {
  const bool admitted = connection->admitted();
  const uint32_t registration = connection->registration();
  const auto lane = lanes_.find(lane_key(registration, connection->lane()));
  if (lane != lanes_.end() && lane->second == connection) lanes_.erase(lane);
  connections_.erase(connection);
  shared_.open.fetch_sub(1, std::memory_order_relaxed);
  if (!admitted || !shared_.registrations.release(registration) || stopped_) return;
  if (shared_.config.last_connection_closed) shared_.config.last_connection_closed(registration);
}

class Agent final : public TcpAgent {
 public:
  explicit Agent(TcpAgentConfig config) { shared_.config = std::move(config); }
  ~Agent() override {
    // The accepting thread first, so that no socket is handed to a thread that has ended.
    for (const auto& thread : threads_) thread->stop();
  }

  bool open(std::string& error);
  uint16_t port() const override { return port_; }
  void fence(uint32_t registration) override;
  TcpAgentStats stats() const override;

 private:
  AgentShared shared_;
  uint16_t port_ = 0;
  std::vector<std::unique_ptr<AgentThread>> threads_;
};

bool Agent::open(std::string& error) {
  const TcpAgentConfig& config = shared_.config;
  if (config.region == nullptr || reinterpret_cast<uintptr_t>(config.region) % 8 != 0 ||
      !config.authenticate || config.threads == 0 || config.threads > kMaxThreads) {
    error = "the tcp agent needs a region aligned to 8 bytes, an authenticator and 1 to " +
            std::to_string(kMaxThreads) + " threads";
    return false;
  }
  shared_.listener = listen_socket(config.listen_host, config.listen_port, port_, error);
  if (!shared_.listener.valid()) return false;
  std::vector<AgentThread*> peers;
  for (uint32_t i = 0; i < config.threads; ++i) {
    threads_.push_back(std::make_unique<AgentThread>(shared_));
    peers.push_back(threads_.back().get());
  }
  for (size_t i = 0; i < threads_.size(); ++i) {
    const int failure = threads_[i]->open(i == 0 ? peers : std::vector<AgentThread*>());
    if (failure == 0) continue;
    error = "the tcp agent cannot start: " +
            std::error_code(failure, std::generic_category()).message();
    return false;
  }
  try {
    for (const auto& thread : threads_) thread->start();
  } catch (const std::system_error& failure) {
    error = "the tcp agent cannot start a thread: " + failure.code().message();
    return false;
  }
  return true;
}

void Agent::fence(uint32_t registration) {
  // From here on no connection is admitted; those admitted before are in some thread's table.
  shared_.registrations.fence(registration);
  auto acknowledgement = std::make_shared<Acknowledgement>(threads_.size());
  for (const auto& thread : threads_) thread->fence(FenceRequest{registration, acknowledgement});
  // A thread acknowledges within one round. One that does not is broken, and going on would let the
  // fenced client write to memory that somebody else is about to own.
  KV_ASSERT(acknowledgement->wait(kFenceLimit));
}

TcpAgentStats Agent::stats() const {
  const auto read = [](const std::atomic<uint64_t>& counter) {
    return counter.load(std::memory_order_relaxed);
  };
  TcpAgentStats stats;
  stats.connections_open = shared_.open.load(std::memory_order_relaxed);
  stats.connections_total = read(shared_.total);
  for (const auto& thread : threads_) {
    const TcpAgentCounters& counters = thread->counters;
    stats.batches += read(counters.batches);
    stats.reads += read(counters.reads);
    stats.writes += read(counters.writes);
    stats.atomics += read(counters.atomics);
    stats.bytes_in += read(counters.bytes_in);
    stats.bytes_out += read(counters.bytes_out);
    stats.refused_frames += read(counters.refused_frames);
    stats.refused_bounds += read(counters.refused_bounds);
    stats.refused_tokens += read(counters.refused_tokens);
  }
  return stats;
}

}  // namespace

std::unique_ptr<TcpAgent> TcpAgent::start(TcpAgentConfig config, std::string& error) {
  auto agent = std::make_unique<Agent>(std::move(config));
  if (!agent->open(error)) return nullptr;
  return agent;
}

}  // namespace kvstore
