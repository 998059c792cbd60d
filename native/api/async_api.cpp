// The C ABI of the asynchronous form: one native thread runs submissions and signals an eventfd.
//
// What is queued when the thread looks is run as one round, in which all round trips overlap; what
// arrives meanwhile is the next round. Between rounds no epoch is held back.

#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>
#include <vector>

#include "api/guard.hpp"
#include "api/kvstore.h"
#include "store/client.hpp"

using namespace kvstore;

namespace {

constexpr uint64_t kLaneWaitNs = 10 * kSecond;

struct Submission {
  kv_call* calls;
  uint32_t count;
  uint64_t deadline_ns;
  uint64_t tag;
};

}  // namespace

struct kv_async {
  explicit kv_async(Client& c) : client(c), descriptor(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
    if (descriptor >= 0) thread = std::thread([this] { loop(); });
  }
  ~kv_async() {
    {
      const std::lock_guard lock(mutex);
      closing = true;
      changed.notify_all();
    }
    if (thread.joinable()) thread.join();
    if (descriptor >= 0) ::close(descriptor);
  }

  void loop() {
    for (;;) {
      std::deque<Submission> round;
      {
        std::unique_lock lock(mutex);
        changed.wait(lock, [this] { return closing || !queue.empty(); });
        if (queue.empty()) return;
        round.swap(queue);
      }
      run(round);
      const std::lock_guard lock(mutex);
      for (const Submission& submission : round) finished.push_back(submission.tag);
      const uint64_t one = 1;
      [[maybe_unused]] const ssize_t written = ::write(descriptor, &one, sizeof one);
    }
  }

  // The round ends with its latest deadline: one that is shorter may be overrun by its neighbours'.
  void run(const std::deque<Submission>& round) {
    std::vector<kv_call*> calls;
    uint64_t deadline_ns = 0;
    for (const Submission& submission : round) {
      for (uint32_t i = 0; i < submission.count; ++i) calls.push_back(&submission.calls[i]);
      deadline_ns = std::max(deadline_ns, submission.deadline_ns);
    }
    Status status = Status::kOk;
    Lane* lane = client.acquire_lane(kLaneWaitNs, status);
    if (lane == nullptr) {
      for (kv_call* call : calls) call->status = int32_t(status);
      return;
    }
    const uint64_t now_ns = monotonic_ns();
    lane->set_values_through_allocate(true);
    lane->run_list(calls.data(), uint32_t(calls.size()),
                   deadline_ns > now_ns ? deadline_ns - now_ns : 0);
    lane->set_values_through_allocate(false);
    client.release_lane(*lane);
  }

  Client& client;
  const int descriptor;
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<Submission> queue;
  std::deque<uint64_t> finished;
  bool closing = false;
  std::thread thread;
};

extern "C" {

kv_async* kv_async_open(kv_client* client, char* error, uint64_t error_bytes) {
  kv_async* async = new kv_async(client_of(client));
  if (async->descriptor >= 0) return async;
  set_error(error, error_bytes, "no file descriptor is left for an eventfd");
  delete async;
  return nullptr;
}

int kv_async_descriptor(kv_async* async) {
  return async->descriptor;
}

int kv_async_submit(kv_async* async, kv_call* calls, uint32_t count, uint64_t timeout_ns,
                    uint64_t tag) {
  const uint64_t now_ns = monotonic_ns();
  const uint64_t deadline_ns = timeout_ns > UINT64_MAX - now_ns ? UINT64_MAX : now_ns + timeout_ns;
  const std::lock_guard lock(async->mutex);
  if (async->closing) return KV_CLOSED;
  async->queue.push_back({calls, count, deadline_ns, tag});
  async->changed.notify_one();
  return KV_OK;
}

uint32_t kv_async_reap(kv_async* async, uint64_t* tags, uint32_t capacity) {
  const std::lock_guard lock(async->mutex);
  uint64_t ignored = 0;
  [[maybe_unused]] const ssize_t got = ::read(async->descriptor, &ignored, sizeof ignored);
  uint32_t count = 0;
  while (count < capacity && !async->finished.empty()) {
    tags[count++] = async->finished.front();
    async->finished.pop_front();
  }
  if (!async->finished.empty()) {
    const uint64_t one = 1;
    [[maybe_unused]] const ssize_t written = ::write(async->descriptor, &one, sizeof one);
  }
  return count;
}

void kv_async_close(kv_async* async) {
  delete async;
}

}  // extern "C"
