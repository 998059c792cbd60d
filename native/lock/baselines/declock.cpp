// DecLock (arXiv 2505.17641) as its authors released it: cooperative queue-notify locking, with one
// request a compute node, local hand-over bounded by the oldest known remote waiter's timestamp,
// and phase-fair groups of readers ("TS-PF"). Without resets, which its normal running does not
// need: a queue of 32 holds as many compute nodes.
//
//   header  bit 0 reset | 1..6 writers | 7..12 requests | 13..36 head | rest unused here
//   ring    32 entries of 6 bytes: writer 1 | compute node 6 | client 8 | version 19 | timestamp 14

#include <algorithm>
#include <cstring>
#include <deque>
#include <unordered_map>

#include "base/assert.hpp"
#include "lock/baselines/rival.hpp"

namespace kvstore::rivals {
namespace {

constexpr uint64_t kCapacity = 32;
constexpr uint64_t kEntryBytes = 6;
constexpr uint64_t kRingOffset = 8;
constexpr uint64_t kRingBytes = kCapacity * kEntryBytes;
constexpr unsigned kVersionBits = 19;
constexpr unsigned kStampBits = 14;
constexpr uint64_t kStampPeriod = uint64_t{1} << kStampBits;
constexpr unsigned kRereadsMax = 0x2000;

struct Header {
  uint64_t word = 0;
  uint64_t writers() const { return word >> 1 & 0x3f; }
  uint64_t size() const { return word >> 7 & 0x3f; }
  uint64_t head() const { return word >> 13 & 0xffffff; }
};
constexpr uint64_t acquisition(bool exclusive) {
  return exclusive ? 0x82 : 0x80;
}
constexpr uint64_t release_of(bool exclusive) {
  return exclusive ? 0x1f7e : 0x1f80;
}

struct Entry {
  uint64_t word = 0;
  bool exclusive() const { return (word & 1) != 0; }
  uint32_t client() const { return uint32_t(word >> 1 & 0x3fff); }
  uint64_t version() const { return word >> 15 & ((1u << kVersionBits) - 1); }
  uint64_t stamp() const { return word >> 34 & (kStampPeriod - 1); }
  static Entry make(bool exclusive, uint32_t client, uint64_t version, uint64_t stamp) {
    return {uint64_t{exclusive} | uint64_t{client} << 1 | version << 15 | stamp << 34};
  }
};

uint64_t version_of(uint64_t index) {
  return index / kCapacity & ((1u << kVersionBits) - 1);
}

struct Ring {
  uint8_t bytes[kRingBytes];
  Entry at(uint64_t index) const {
    Entry entry;
    std::memcpy(&entry.word, bytes + index % kCapacity * kEntryBytes, kEntryBytes);
    return entry;
  }
  bool is_valid(uint64_t index) const { return at(index).version() == version_of(index); }
  bool is_newer(uint64_t index) const {
    const uint64_t ahead = (at(index).version() - version_of(index)) & ((1u << kVersionBits) - 1);
    return ahead > 0 && ahead < (1u << (kVersionBits - 1));
  }
};

// 0 says that there is none.
uint64_t stamp_now() {
  const uint64_t stamp = monotonic_ns() / 1000 % kStampPeriod;
  return stamp == 0 ? 1 : stamp;
}
bool is_later(uint64_t a, uint64_t b) {
  const uint64_t distance = a > b ? a - b : b - a;
  return distance > kStampPeriod * 9 / 10 ? a < b : a > b;
}

// One lock as the clients of a compute node share it.
struct Local {
  enum class State { kFree, kPending, kShared, kWriterWaits };
  struct Waiter {
    Seat* seat;
    bool exclusive;
    uint64_t stamp;
    bool* woken;
    bool* granted;  // false: is to acquire remotely itself
  };
  State state = State::kFree;
  unsigned holders = 0;
  std::deque<Waiter> waiters;
  uint64_t remote_stamp = 0;  // of the earliest known waiter elsewhere; 0: none
};

class Node final : public Shared {
 public:
  Local& local(uint32_t lock) { return locals_[lock]; }

 private:
  std::unordered_map<uint32_t, Local> locals_;
};

class DecLock final : public Rival {
 public:
  DecLock(Seat& seat, Node& node) : seat_(seat), node_(node) {}

