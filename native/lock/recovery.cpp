#include "lock/recovery.hpp"

#include <algorithm>

#include "base/variant.hpp"
#include "coro/clock.hpp"
#include "lock/space.hpp"

namespace kvstore {

using layout::LockHeader;
using layout::LockReset;

namespace {

constexpr uint64_t kPauseNsMin = kMillisecond;
constexpr uint64_t kPauseNsMax = 50 * kMillisecond;
constexpr uint64_t kRosterNs = 100 * kMillisecond;
constexpr unsigned kRacesMax = 16;

bool is_live(const layout::RegistryLine& line, uint32_t registration) {
  return line.registration == registration && line.state == uint64_t(layout::ClientState::kLive);
}

// Whether this client itself holds the lock, by one place while it waits with the other.
bool is_held_here(LocalLock& lock) {
  using Place = LocalLock::Place;
  for (const bool exclusive : {true, false}) {
    const Place place = lock.view(exclusive).place;
    if (place == Place::kHeld || place == Place::kLeaving) return true;
    if (place == Place::kEntryUnknown || place == Place::kLeaveUnknown) return true;
  }
  return false;
}

}  // namespace

Task<Status> read_liveness(Remote& remote, const layout::Geometry& geometry, uint32_t registration,
                           bool& live) {
  layout::RegistryLine line;
  const uint64_t at =
      geometry.registry_offset + registration % layout::kClientsMax * layout::kLineBytes;
  kv_op op[1] = {read_op(at, &line, sizeof line)};
  const uint32_t posted = co_await remote.batch(op);
  live = posted != KV_FABRIC_OK || is_live(line, registration);
  co_return from_fabric(posted);
}

Task<Status> read_reachable(Remote& remote, const layout::Geometry& geometry, uint32_t own,
                            std::vector<uint32_t>& clients) {
  std::vector<layout::RegistryLine> registry(layout::kClientsMax);
  std::vector<layout::PostboxLine> postboxes(layout::kClientsMax);
  kv_op ops[2] = {
      read_op(geometry.registry_offset, registry.data(), layout::kClientsMax * layout::kLineBytes),
      read_op(geometry.postboxes_offset, postboxes.data(),
              layout::kClientsMax * layout::kLineBytes)};
  if (const uint32_t s = co_await remote.batch(ops); s != KV_FABRIC_OK) co_return from_fabric(s);
  for (uint32_t i = 0; i < layout::kClientsMax; ++i) {
    const uint32_t registration = postboxes[i].registration;
    if (registration == 0 || registration == own) continue;
    if (is_live(registry[i], registration)) clients.push_back(registration);
  }
  co_return Status::kOk;
}

LockRecovery::LockRecovery(LockSpace& space, LocalLock& lock, uint64_t head, uint64_t question,
                           bool owner_died)
    : space_(space),
      lock_(lock),
      head_(head),
      question_(question),
      stage_(owner_died ? Stage::kTake : Stage::kAsk),
      pause_ns_(kPauseNsMin) {}

void LockRecovery::told(uint32_t from, const LockMessage& message) {
  const bool answers =
      stage_ == Stage::kAsk && message.kind == LockMessage::kAnswer && message.number == question_;
  const bool is_gone = stage_ == Stage::kAnnounce && message.kind == LockMessage::kGone &&
                       message.number == own_.epoch();
  if (!answers && !is_gone) return;
  held_ |= answers && message.claim == LockMessage::kHolds;
  const uint8_t of = (message.flags & LockMessage::kExclusive) != 0 ? 1 : 2;
  for (Peer& peer : peers_) {
    if (peer.registration == from) peer.told |= is_gone ? kBothPlaces : of;
  }
  if (held_ || all_done()) hurry();
}

bool LockRecovery::all_done() const {
  return std::all_of(peers_.begin(), peers_.end(), [](const Peer& peer) { return peer.done(); });
}

void LockRecovery::pause() {
  due_ns_ = monotonic_ns() + pause_ns_;
  pause_ns_ = std::min(2 * pause_ns_, kPauseNsMax);
}

void LockRecovery::go_to(Stage stage) {
  stage_ = stage;
  pause_ns_ = kPauseNsMin;
  due_ns_ = 0;
}

Task<Status> LockRecovery::advance(Remote& remote, uint64_t deaths) {
  if (deaths != deaths_) roster_due_ns_ = 0;
  deaths_ = deaths;
  due_ns_ = 0;
  while (stage_ != Stage::kOver && due_ns_ == 0) {
    const Status s = co_await step(remote);
    if (s != Status::kOk) {
      // Once connected again, the step is repeated: each looks before it changes anything.
      if (due_ns_ == 0) pause();
      co_return s;
    }
  }
  co_return Status::kOk;
}

Task<Status> LockRecovery::step(Remote& remote) {
  switch (stage_) {
    case Stage::kAsk:
      return ask(remote);
    case Stage::kTake:
      return take(remote);
    case Stage::kBar:
      return bar(remote);
    case Stage::kAnnounce:
      return announce(remote);
    case Stage::kFinish:
      return finish(remote);
    default:
      return clear(remote);
  }
}

// ---- who there is ---------------------------------------------------------------------------

Task<Status> LockRecovery::read_roster(Remote& remote) {
  std::vector<uint32_t> clients;
  const Status s = co_await read_reachable(remote, space_.geometry_, space_.registration_, clients);
  if (s != Status::kOk) co_return s;
  std::vector<Peer> peers;
  for (const uint32_t registration : clients) {
    const auto known = std::find_if(peers_.begin(), peers_.end(), [&](const Peer& peer) {
      return peer.registration == registration;
    });
    peers.push_back({registration, known != peers_.end() ? known->told : uint8_t{0}});
  }
  peers_ = std::move(peers);
  roster_due_ns_ = monotonic_ns() + kRosterNs;
  co_return Status::kOk;
}

Task<Status> LockRecovery::tell(Remote& remote, const LockMessage& message, bool also_done) {
  std::vector<uint32_t> to;
  for (const Peer& peer : peers_) {
    if (also_done || !peer.done()) to.push_back(peer.registration);
  }
  for (const uint32_t registration : to) {
    co_await space_.send(remote, registration, message);
    if (remote.broken()) co_return Status::kNodeUnreachable;
  }
  co_return Status::kOk;
}

Task<Status> LockRecovery::ask(Remote& remote) {
  if (held_ || is_held_here(lock_)) {
    go_to(Stage::kOver);
    co_return Status::kOk;
  }
  if (monotonic_ns() >= roster_due_ns_) {
    if (const Status s = co_await read_roster(remote); s != Status::kOk) co_return s;
  }
  if (all_done()) {
    go_to(Stage::kTake);
    co_return Status::kOk;
  }
  space_.counts_.questions.fetch_add(1, std::memory_order_relaxed);
  pause();
  co_return co_await tell(remote, {LockMessage::kAsk, 0, 0, lock_.number(), question_, 0}, false);
}

// ---- the reset ------------------------------------------------------------------------------

Task<Status> LockRecovery::read_words(Remote& remote, Words& words) {
  static_assert(sizeof(Words) == 16 && layout::kLockResetOffset == 8);
  kv_op op[1] = {read_op(space_.table_.record_offset(lock_.number()), &words, sizeof words)};
  co_return from_fabric(co_await remote.batch(op));
}

Task<Status> LockRecovery::take(Remote& remote) {
  Words words;
  if (const Status s = co_await read_words(remote, words); s != Status::kOk) co_return s;
  const uint32_t owner = words.reset.owner();
  if (owner == space_.registration_) {  // an earlier CAS whose answer was lost
    own_ = words.reset;
    go_to(Stage::kBar);
    co_return Status::kOk;
  }
  bool live = false;
  if (owner != 0) {
    const Status s = co_await read_liveness(remote, space_.geometry_, owner, live);
    if (s != Status::kOk) co_return s;
  }
  // Somebody is at it, or the queue has moved.
  const bool moved = !words.header.resetting() && words.header.head() != head_;
  if ((live && !KV_VARIANT(lock_takes_reset_of_living)) || (moved && owner == 0)) {
    go_to(Stage::kOver);
    co_return Status::kOk;
  }
  const LockReset taken = words.reset.taken_by(space_.registration_);
  const uint64_t at = space_.table_.record_offset(lock_.number()) + layout::kLockResetOffset;
  may_own_ = true;
  kv_op op[1] = {cas_op(at, words.reset.word, taken.word)};
  if (const uint32_t s = co_await remote.batch(op); s != KV_FABRIC_OK) co_return from_fabric(s);
  own_ = taken;
  go_to(op[0].result == words.reset.word ? Stage::kBar : Stage::kOver);
  co_return Status::kOk;
}

Task<Status> LockRecovery::bar(Remote& remote) {
  Words words;
  if (const Status s = co_await read_words(remote, words); s != Status::kOk) co_return s;
  const uint64_t at = space_.table_.record_offset(lock_.number());
  LockHeader header = words.header;
  for (unsigned races = 0; !header.resetting(); ++races) {
    if (header.head() != head_) {
      go_to(Stage::kClear);  // it moves: nobody need be disturbed
      co_return Status::kOk;
    }
    if (races == kRacesMax) {
      pause();
      co_return Status::kOk;
    }
    kv_op op[1] = {cas_op(at, header.word, header.word | LockHeader::kResetting)};
    if (const uint32_t s = co_await remote.batch(op); s != KV_FABRIC_OK) co_return from_fabric(s);
    const bool set = op[0].result == header.word;
    header = LockHeader{set ? header.word | LockHeader::kResetting : op[0].result};
  }
  space_.counts_.resets.fetch_add(1, std::memory_order_relaxed);
  bound_ = header.tail();
  // Whoever can be in the queue had its postbox before the bit was set.
  peers_.clear();
  if (const Status s = co_await read_roster(remote); s != Status::kOk) co_return s;
  gone_here_ = false;
  lock_.reset_announced(space_.registration_, own_.epoch(), bound_);
  go_to(Stage::kAnnounce);
  co_return Status::kOk;
}

Task<Status> LockRecovery::announce(Remote& remote) {
  LocalLock::ResetAnswer answer{};
  if (lock_.take_reset_answer(answer)) gone_here_ = true;
  if (monotonic_ns() >= roster_due_ns_) {
    if (const Status s = co_await read_roster(remote); s != Status::kOk) co_return s;
  }
  if ((all_done() && gone_here_) || KV_VARIANT(lock_reset_waits_for_nobody)) {
    go_to(Stage::kFinish);
    co_return Status::kOk;
  }
  pause();
  co_return co_await tell(remote, {LockMessage::kReset, 0, 0, lock_.number(), own_.epoch(), bound_},
                          false);
}

Task<Status> LockRecovery::finish(Remote& remote) {
  Words words;
  if (const Status s = co_await read_words(remote, words); s != Status::kOk) co_return s;
  const uint64_t at = space_.table_.record_offset(lock_.number());
  LockHeader header = words.header;
  // Void requests still come, each client's once.
  for (unsigned races = 0; header.resetting(); ++races) {
    if (races == kRacesMax) co_return Status::kOk;
    const uint64_t after = KV_VARIANT(lock_reset_rewinds) ? 0 : header.after_reset().word;
    kv_op op[1] = {cas_op(at, header.word, after)};
    if (const uint32_t s = co_await remote.batch(op); s != KV_FABRIC_OK) co_return from_fabric(s);
    if (op[0].result == header.word) break;
    header = LockHeader{op[0].result};
  }
  go_to(Stage::kClear);
  lock_.reset_over();
  co_return co_await tell(remote, {LockMessage::kResetOver, 0, 0, lock_.number(), own_.epoch(), 0},
                          true);
}

Task<Status> LockRecovery::clear(Remote& remote) {
  const uint64_t at = space_.table_.record_offset(lock_.number()) + layout::kLockResetOffset;
  kv_op op[1] = {cas_op(at, own_.word, own_.ended().word)};
  if (const uint32_t s = co_await remote.batch(op); s != KV_FABRIC_OK) co_return from_fabric(s);
  go_to(Stage::kOver);
  co_return Status::kOk;
}

}  // namespace kvstore
