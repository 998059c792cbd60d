// Virtual time: events in the order of their instants. One seed decides everything that chance
// decides, the order of events of one instant too, so a seed is a history.
//
// One thread. What an event refers to outlives the event, or the schedule is not run any more.

#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "base/assert.hpp"

namespace kvstore::sim {

// SplitMix64: every seed is as good as any other, and neighbours have nothing in common.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  uint64_t next() {
    uint64_t word = state_ += 0x9e3779b97f4a7c15ull;
    word = (word ^ (word >> 30)) * 0xbf58476d1ce4e5b9ull;
    word = (word ^ (word >> 27)) * 0x94d049bb133111ebull;
    return word ^ (word >> 31);
  }
  // 0 .. bound - 1; `bound` is at least 1.
  uint64_t below(uint64_t bound) {
    KV_ASSERT(bound > 0);
    return uint64_t((static_cast<unsigned __int128>(next()) * bound) >> 64);
  }
  // Of a million.
  bool chance(uint64_t per_million) { return per_million > 0 && below(1'000'000) < per_million; }

 private:
  uint64_t state_;
};

// What happens at an instant. `argument` is the one that was given with it.
class Timed {
 public:
  virtual void fire(uint64_t argument) = 0;

 protected:
  ~Timed() = default;
};

// Events, the soonest first. Four children a place: half as many levels as with two, and the
// children of a place lie together.
class EventHeap {
 public:
  struct Event {
    uint64_t when_ns;
    uint64_t tie;
    Timed* target;
    uint64_t argument;
    bool before(const Event& other) const {
      return when_ns != other.when_ns ? when_ns < other.when_ns : tie < other.tie;
    }
  };

  bool empty() const { return events_.empty(); }
  uint64_t soonest_ns() const { return events_.front().when_ns; }

  void push(const Event& event) {
    size_t hole = events_.size();
    events_.push_back(event);
    while (hole > 0) {
      const size_t parent = (hole - 1) / kChildren;
      if (!event.before(events_[parent])) break;
      events_[hole] = events_[parent];
      hole = parent;
    }
    events_[hole] = event;
  }
  Event pop() {
    const Event soonest = events_.front();
    const Event last = events_.back();
    events_.pop_back();
    if (!events_.empty()) sink(last);
    return soonest;
  }

 private:
  static constexpr size_t kChildren = 4;

  // Puts the event in the place of the first one.
  void sink(const Event& event) {
    size_t hole = 0;
    while (true) {
      const size_t first = hole * kChildren + 1;
      if (first >= events_.size()) break;
      size_t best = first;
      const size_t end = std::min(first + kChildren, events_.size());
      for (size_t child = first + 1; child < end; ++child) {
        if (events_[child].before(events_[best])) best = child;
      }
      if (!events_[best].before(event)) break;
      events_[hole] = events_[best];
      hole = best;
    }
    events_[hole] = event;
  }

  std::vector<Event> events_;
};

// Told of what happens, for a readable account of one seed. Telling changes nothing in the world.
// `key` is the one that it concerns, kEveryKey for what is not of one key.
inline constexpr uint64_t kEveryKey = UINT64_MAX;
using Trace = std::function<void(uint64_t now_ns, uint64_t key, const std::string& line)>;

class Schedule {
 public:
  // Leases and deadlines are differences: the beginning may be anything but 0, which means "never".
  static constexpr uint64_t kBeginNs = 1'000'000'000;

  explicit Schedule(uint64_t seed) : random_(seed) {}
  Schedule(const Schedule&) = delete;
  Schedule& operator=(const Schedule&) = delete;

  uint64_t now_ns() const { return now_ns_; }
  uint64_t events() const { return events_; }
  Random& random() { return random_; }

  void set_trace(Trace trace) { trace_ = std::move(trace); }
  bool traced() const { return bool(trace_); }
  // `line` returns the text; it is called only where somebody listens.
  template <class Line>
  void tell(uint64_t key, Line&& line) {
    if (trace_) trace_(now_ns_, key, line());
  }

  void at(uint64_t when_ns, Timed& target, uint64_t argument) {
    KV_ASSERT(when_ns >= now_ns_);
    queue_.push({when_ns, random_.next(), &target, argument});
  }
  void after(uint64_t delay_ns, Timed& target, uint64_t argument) {
    at(now_ns_ + delay_ns, target, argument);
  }

  // Goes on to `when_ns` without an event, if nothing else happens until then.
  bool advance(uint64_t when_ns) {
    if (when_ns >= next_ns()) return false;
    KV_ASSERT(when_ns >= now_ns_);
    now_ns_ = when_ns;
    ++events_;
    return true;
  }

  // Moves on to the next event and lets it happen. False if there is none.
  bool run_next() {
    if (queue_.empty()) return false;
    const EventHeap::Event event = queue_.pop();
    now_ns_ = event.when_ns;
    ++events_;
    event.target->fire(event.argument);
    return true;
  }
  // UINT64_MAX if there is none.
  uint64_t next_ns() const { return queue_.empty() ? UINT64_MAX : queue_.soonest_ns(); }

 private:
  EventHeap queue_;
  uint64_t now_ns_ = kBeginNs;
  uint64_t events_ = 0;
  Random random_;
  Trace trace_;
};

}  // namespace kvstore::sim