  Task<Status> acquire(uint32_t lock, bool exclusive) override {
    Local& local = node_.local(lock);
    const uint64_t stamp = stamp_now();
    if (local.state == Local::State::kFree) {
      local.state = Local::State::kPending;
      co_return co_await enter(local, lock, exclusive);
    }
    const bool passes = local.remote_stamp == 0 || is_later(local.remote_stamp, stamp);
    if (local.state == Local::State::kShared && !exclusive && passes) {
      ++local.holders;
      co_return Status::kOk;
    }
    bool woken = false;
    bool granted = false;
    seat_.gate.close();
    local.waiters.push_back({&seat_, exclusive, stamp, &woken, &granted});
    if (local.state == Local::State::kShared && exclusive) {
      local.state = Local::State::kWriterWaits;
    }
    if (local.remote_stamp == 0) {
      if (const Status s = co_await look_for_others(local, lock); s != Status::kOk) co_return s;
    }
    while (!woken) {
      co_await seat_.gate;
      seat_.gate.close();
    }
    if (granted) co_return Status::kOk;
    co_return co_await enter(local, lock, exclusive);
  }

  Task<Status> release(uint32_t lock, bool exclusive) override {
    Local& local = node_.local(lock);
    if (--local.holders > 0) co_return Status::kOk;
    if (!local.waiters.empty()) {
      const Local::Waiter next = local.waiters.front();
      const bool passes = local.remote_stamp == 0 || is_later(local.remote_stamp, next.stamp);
      if (exclusive && next.exclusive && passes) {
        local.waiters.pop_front();
        local.holders = 1;
        resume(next, true);
        co_return Status::kOk;
      }
    }
    local.state = Local::State::kPending;
    local.remote_stamp = 0;
    if (const Status s = co_await leave(lock, exclusive); s != Status::kOk) co_return s;
    pass_on(local, exclusive);
    co_return Status::kOk;
  }

  void receive(const Message& message) override {
    granted_ = true;
    granted_stamp_ = message.words[0];
    seat_.gate.open(seat_.executor());
  }

  uint64_t rereads() const override { return rereads_; }

 private:
  // Of another client of the compute node.
  static void resume(const Local::Waiter& waiter, bool granted) {
    *waiter.granted = granted;
    *waiter.woken = true;
    waiter.seat->gate.open(waiter.seat->executor());
    waiter.seat->wake();
  }

  // After the remote release somebody else acquires: another mode's first, else, where two writers
  // could not hand over, a reader before a writer.
  void pass_on(Local& local, bool exclusive) {
    if (local.waiters.empty()) {
      local.state = Local::State::kFree;
      return;
    }
    auto next = local.waiters.begin();
    if (exclusive && next->exclusive) {
      const auto reader = std::find_if(local.waiters.begin(), local.waiters.end(),
                                       [](const Local::Waiter& one) { return !one.exclusive; });
      if (reader != local.waiters.end()) next = reader;
    }
    const Local::Waiter chosen = *next;
    local.waiters.erase(next);
    resume(chosen, false);
  }

  // The remote request of this compute node, then what it means for the others here.
  Task<Status> enter(Local& local, uint32_t lock, bool exclusive) {
    local.remote_stamp = 0;
    granted_stamp_ = 0;
    if (const Status s = co_await queue(lock, exclusive); s != Status::kOk) co_return s;
    local.holders = 1;
    if (granted_stamp_ != 0) local.remote_stamp = granted_stamp_;
    if (exclusive) co_return Status::kOk;
    local.state = Local::State::kShared;
    std::deque<Local::Waiter> writers;
    for (const Local::Waiter& waiter : local.waiters) {
      if (waiter.exclusive) {
        writers.push_back(waiter);
        continue;
      }
      ++local.holders;
      resume(waiter, true);
    }
    local.waiters = std::move(writers);
    if (!local.waiters.empty()) local.state = Local::State::kWriterWaits;
    co_return Status::kOk;
  }

  Task<Status> look_for_others(Local& local, uint32_t lock) {
    struct {
      uint64_t header;
      Ring ring;
    } record;
    kv_op op[1] = {read_op(seat_.offset(lock), &record, kRingOffset + kRingBytes)};
    if (const uint32_t s = co_await seat_.remote(lock).batch(op); s != KV_FABRIC_OK) {
      co_return from_fabric(s);
    }
    const Header header{record.header};
    for (uint64_t i = header.head() + 1; i < header.head() + header.size(); ++i) {
      if (!record.ring.is_valid(i)) continue;
      const uint64_t stamp = record.ring.at(i).stamp();
      if (local.remote_stamp == 0 || is_later(local.remote_stamp, stamp)) {
        local.remote_stamp = stamp;
      }
    }
    co_return Status::kOk;
  }

