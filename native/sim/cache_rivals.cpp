#include "sim/cache_rivals.hpp"

#include <algorithm>
#include <utility>

#include "base/assert.hpp"
#include "coro/clock.hpp"

namespace kvstore::sim {

bool RivalCopies::find(uint64_t key, uint64_t now_ns, uint64_t& number) const {
  const auto found = copies_.find(key);
  if (found == copies_.end() || found->second.until_ns <= now_ns) return false;
  number = found->second.number;
  ++found->second.uses;
  return true;
}

uint64_t RivalCopies::era(uint64_t key) const {
  const auto found = copies_.find(key);
  return found == copies_.end() ? 0 : found->second.era;
}

bool RivalCopies::begin(uint64_t key) {
  Copy& copy = copies_[key];
  if (copy.begun || !interest_.read(hash_of(key), kUsesThatPay)) return false;
  copy.begun = true;
  return true;
}

void RivalCopies::seen(uint64_t key, uint64_t number) {
  Copy& copy = copies_[key];
  if (copy.number == number) {
    interest_.unchanged(hash_of(key), kUsesThatPay);
  } else {
    interest_.changed(hash_of(key), kUsesThatPay);
  }
  copy.number = number;
}

void RivalCopies::put(uint64_t key, uint64_t era, uint64_t number, uint64_t until_ns) {
  Copy& copy = copies_[key];
  if (copy.era != era) {
    abandon(key);
    return;
  }
  copy.begun = false;
  copy.number = number;
  copy.until_ns = until_ns;
  copy.uses = 0;
}

void RivalCopies::abandon(uint64_t key) {
  copies_[key].begun = false;
  interest_.taken(hash_of(key), 0, kUsesThatPay);
}

void RivalCopies::drop(uint64_t key) {
  Copy& copy = copies_[key];
  if (copy.until_ns != 0) interest_.taken(hash_of(key), copy.uses, kUsesThatPay);
  copy.until_ns = 0;
  ++copy.era;
}

CopyManager::CopyManager(Schedule& schedule, const MailTiming& mail, uint64_t messages_per_s,
                         std::function<void(Asker, bool)> answered,
                         std::function<void(uint32_t, uint64_t)> drop)
    : schedule_(schedule),
      mail_(mail),
      service_ns_(kSecond / messages_per_s),
      answered_(std::move(answered)),
      drop_(std::move(drop)) {}

void CopyManager::ask_to_copy(Asker asker, const std::vector<uint64_t>& keys) {
  to_manager({Kind::kCopy, Stage::kOnItsWay, asker, keys, false});
}

void CopyManager::ask_to_write(Asker asker, uint64_t key) {
  to_manager({Kind::kWrite, Stage::kOnItsWay, asker, {key}, false});
}

void CopyManager::written(Asker asker, uint64_t key) {
  to_manager({Kind::kWritten, Stage::kOnItsWay, asker, {key}, false});
}

uint64_t CopyManager::delay_ns() {
  return mail_.delay_ns_min + schedule_.random().below(mail_.delay_ns_spread + 1);
}

// Messages that come and messages that go take the manager's time alike.
uint64_t CopyManager::handled_at() {
  ++messages_;
  free_at_ns_ = std::max(free_at_ns_, schedule_.now_ns()) + service_ns_;
  return free_at_ns_;
}

void CopyManager::schedule_parcel(uint64_t when_ns, Parcel parcel) {
  uint64_t number = parcels_.size();
  if (free_.empty()) {
    parcels_.push_back(std::move(parcel));
  } else {
    number = free_.back();
    free_.pop_back();
    parcels_[number] = std::move(parcel);
  }
  schedule_.at(when_ns, *this, number);
}

void CopyManager::to_manager(Parcel parcel) {
  schedule_parcel(schedule_.now_ns() + delay_ns(), std::move(parcel));
}

void CopyManager::from_manager(Parcel parcel) {
  schedule_parcel(handled_at() + delay_ns(), std::move(parcel));
}

void CopyManager::fire(uint64_t number) {
  Parcel parcel = std::move(parcels_[number]);
  free_.push_back(number);
  if (parcel.kind == Kind::kAnswer) {
    answered_(parcel.asker, parcel.granted);
  } else if (parcel.kind == Kind::kDrop) {
    drop_(parcel.asker.compute_node, parcel.keys[0]);
    parcel.kind = Kind::kDropped;
    to_manager(std::move(parcel));
  } else if (parcel.stage == Stage::kOnItsWay) {
    parcel.stage = Stage::kHandled;
    schedule_parcel(handled_at(), std::move(parcel));
  } else {
    handle(parcel);
  }
}

void CopyManager::handle(const Parcel& parcel) {
  const uint64_t own = uint64_t{1} << parcel.asker.compute_node;
  if (parcel.kind == Kind::kCopy) {
    bool granted = true;
    for (const uint64_t key : parcel.keys) {
      const Line& line = lines_[key];
      granted &= line.writing == 0 && line.waiting.empty();
    }
    if (granted) {
      for (const uint64_t key : parcel.keys) lines_[key].owners |= own;
    }
    from_manager({Kind::kAnswer, Stage::kOnItsWay, parcel.asker, {}, granted});
    return;
  }
  const uint64_t key = parcel.keys[0];
  Line& line = lines_[key];
  switch (parcel.kind) {
    case Kind::kWrite:
      line.waiting.push_back(parcel.asker);
      begin_write(key, line);
      return;
    case Kind::kWritten:
      KV_ASSERT(line.writing > 0);
      --line.writing;
      return;
    default:
      KV_ASSERT(parcel.kind == Kind::kDropped && line.awaited > 0);
      if (--line.awaited == 0) grant(line);
  }
}

// Other lanes of the writer's compute node may have copies as well.
void CopyManager::begin_write(uint64_t key, Line& line) {
  for (uint32_t node = 0; node < 64 && line.owners >> node != 0; ++node) {
    if ((line.owners >> node & 1) == 0) continue;
    ++line.awaited;
    ++invalidations_;
    from_manager({Kind::kDrop, Stage::kOnItsWay, {node, 0}, {key}, false});
  }
  line.owners = 0;
  if (line.awaited == 0) grant(line);
}

void CopyManager::grant(Line& line) {
  for (const Asker& writer : line.waiting) {
    from_manager({Kind::kAnswer, Stage::kOnItsWay, writer, {}, true});
    ++line.writing;
  }
  line.waiting.clear();
}

}  // namespace kvstore::sim
