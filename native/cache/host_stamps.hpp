// How the clients of one host end each other's copies without a message: stamps in memory that they
// share. A copy keeps the stamp of its key from before it was made, and may be read while the stamp
// is still the same; whoever is about to replace the value renews the stamp, and at that moment no
// client of the host can read a copy from before.
//
// A value of which nobody but clients of this host has a copy, its slot being `hosted`, is replaced
// by one CAS: its writer opens the stamp before, closes it after, and under an open stamp no copy
// is made. Whose a hosted slot is, is known by the versions of the objects that this host's clients
// made hosted: no version is ever given twice.
//
// Beside the stamp stands where the writer is about to put the value: a hint for the next read. The
// value itself may come after it (`cache/handed_values.hpp`).
//
// The memory is a file in /dev/shm for each incarnation of a node and each user. Zeros are what it
// begins with, no stamp recurs, and nothing in it is ever locked, so a client may die at any
// moment. Clients that share no such file, for whatever reason, send each other messages.
//
// Keys share stamps: then a copy ends for nothing. One that is open when its writer dies, leaves,
// or is given up by the node stays open: clients of this host make no more copies of its keys.

#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <iterator>
#include <memory>

#include "base/variant.hpp"
#include "cache/handed_values.hpp"
#include "layout/layout.hpp"

namespace kvstore {

// What a slot is about to hold; it may have come to nothing.
struct Successor {
  uint64_t slot = 0;  // the word
  uint64_t value_bytes = 0;
};

struct alignas(32) StampLine {
  std::atomic<uint64_t> stamp;
  // Of the key whose writer renewed it last. Two at once may mix theirs.
  std::atomic<uint64_t> hash;
  std::atomic<uint64_t> slot;
  std::atomic<uint64_t> value_bytes;
};

// A key's stamp as it was at some moment.
struct Stamp {
  const StampLine* line = nullptr;  // null: nobody renews it
  uint64_t value = 0;

  // In the highest bits: how many writers have opened it.
  static constexpr uint64_t kOneWriter = uint64_t{1} << 48;

  bool is_open() const { return value >= kOneWriter; }
  uint64_t now() const { return line->stamp.load(std::memory_order_acquire); }
  bool is_current() const { return line == nullptr || now() == value; }
  // Where the key is now, as far as the last writer of this host knows.
  bool read_successor(uint64_t hash, Successor& successor) const {
    if (line == nullptr || line->hash.load(std::memory_order_relaxed) != hash) return false;
    successor.slot = line->slot.load(std::memory_order_relaxed);
    successor.value_bytes = line->value_bytes.load(std::memory_order_relaxed);
    return true;
  }
};

class HostStamps {
 public:
  // Shares the file of this incarnation with this user's other clients; null if that can't be.
  static std::shared_ptr<HostStamps> open(uint64_t incarnation);
  // In memory of this process alone.
  HostStamps();
  ~HostStamps();
  HostStamps(const HostStamps&) = delete;
  HostStamps& operator=(const HostStamps&) = delete;

  uint64_t incarnation() const { return incarnation_; }

  // From here on all copies of this client carry stamps.
  void join(uint32_t registration) {
    member(registration).store(registration, std::memory_order_release);
    table_->groups.fetch_or(uint64_t{1} << layout::owner_group(registration));
  }
  // Whether all these groups of owners have members that are, or were, clients of this host.
  bool knows(uint64_t groups) const {
    return (groups & ~table_->groups.load(std::memory_order_relaxed)) == 0;
  }
  // Whether it is a client of this host whose copies carry stamps.
  bool has(uint32_t registration) const {
    return member(registration).load(std::memory_order_acquire) == registration;
  }

  Stamp stamp_of(uint64_t hash) const {
    const StampLine& line = line_of(hash);
    return {&line, line.stamp.load(std::memory_order_acquire)};
  }
  // Ends every copy with an earlier stamp; a copy of what is written next may carry this one.
  Stamp renew(uint64_t hash, const Successor& successor) { return change(hash, successor, 1); }
  // The same, and until `end_write` no copy is made.
  Stamp begin_write(uint64_t hash, const Successor& successor) {
    return change(hash, successor, Stamp::kOneWriter);
  }
  // Once the value has been replaced, or can't be any more. A copy of what was written may carry
  // the stamp that it returns, which is still open if anybody else has changed it meanwhile.
  Stamp end_write(uint64_t hash, const Stamp& opened) {
    constexpr uint64_t kChange = 1 - Stamp::kOneWriter;
    StampLine& line = line_of(hash);
    const uint64_t before = line.stamp.fetch_add(kChange, std::memory_order_seq_cst);
    const bool alone = before == opened.value || KV_VARIANT(hosted_follows_any);
    return {&line, alone ? before + kChange : opened.value};
  }

  // The version of the object of this key that clients of this host alone may have copies of, as
  // its slot says; 0: none is known.
  uint64_t hosted_version(uint64_t hash) const {
    return table_->hosted[number_of(hash)].load(std::memory_order_acquire);
  }
  // A client of this host has made the slot hosted that leads to this version.
  void note_hosted(uint64_t hash, uint64_t version) {
    table_->hosted[number_of(hash)].store(version, std::memory_order_release);
  }
  // It was not the version that a hosted slot led to.
  void forget_hosted(uint64_t hash, uint64_t version) {
    table_->hosted[number_of(hash)].compare_exchange_strong(version, 0);
  }
  // Whether the stamp is one of this table's. One that was never renewed ended no copy, so there is
  // nobody to hand a value to.
  bool may_hand(uint64_t hash, const Stamp& stamp) const {
    return stamp.line == &line_of(hash) && stamp.value != 0;
  }
  HandedValues& handed() { return table_->handed; }
  uint64_t count_open() const {
    const auto is_open = [](const StampLine& line) {
      return Stamp{&line, line.stamp.load(std::memory_order_relaxed)}.is_open();
    };
    return uint64_t(std::count_if(std::begin(table_->lines), std::end(table_->lines), is_open));
  }

 private:
  static constexpr unsigned kStampBits = 16;
  struct Table {
    StampLine lines[1 << kStampBits];
    std::atomic<uint64_t> hosted[1 << kStampBits];
    alignas(64) std::atomic<uint64_t> groups;  // of all that ever joined
    alignas(64) std::atomic<uint32_t> members[layout::kClientsMax];
    HandedValues handed;
  };
  static_assert(std::atomic<uint64_t>::is_always_lock_free);

  HostStamps(Table* table, int descriptor, uint64_t incarnation)
      : table_(table), descriptor_(descriptor), incarnation_(incarnation) {}

  Stamp change(uint64_t hash, const Successor& successor, uint64_t by) {
    StampLine& line = line_of(hash);
    line.hash.store(hash, std::memory_order_relaxed);
    line.slot.store(successor.slot, std::memory_order_relaxed);
    line.value_bytes.store(successor.value_bytes, std::memory_order_relaxed);
    return {&line, line.stamp.fetch_add(by, std::memory_order_seq_cst) + by};
  }
  static uint64_t number_of(uint64_t hash) {
    return hash * 0x9e3779b97f4a7c15ull >> (64 - kStampBits);
  }
  StampLine& line_of(uint64_t hash) const { return table_->lines[number_of(hash)]; }
  std::atomic<uint32_t>& member(uint32_t registration) const {
    return table_->members[registration % layout::kClientsMax];
  }

  std::unique_ptr<Table> own_;
  Table* table_;
  int descriptor_ = -1;  // of the file, locked for sharing while this client uses it
  uint64_t incarnation_ = 0;
};

}  // namespace kvstore
