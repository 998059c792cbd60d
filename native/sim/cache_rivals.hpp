// Two other ways to have copies of values in compute nodes, for experiments beside the store's.
//
// `lease`: a copy is read for a fixed time after it was made. Nobody is told of writes, so what is
// read may be old.
//
// `central`: a manager knows who has which copies. Who makes a copy asks it before reading the
// value; a writer asks it before writing, which has it end all copies and keeps new ones from being
// made until no writer is left. Writers of one key go on side by side, as without copies: the store
// decides among them. The manager handles messages one after another, at a fixed rate.
//
// Both judge what is worth a copy as the store's own cache does, and make one copy at a time.

#pragma once

#include <cstdint>
#include <functional>
#include <unordered_map>
#include <vector>

#include "cache/interest.hpp"
#include "fabric/sim/mail.hpp"
#include "fabric/sim/schedule.hpp"

namespace kvstore::sim {

// The copies of one compute node, of both kinds. Everything fits.
class RivalCopies {
 public:
  // The number of the value that is copied, if there is a copy that may be read now.
  bool find(uint64_t key, uint64_t now_ns, uint64_t& number) const;
  // Whether a key that has no copy is to be read for one now; then `put` or `abandon` follows.
  bool begin(uint64_t key);
  // Every value that is read from the node: what changes often is not worth a copy.
  void seen(uint64_t key, uint64_t number);
  // To be noted before the value is read; `put` then knows whether a writer came meanwhile.
  uint64_t era(uint64_t key) const;
  void put(uint64_t key, uint64_t era, uint64_t number, uint64_t until_ns);
  void abandon(uint64_t key);
  void drop(uint64_t key);

 private:
  static constexpr uint32_t kUsesThatPay = 4;
  struct Copy {
    uint64_t number = 0;    // of the value that was seen last
    uint64_t until_ns = 0;  // 0: none
    uint64_t era = 0;
    bool begun = false;
    mutable uint32_t uses = 0;
  };
  static uint64_t hash_of(uint64_t key) { return (key + 1) * 0xd6e8feb86659fd93ull; }

  Interest interest_;
  std::unordered_map<uint64_t, Copy> copies_;
};

class CopyManager final : public Timed {
 public:
  // Who asks: a lane of a compute node.
  struct Asker {
    uint32_t compute_node = 0;
    uint32_t lane = 0;
  };
  // `answered(asker, granted)`: on the asker's host. `drop(compute_node, key)`: likewise.
  CopyManager(Schedule& schedule, const MailTiming& mail, uint64_t messages_per_s,
              std::function<void(Asker, bool)> answered,
              std::function<void(uint32_t, uint64_t)> drop);

  // May these keys be copied? Answered with yes if no writer has one of them.
  void ask_to_copy(Asker asker, const std::vector<uint64_t>& keys);
  // Answered once there are no copies, and none can be made until `written`.
  void ask_to_write(Asker asker, uint64_t key);
  void written(Asker asker, uint64_t key);

  uint64_t messages() const { return messages_; }
  uint64_t invalidations() const { return invalidations_; }

  void fire(uint64_t number) override;

 private:
  enum class Kind { kCopy, kWrite, kWritten, kDropped, kAnswer, kDrop };
  enum class Stage { kOnItsWay, kHandled };
  struct Parcel {
    Kind kind = Kind::kCopy;
    Stage stage = Stage::kOnItsWay;
    Asker asker;
    std::vector<uint64_t> keys;
    bool granted = false;
  };
  struct Line {
    uint64_t owners = 0;   // a bit for each compute node
    unsigned writing = 0;  // writers that were granted, and are not done
    unsigned awaited = 0;  // answers of owners
    std::vector<Asker> waiting;
  };

  void to_manager(Parcel parcel);
  void from_manager(Parcel parcel);
  uint64_t delay_ns();
  uint64_t handled_at();
  void schedule_parcel(uint64_t when_ns, Parcel parcel);
  void handle(const Parcel& parcel);
  void begin_write(uint64_t key, Line& line);
  void grant(Line& line);

  Schedule& schedule_;
  const MailTiming mail_;
  const uint64_t service_ns_;
  const std::function<void(Asker, bool)> answered_;
  const std::function<void(uint32_t, uint64_t)> drop_;
  std::unordered_map<uint64_t, Line> lines_;
  std::vector<Parcel> parcels_;
  std::vector<uint64_t> free_;
  uint64_t free_at_ns_ = 0;
  uint64_t messages_ = 0;
  uint64_t invalidations_ = 0;
};

}  // namespace kvstore::sim