  Task<Status> queue(uint32_t lock, bool exclusive) {
    granted_ = false;
    seat_.gate.close();
    Remote& remote = seat_.remote(lock);
    kv_op op[1] = {faa_op(seat_.offset(lock), acquisition(exclusive))};
    if (const uint32_t s = co_await remote.batch(op); s != KV_FABRIC_OK) co_return from_fabric(s);
    const Header before{op[0].result};
    KV_ASSERT(before.size() < kCapacity);
    if (before.size() == 0 || (!exclusive && before.writers() == 0)) co_return Status::kOk;
    const uint64_t index = before.head() + before.size();
    const Entry own = Entry::make(exclusive, seat_.number(), version_of(index), stamp_now());
    kv_op write[1] = {write_op(seat_.offset(lock) + kRingOffset + index % kCapacity * kEntryBytes,
                               &own.word, kEntryBytes)};
    if (const uint32_t s = co_await remote.batch(write); s != KV_FABRIC_OK) {
      co_return from_fabric(s);
    }
    while (!granted_) {
      co_await seat_.gate;
      seat_.gate.close();
    }
    co_return Status::kOk;
  }

  Task<Status> leave(uint32_t lock, bool exclusive) {
    Ring ring;
    kv_op ops[2] = {faa_op(seat_.offset(lock), release_of(exclusive)),
                    read_op(seat_.offset(lock) + kRingOffset, &ring, kRingBytes)};
    if (const uint32_t s = co_await seat_.remote(lock).batch(ops); s != KV_FABRIC_OK) {
      co_return from_fabric(s);
    }
    const Header before{ops[0].result};
    if (before.size() == 1) co_return Status::kOk;
    if (exclusive) co_return co_await notify_group(lock, before, ring);
    if (before.writers() == 0) co_return Status::kOk;
    co_return co_await notify_writer(lock, before, ring);
  }

  Task<Status> reread(uint32_t lock, Ring& ring) {
    ++rereads_;
    kv_op op[1] = {read_op(seat_.offset(lock) + kRingOffset, &ring, kRingBytes)};
    co_return from_fabric(co_await seat_.remote(lock).batch(op));
  }

  // After a writer: the writer behind it, or all readers up to the next writer.
  Task<Status> notify_group(uint32_t lock, Header before, Ring& ring) {
    const uint64_t first = before.head() + 1;
    const uint64_t end = before.head() + before.size();
    std::vector<uint32_t> group;
    uint64_t at = first;
    for (; at < end; ++at) {
      for (unsigned tries = 0; !ring.is_valid(at); ++tries) {
        // Here the released code resets the lock.
        if (ring.is_newer(at) || tries == kRereadsMax) co_return Status::kCorrupt;
        if (const Status s = co_await reread(lock, ring); s != Status::kOk) co_return s;
      }
      if (ring.at(at).exclusive() && at > first) break;
      group.push_back(ring.at(at).client());
      if (ring.at(at).exclusive()) {
        ++at;
        break;
      }
    }
    const uint64_t behind = at < end && ring.is_valid(at) ? ring.at(at).stamp() : 0;
    for (const uint32_t client : group) {
      seat_.send(client, {seat_.number(), lock, 0, {behind}});
    }
    co_return Status::kOk;
  }

  // After a reader: the writer right behind it, if that is one.
  Task<Status> notify_writer(uint32_t lock, Header before, Ring& ring) {
    const uint64_t next = before.head() + 1;
    const uint64_t end = before.head() + before.size();
    for (unsigned tries = 0; tries < kRereadsMax; ++tries) {
      if (ring.is_valid(next)) {
        if (!ring.at(next).exclusive()) co_return Status::kOk;
        const bool more = next + 1 < end && ring.is_valid(next + 1);
        const uint64_t behind = more ? ring.at(next + 1).stamp() : 0;
        seat_.send(ring.at(next).client(), {seat_.number(), lock, 0, {behind}});
        co_return Status::kOk;
      }
      uint64_t writers = 0;
      for (uint64_t i = next; i < end; ++i) {
        // Its place has been used again, so it has been served: the released code resets the lock.
        if (ring.is_newer(i)) co_return Status::kOk;
        writers += ring.is_valid(i) && ring.at(i).exclusive() ? 1 : 0;
      }
      if (writers == before.writers()) co_return Status::kOk;  // the next one reads already
      if (const Status s = co_await reread(lock, ring); s != Status::kOk) co_return s;
    }
    co_return Status::kCorrupt;
  }

  Seat& seat_;
  Node& node_;
  bool granted_ = false;
  uint64_t granted_stamp_ = 0;
  uint64_t rereads_ = 0;
};

}  // namespace

const Kind kDecLock = {"declock",
                       "DecLock as released: hierarchical, timestamps, phase-fair",
                       kRingOffset + kRingBytes,
                       0xff,
                       false,
                       true,
                       false,
                       []() -> std::unique_ptr<Shared> { return std::make_unique<Node>(); },
                       [](Seat& seat, Shared* shared) -> std::unique_ptr<Rival> {
                         return std::make_unique<DecLock>(seat, static_cast<Node&>(*shared));
                       }};

}  // namespace kvstore::rivals
