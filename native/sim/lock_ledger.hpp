// Who holds which lock, as it was told to them: what the lock protocol is held against.

#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

namespace kvstore::sim {

class LockLedger {
 public:
  explicit LockLedger(unsigned locks) : locks_(locks) {}

  struct Holder {
    uint32_t client;
    uint32_t worker;
    bool exclusive;
  };

  void granted(unsigned lock, const Holder& holder, uint64_t token) {
    Lock& entry = locks_[lock];
    for (const Holder& other : entry.holders) {
      if (holder.exclusive || other.exclusive) {
        violate("lock " + std::to_string(lock) + ": " + name(holder) + " holds it beside " +
                name(other));
      }
    }
    const uint64_t least = holder.exclusive ? entry.token : entry.writer_token;
    if (token <= least) {
      violate("lock " + std::to_string(lock) + ": " + name(holder) + " has token " +
              std::to_string(token) + " after " + std::to_string(least));
    }
    entry.token = std::max(entry.token, token);
    if (holder.exclusive) entry.writer_token = std::max(entry.writer_token, token);
    entry.holders.push_back(holder);
  }
  void released(unsigned lock, uint32_t client, uint32_t worker) {
    std::erase_if(locks_[lock].holders, [&](const Holder& holder) {
      return holder.client == client && holder.worker == worker;
    });
  }
  // Nothing that it does counts any more.
  void fenced(uint32_t client) {
    for (Lock& lock : locks_) {
      std::erase_if(lock.holders, [&](const Holder& holder) { return holder.client == client; });
    }
  }
  bool holds(uint32_t client) const {
    return std::any_of(locks_.begin(), locks_.end(), [&](const Lock& lock) {
      return std::any_of(lock.holders.begin(), lock.holders.end(),
                         [&](const Holder& holder) { return holder.client == client; });
    });
  }
  void violate(const std::string& what) {
    if (violation_.empty()) violation_ = what;
  }
  const std::string& violation() const { return violation_; }

 private:
  struct Lock {
    std::vector<Holder> holders;
    uint64_t token = 0;         // the highest so far
    uint64_t writer_token = 0;  // of writers
  };

  static std::string name(const Holder& holder) {
    return (holder.exclusive ? "writer " : "reader ") + std::to_string(holder.client) + "/" +
           std::to_string(holder.worker);
  }

  std::vector<Lock> locks_;
  std::string violation_;
};

}  // namespace kvstore::sim
