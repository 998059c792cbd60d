// How long requests for locks wait beside how many were before them: the bound on a wait.
//
// Requests in the order in which they were made form *turns*: a writer is one, and readers one
// after the other are one together. A request's *position* is the number of turns before its own
// that have not ended when it is made: a reader's own turn may have begun with others, and one that
// joins holding readers has position 0. A lock's *hand-over* is the time from the begin of a turn
// to that of the next, where the next already waited. In a queue that is first come, first served,
// a request waits about its position times the median hand-over; of position 0 no wait is promised,
// and none is looked at.

#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

namespace kvstore::sim {

class LockWaits {
 public:
  // A lock with fewer hand-overs has no median worth the name.
  static constexpr size_t kHandoversMin = 100;

  struct Worst {
    double ratio = 0;  // of the wait to what its position promises
    uint64_t position = 0;
    uint64_t wait_ns = 0;
    uint64_t handover_ns = 0;
    uint64_t waits = 0;  // that were looked at
  };

  explicit LockWaits(uint64_t locks) : locks_(locks) {}

  // From now on waits count.
  void begin(uint64_t now_ns) { begin_ns_ = now_ns; }

  // Returns the request's position.
  uint32_t asked(uint64_t lock, uint32_t client, bool exclusive, uint64_t now_ns) {
    std::vector<Request>& requests = locks_[lock].requests;
    requests.push_back({client, 0, exclusive, now_ns});
    uint32_t& position = requests.back().position;
    for (size_t i = 1; i < requests.size(); ++i) {
      position += requests[i].exclusive || requests[i - 1].exclusive ? 1 : 0;
    }
    return position;
  }

  void granted(uint64_t lock, uint32_t client, uint64_t now_ns) {
    Lock& entry = locks_[lock];
    const Request& request = *find(entry, client);
    const bool is_turn = request.exclusive || entry.holding == 0;
    ++entry.holding;
    if (request.position > 0 && request.asked_ns >= begin_ns_) {
      history(entry).waits.push_back({request.position, now_ns - request.asked_ns});
    }
    if (!is_turn) return;
    if (request.asked_ns < entry.turn_ns && entry.turn_ns >= begin_ns_) {
      history(entry).handovers_ns.push_back(now_ns - entry.turn_ns);
    }
    entry.turn_ns = now_ns;
  }

  void released(uint64_t lock, uint32_t client) {
    Lock& entry = locks_[lock];
    --entry.holding;
    entry.requests.erase(find(entry, client));
  }

  // It waits no longer, and will not be granted.
  void withdrew(uint64_t lock, uint32_t client) {
    Lock& entry = locks_[lock];
    entry.requests.erase(find(entry, client));
  }

  // The wait that was longest beside its position.
  Worst worst() {
    Worst found;
    for (Lock& lock : locks_) {
      if (!lock.history || lock.history->handovers_ns.size() < kHandoversMin) continue;
      std::vector<uint64_t>& handovers_ns = lock.history->handovers_ns;
      const auto middle = handovers_ns.begin() + ptrdiff_t(handovers_ns.size() / 2);
      std::nth_element(handovers_ns.begin(), middle, handovers_ns.end());
      const uint64_t handover_ns = std::max<uint64_t>(*middle, 1);
      for (const Wait& wait : lock.history->waits) {
        const double ratio = double(wait.ns) / (double(wait.position) * double(handover_ns));
        ++found.waits;
        if (ratio <= found.ratio) continue;
        found.ratio = ratio;
        found.position = wait.position;
        found.wait_ns = wait.ns;
        found.handover_ns = handover_ns;
      }
    }
    return found;
  }

 private:
  struct Request {
    uint32_t client;
    uint32_t position;
    bool exclusive;
    uint64_t asked_ns;
  };
  struct Wait {
    uint32_t position;
    uint64_t ns;
  };
  struct History {
    std::vector<Wait> waits;
    std::vector<uint64_t> handovers_ns;
  };
  struct Lock {
    std::vector<Request> requests;  // in the order in which they were made, holders among them
    uint32_t holding = 0;
    uint64_t turn_ns = 0;  // the begin of the latest turn
    std::unique_ptr<History> history;
  };

  static std::vector<Request>::iterator find(Lock& lock, uint32_t client) {
    return std::find_if(lock.requests.begin(), lock.requests.end(),
                        [client](const Request& request) { return request.client == client; });
  }
  static History& history(Lock& lock) {
    if (!lock.history) lock.history = std::make_unique<History>();
    return *lock.history;
  }

  std::vector<Lock> locks_;
  uint64_t begin_ns_ = UINT64_MAX;
};

}  // namespace kvstore::sim
