#include "lock/case.hpp"

#include <algorithm>
#include <cstring>
#include <vector>

#include "base/variant.hpp"
#include "lock/space.hpp"

namespace kvstore {

using layout::LockEntry;
using layout::LockHeader;
using layout::LockReset;
using Place = LocalLock::Place;

namespace {

constexpr uint64_t kLookNsMax = 100 * kMillisecond;
constexpr uint64_t kRoomLookNs = LocalLock::kRoomLookNs;
constexpr uint64_t kRoomLookNsMax = 5 * kMillisecond;
constexpr uint64_t kBarLookNs = kMillisecond;
constexpr uint64_t kBarLookNsMax = 20 * kMillisecond;
constexpr uint64_t kFencedLookNs = kMillisecond;
// After a head has stood still for so long, its holder is asked after: again and again, ever more
// seldom, and at once when a client has died.
constexpr uint64_t kQuestionNs = 100 * kMillisecond;
constexpr uint64_t kQuestionNsMax = 10 * kSecond;

// A whole record as one READ brings it: each word at some time during the READ.
struct Record {
  std::vector<uint64_t> words;

  LockHeader header() const { return LockHeader{words[0]}; }
  LockReset reset() const { return LockReset{words[layout::kLockResetOffset / 8]}; }
  LockEntry entry(const layout::LockTableShape& shape, uint64_t index) const {
    return LockEntry{words[shape.entry_offset(index) / 8]};
  }
};

// Whether the request at `index` holds the lock, whatever messages say. A writer does when all
// before it have left, each of which moved the head by one. A reader does when no writer is left
// before it: if there are writers in the queue, all of them must be seen behind it. What an entry
// of the right lap says of its index is true for ever, so it does not matter when in the READ each
// word was read; only writers behind the header's tail must not count.
bool is_granted(const Record& record, const layout::LockTableShape& shape, uint64_t index,
                bool exclusive) {
  const LockHeader header = record.header();
  if (header.head() + (KV_VARIANT(lock_looks_one_ahead) ? 1 : 0) >= index) return true;
  if (exclusive || index >= header.tail()) return false;
  uint64_t writers = 0;
  const uint64_t end = std::min(header.tail(), index + shape.ring_capacity);
  for (uint64_t other = index + 1; other < end; ++other) {
    const LockEntry entry = record.entry(shape, other);
    writers += entry.is_of_lap(shape.lap_of(other)) && entry.exclusive() ? 1 : 0;
  }
  return writers == header.exclusive() || KV_VARIANT(lock_readers_help_themselves);
}

}  // namespace

void LockCase::told(uint32_t from, const LockMessage& message) {
  if (!recovery_) return;
  recovery_->told(from, message);
  if (recovery_->due_ns() < due_ns_) space_.attend(lock_, recovery_->due_ns());
}

Task<Status> LockCase::say_gone(Remote& remote) {
  LocalLock::ResetAnswer answer{};
  if (!lock_.take_reset_answer(answer)) co_return Status::kOk;
  if (answer.owner == space_.registration()) {
    if (recovery_) recovery_->gone_here();
    if (recovery_) recovery_->hurry();
    co_return Status::kOk;
  }
  co_return co_await space_.send(remote, answer.owner,
                                 {LockMessage::kGone, 0, 0, lock_.number(), answer.epoch, 0});
}

void LockCase::look_again(Watch& watch, uint64_t pause_ns_max) {
  watch.pause_ns = std::min(watch.pause_ns, pause_ns_max);
  due_ns_ = std::min(due_ns_, monotonic_ns() + watch.pause_ns);
  watch.pause_ns = std::min(watch.pause_ns + watch.pause_ns / 2, pause_ns_max);
}

void LockCase::note_progress(Watch& watch, uint64_t index, uint64_t head, uint64_t deaths) {
  const uint64_t now_ns = monotonic_ns();
  if (index != watch.index) {
    watch.index = index;
    watch.head = UINT64_MAX;
    watch.pause_ns = kFirstLookNs;
  }
  if (head != watch.head) {
    watch.head = head;
    watch.head_since_ns = now_ns;
    watch.question_pause_ns = kQuestionNs;
    watch.question_due_ns = now_ns + kQuestionNs;
    watch.deaths = deaths;
  }
  if (deaths != watch.deaths) {
    watch.deaths = deaths;
    watch.question_due_ns = now_ns;
  }
}

void LockCase::recover(Watch& watch, uint64_t head, bool owner_died) {
  if (recovery_) return;
  const uint64_t question = space_.next_question_++;
  recovery_ = std::make_unique<LockRecovery>(space_, lock_, head, question, owner_died);
  watch.question_due_ns = monotonic_ns() + watch.question_pause_ns;
  watch.question_pause_ns = std::min(2 * watch.question_pause_ns, kQuestionNsMax);
}

Task<Status> LockCase::write_entry(Remote& remote, bool exclusive, const LocalLock::View& view) {
  const layout::LockTableShape& shape = space_.table().shape();
  const LockEntry own = LockEntry::make(exclusive, space_.registration(), shape.lap_of(view.index));
  const uint64_t at = space_.table().record_offset(lock_.number()) + shape.entry_offset(view.index);
  kv_op op[1] = {write_op(at, &own.word, 8)};
  const uint32_t posted = co_await remote.batch(op);
  if (posted == KV_FABRIC_OK) lock_.entry_written(view.index);
  co_return from_fabric(posted);
}

Task<Status> LockCase::look(Remote& remote, Watch& watch, const LocalLock::View& view,
                            uint64_t deaths) {
  const layout::LockTableShape& shape = space_.table().shape();
  if (view.index != watch.index) {
    // The first look comes a while after the request.
    note_progress(watch, view.index, UINT64_MAX - 1, deaths);
    if (view.entry_written) {
      look_again(watch, kLookNsMax);
      co_return Status::kOk;
    }
  }
  Record record{std::vector<uint64_t>(shape.read_bytes() / 8)};
  kv_op op[1] = {read_op(space_.table().record_offset(lock_.number()), record.words.data(),
                         shape.read_bytes())};
  if (const uint32_t s = co_await remote.batch(op); s != KV_FABRIC_OK) co_return from_fabric(s);
  space_.counts_.looks.fetch_add(1, std::memory_order_relaxed);
  const LockHeader header = record.header();
  if (header.resetting()) co_return co_await look_behind_bar(remote, watch);
  if (is_granted(record, shape, view.index, watch.exclusive)) {
    space_.counts_.found_by_look.fetch_add(1, std::memory_order_relaxed);
    lock_.granted(view.index);
    co_return Status::kOk;
  }
  note_progress(watch, view.index, header.head(), deaths);
  const bool has_room = view.index < header.head() + shape.ring_capacity;
  if (!view.entry_written && has_room) {
    if (const Status s = co_await write_entry(remote, watch.exclusive, view); s != Status::kOk)
      co_return s;
  }
  if (monotonic_ns() >= watch.question_due_ns) recover(watch, header.head(), false);
  if (!view.entry_written)
    watch.pause_ns = std::min(watch.pause_ns, has_room ? kFirstLookNs : kRoomLookNs);
  look_again(watch, view.entry_written || has_room ? kLookNsMax : kRoomLookNsMax);
  co_return Status::kOk;
}

// Waits for the end of a reset, and takes it up if its owner has died.
Task<Status> LockCase::look_behind_bar(Remote& remote, Watch& watch) {
  uint64_t words[2];
  kv_op op[1] = {read_op(space_.table().record_offset(lock_.number()), words, sizeof words)};
  if (const uint32_t s = co_await remote.batch(op); s != KV_FABRIC_OK) co_return from_fabric(s);
  const LockHeader header{words[0]};
  if (!header.resetting()) {
    watch.pause_ns = kBarLookNs;
    lock_.reset_over();
    look_again(watch, kBarLookNsMax);
    co_return Status::kOk;
  }
  const uint32_t owner = LockReset{words[1]}.owner();
  bool live = false;
  if (owner != 0) {
    const Status s = co_await read_liveness(remote, space_.geometry_, owner, live);
    if (s != Status::kOk) co_return s;
  }
  if (!live && !KV_VARIANT(lock_orphans_resets)) recover(watch, header.head(), true);
  watch.pause_ns = std::max(std::min(watch.pause_ns, kBarLookNsMax), kBarLookNs);
  look_again(watch, kBarLookNsMax);
  co_return Status::kOk;
}

// What a broken connection left open. A writer's release is the only thing that moves the head past
// its index. A request whose index is not known, and a reader's release, can't be told apart from
// others': at worst a place is left that nobody has, and those who wait for it reset the lock.
Task<Status> LockCase::resolve(Remote& remote, bool exclusive, const LocalLock::View& view) {
  bool still_held = false;
  if (view.place == Place::kLeaveUnknown && exclusive) {
    uint64_t word = 0;
    kv_op op[1] = {read_op(space_.table().record_offset(lock_.number()), &word, 8)};
    if (const uint32_t s = co_await remote.batch(op); s != KV_FABRIC_OK) co_return from_fabric(s);
    still_held = LockHeader{word}.head() == view.index;
  }
  lock_.resolved(exclusive, still_held);
  due_ns_ = 0;
  co_return Status::kOk;
}

Task<Status> LockCase::tend_place(Remote& remote, Watch& watch, bool fenced, uint64_t deaths) {
  const LocalLock::View view = lock_.view(watch.exclusive);
  const bool unknown = view.place == Place::kEntryUnknown || view.place == Place::kLeaveUnknown;
  const bool waits = view.place == Place::kQueued || view.place == Place::kBarred;
  waits_ |= waits;
  if (!waits) watch.index = UINT64_MAX;
  if (view.unwanted && !KV_VARIANT(lock_keeps_unwanted)) {
    if (!lock_.begin_leaving(watch.exclusive)) co_return Status::kOk;
    const Status status = co_await space_.leave(remote, lock_, watch.exclusive);
    // Before its next task this lane has another connection.
    if (status == Status::kOutcomeUnknown) lock_.leave_unknown(watch.exclusive);
    co_return status;
  }
  if (unknown && (fenced || KV_VARIANT(lock_resolves_unfenced))) {
    co_return co_await resolve(remote, watch.exclusive, view);
  }
  if (unknown) {
    is_unknown_ = true;
    due_ns_ = std::min(due_ns_, monotonic_ns() + kFencedLookNs);
  }
  if (view.place == Place::kQueued) co_return co_await look(remote, watch, view, deaths);
  if (view.place == Place::kBarred) co_return co_await look_behind_bar(remote, watch);
  co_return Status::kOk;
}

Task<Status> LockCase::tend(Remote& remote, bool fenced, uint64_t deaths) {
  due_ns_ = lock_.expire();
  Status status = co_await say_gone(remote);
  is_unknown_ = waits_ = false;
  for (Watch& watch : watches_) {
    if (!remote.broken()) status = co_await tend_place(remote, watch, fenced, deaths);
  }
  if (!remote.broken() && !waits_ && recovery_ && !recovery_->is_under_way()) recovery_->abandon();
  if (recovery_ && !remote.broken()) {
    co_await recovery_->advance(remote, deaths);
    due_ns_ = std::min(due_ns_, recovery_->due_ns());
    if (recovery_->is_over()) recovery_.reset();
  }
  // What broke the connection is done again; anything else is over, or will attend anew.
  if (remote.broken()) due_ns_ = std::min(due_ns_, monotonic_ns() + kFencedLookNs);
  is_closed_ = due_ns_ == UINT64_MAX && !recovery_;
  co_return status;
}

}  // namespace kvstore
