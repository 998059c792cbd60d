#include "cache/coherence.hpp"

#include <algorithm>
#include <utility>

#include "base/assert.hpp"
#include "base/time_scale.hpp"

namespace kvstore {
namespace {

// Clocks may run apart by a thousandth; this is far more.
constexpr uint64_t kDriftShare = 64;
// When a question is asked again, and how long an answer is waited for in all. What follows costs a
// lease and the copies of a whole group, so a busy owner is given its time.
constexpr uint64_t kAskAgainNs = kMillisecond;
constexpr uint64_t kAskNs = 50 * kMillisecond;
constexpr unsigned kLinesPerRead = 64;
constexpr uint64_t kAllGroups = (uint64_t{1} << layout::kOwnerGroups) - 1;

uint64_t bit(unsigned group) {
  return uint64_t{1} << group;
}

// One more in the revoke word of each group; returns how many operations.
unsigned revocations(uint64_t groups, std::span<kv_op, layout::kOwnerGroups> ops) {
  unsigned count = 0;
  for (unsigned group = 0; group < layout::kOwnerGroups; ++group) {
    if ((groups & bit(group)) != 0) ops[count++] = faa_op(layout::revoke_offset(group), 1);
  }
  return count;
}

}  // namespace

// ---- as an owner ----------------------------------------------------------------------------

void Coherence::renewed(uint64_t begun_ns, uint64_t revoke_word, const layout::NodeLine& node) {
  if (cache_ == nullptr) return;
  // Who has died may have owed the end of some copies. It can't replace anything any more.
  const bool crashed = node.crashes != crashes_seen_;
  if (!first_ && crashed && is_regular_ && !KV_VARIANT(regular_ignores_crashes)) cache_->flush();
  crashes_seen_ = node.crashes;
  if (!first_ && revoke_word != revoke_seen_ && !KV_VARIANT(cache_ignores_revocation)) {
    cache_->revoke(term_);
  }
  first_ = false;
  revoke_seen_ = revoke_word;
  if (!is_reachable()) return;
  const uint64_t from_ns = KV_VARIANT(cache_lease_from_end) ? boottime_ns() : begun_ns;
  cache_->renew(term_, from_ns + lease_ns_ - lease_ns_ / kDriftShare, node.clock_ms);
}

layout::CoherenceRecord Coherence::guess(uint32_t record) const {
  const std::atomic<uint64_t>* words = records_known_.load(std::memory_order_acquire);
  if (words == nullptr) return {};
  return layout::CoherenceRecord{words[record].load(std::memory_order_relaxed)};
}

void Coherence::saw(uint32_t record, layout::CoherenceRecord word) {
  std::atomic<uint64_t>* words = records_known_.load(std::memory_order_acquire);
  if (words == nullptr) {
    const std::lock_guard lock(records_mutex_);
    if (!records_) {
      records_ = std::make_unique<std::atomic<uint64_t>[]>(2 * geometry_.record_count);
    }
    words = records_.get();
    records_known_.store(words, std::memory_order_release);
  }
  words[record].store(word.word, std::memory_order_relaxed);
}

void Coherence::handle(const Message& message, const Reply& reply) {
  CacheMessage content;
  if (!CacheMessage::read(message.content, content)) return;
  if (content.kind == CacheMessage::kInvalidate) {
    counts_.invalidations_received.fetch_add(1, std::memory_order_relaxed);
    CacheMessage done = content;
    done.kind = CacheMessage::kDone;
    done.empty = 1;
    if (KV_VARIANT(cache_answers_first)) {
      reply(message.from, done);
      return;
    }
    if (cache_ != nullptr) {
      done.empty = cache_->drop(content.hash, content.record, ClientCache::By::kOther) ? 1 : 0;
      if (content.record >= geometry_.record_count) cache_->note_absence_asked();
      cache_->heard();
    }
    reply(message.from, done);
    return;
  }
  const std::lock_guard lock(mutex_);
  for (Question* question : questions_) {
    if (question->number_ != content.number) continue;
    if (std::erase(question->waiting_, message.from) == 0) return;
    if (content.empty == 0) question->full_groups_ |= bit(layout::owner_group(message.from));
    if (question->waiting_.empty()) question->answered_.set();
    return;
  }
}

// ---- as a writer ----------------------------------------------------------------------------

// Whoever registered before the slot was frozen was admitted before: it is among those that the
// registry shows at these counts, or has died since.
Task<Status> Coherence::refresh_live(Remote& remote, const layout::NodeLine& node) {
  {
    const std::lock_guard lock(mutex_);
    if (live_known_ && admissions_ == node.admissions && deaths_ == node.deaths) {
      co_return Status::kOk;
    }
  }
  std::vector<layout::RegistryLine> lines(layout::kClientsMax);
  std::vector<kv_op> ops;
  for (unsigned at = 0; at < lines.size(); at += kLinesPerRead) {
    ops.push_back(read_op(geometry_.registry_offset + at * layout::kLineBytes, &lines[at],
                          kLinesPerRead * layout::kLineBytes));
  }
  if (const uint32_t s = co_await remote.batch(ops); s != KV_FABRIC_OK) co_return from_fabric(s);
  const std::lock_guard lock(mutex_);
  // What another thread has read since knows at least as many.
  if (live_known_ && node.admissions < admissions_) co_return Status::kOk;
  for (size_t i = 0; i < lines.size(); ++i) {
    const bool is_live = lines[i].state == uint64_t(layout::ClientState::kLive);
    live_[i] = is_live ? uint32_t(lines[i].registration) : 0;
  }
  admissions_ = node.admissions;
  deaths_ = node.deaths;
  live_known_ = true;
  co_return Status::kOk;
}

std::vector<uint32_t> Coherence::live_of(const Copies& copies, uint64_t& spared) {
  const uint64_t groups = copies.owners.owners();
  // Who has copies of absence learns by messages whether they pay, and is cleared by its answer.
  const bool spares = stamps_ != nullptr && copies.record < geometry_.record_count;
  std::vector<uint32_t> found;
  const std::lock_guard lock(mutex_);
  for (const uint32_t registration : live_) {
    if (registration == 0 || registration == registration_) continue;
    const uint64_t group = bit(layout::owner_group(registration));
    if ((groups & group) == 0) continue;
    if (spares && stamps_->has(registration)) {
      spared |= group;
      counts_.invalidations_spared.fetch_add(1, std::memory_order_relaxed);
    } else {
      found.push_back(registration);
    }
  }
  return found;
}

std::vector<uint32_t> Coherence::waiting_for(Question& question) {
  const std::lock_guard lock(mutex_);
  return question.waiting_;
}

Coherence::Question::~Question() {
  if (number_ == 0) return;
  const std::lock_guard lock(coherence_.mutex_);
  std::erase(coherence_.questions_, this);
}

// To all that have not answered.
Task<Status> Coherence::tell(Remote& remote, Postbox& postbox, const Copies& copies,
                             Question& question) {
  CacheMessage message;
  message.kind = CacheMessage::kInvalidate;
  message.record = copies.record;
  message.hash = copies.hash;
  message.number = question.number_;
  message.slot = copies.successor.word;
  message.value_bytes = copies.value_bytes;
  for (const uint32_t to : waiting_for(question)) {
    const Status sent = co_await postbox.send(remote, to, MessageKind::kCache, message.bytes());
    if (remote.broken()) co_return Status::kNodeUnreachable;
    counts_.invalidations_sent.fetch_add(1, std::memory_order_relaxed);
    if (sent != Status::kAbsent) continue;
    // It had no postbox when the owners were read, so it has no copy from before.
    const std::lock_guard lock(mutex_);
    std::erase(question.waiting_, to);
    if (question.waiting_.empty()) question.answered_.set();
  }
  co_return Status::kOk;
}

// Until all have answered, or have had their time.
Task<Status> Coherence::await_answers(Remote& remote, Postbox& postbox, const Copies& copies,
                                      Question& question, Bounds bounds) {
  const uint64_t until_ns = question.asked_ns_ + patient(kAskNs);
  uint64_t pause_ns = patient(kAskAgainNs);
  for (;;) {
    if (question.answered_.is_set()) co_return Status::kOk;
    if (bounds.are_over()) co_return Status::kDeadlineExceeded;
    const uint64_t now_ns = monotonic_ns();
    if (now_ns >= until_ns) co_return Status::kOk;
    const uint64_t next_ns = std::min({now_ns + pause_ns, until_ns, bounds.deadline_ns});
    if (co_await question.answered_.wait(next_ns)) co_return Status::kOk;
    pause_ns *= 2;
    const Status told = co_await tell(remote, postbox, copies, question);
    if (told != Status::kOk) co_return told;
  }
}

// `told`: whether the groups' words say so.
Task<Status> Coherence::revoke(Remote& remote, uint64_t groups, Bounds bounds, bool& told) {
  kv_op ops[layout::kOwnerGroups];
  const unsigned count = revocations(groups, ops);
  if (const uint32_t s = co_await remote.batch({ops, count}); s != KV_FABRIC_OK) {
    co_return from_fabric(s);
  }
  told = true;
  counts_.leases_waited.fetch_add(1, std::memory_order_relaxed);
  // Renewals that began before have not seen it.
  const uint64_t over_ns = monotonic_ns() + lease_ns_ + lease_ns_ / kDriftShare;
  while (monotonic_ns() < over_ns) {
    if (bounds.are_over()) co_return Status::kDeadlineExceeded;
    co_await remote.executor().sleep_until(std::min(over_ns, bounds.deadline_ns));
  }
  co_return Status::kOk;
}

Task<Status> Coherence::begin_ending(Remote& remote, Postbox* postbox, Copies& copies,
                                     Question& question) {
  counts_.writes_guarded.fetch_add(1, std::memory_order_relaxed);
  copies.empty_groups = 0;
  copies.unended_groups = copies.owners.owners();
  if (!KV_VARIANT(cache_renews_nothing) && !KV_VARIANT(cache_renews_late)) {
    copies.renewed = renew_stamp(copies.hash, {copies.successor.word, copies.value_bytes});
  }
  const bool mine_empty = copies.mine_empty || KV_VARIANT(cache_forgets_own);
  question.full_groups_ = mine_empty ? 0 : bit(group());
  if (copies.owners.owners() == 0 || postbox == nullptr) co_return Status::kOk;
  if (const Status s = co_await refresh_live(remote, copies.node); s != Status::kOk) co_return s;
  // What those who are spared have under the record nobody has asked them.
  question.waiting_ = live_of(copies, question.full_groups_);
  if (question.waiting_.empty()) co_return Status::kOk;
  {
    const std::lock_guard lock(mutex_);
    question.number_ = next_question_++;
    question.asked_ns_ = monotonic_ns();
    questions_.push_back(&question);
  }
  co_return co_await tell(remote, *postbox, copies, question);
}

Task<Status> Coherence::finish_ending(Remote& remote, Postbox* postbox, Copies& copies,
                                      Question& question, Bounds bounds) {
  const uint64_t owners = copies.owners.owners();
  if (owners == 0) co_return Status::kOk;
  if (postbox != nullptr) {
    Status s = Status::kOk;
    if (question.number_ != 0) {
      s = co_await await_answers(remote, *postbox, copies, question, bounds);
    }
    copies.unended_groups = 0;
    for (const uint32_t registration : waiting_for(question)) {
      copies.unended_groups |= bit(layout::owner_group(registration));
    }
    if (s != Status::kOk) co_return s;
  }
  if (copies.unended_groups != 0 && !KV_VARIANT(cache_forgets_the_silent)) {
    bool told = false;
    const Status s = co_await revoke(remote, copies.unended_groups, bounds, told);
    if (told) copies.unended_groups = 0;
    if (s != Status::kOk) co_return s;
  }
  const std::lock_guard lock(mutex_);
  copies.empty_groups = owners & ~question.full_groups_;
  co_return Status::kOk;
}

Task<Status> Coherence::end_copies(Remote& remote, Postbox* postbox, Copies& copies,
                                   Bounds bounds) {
  Question question(*this, remote.executor());
  const Status begun = co_await begin_ending(remote, postbox, copies, question);
  if (begun != Status::kOk) co_return begun;
  co_return co_await finish_ending(remote, postbox, copies, question, bounds);
}

Task<Status> Coherence::end_all_copies(Remote& remote, Bounds bounds) {
  counts_.writes_guarded.fetch_add(1, std::memory_order_relaxed);
  bool told = false;
  co_return co_await revoke(remote, kAllGroups, bounds, told);
}

// ---- what a regular write leaves for later ---------------------------------------------------

void Coherence::owe(uint64_t groups) {
  if (!KV_VARIANT(regular_forgets_debts)) owed_.fetch_or(groups);
}

bool Coherence::clear_later(const kv_op& clear) {
  const std::lock_guard lock(mutex_);
  if (clearings_.size() == kClearingsMax) return false;
  clearings_.push_back({clear, boottime_ns()});
  return true;
}

void Coherence::end_write_later(uint64_t hash, const Stamp& opened) {
  if (opened.line == nullptr) return;
  const std::lock_guard lock(mutex_);
  if (open_.size() < kOpenMax) open_.push_back({hash, opened});
}

std::vector<Coherence::OpenStamp> Coherence::take_open() {
  const std::lock_guard lock(mutex_);
  return std::exchange(open_, {});
}

void Coherence::put_back(const std::vector<OpenStamp>& stamps) {
  for (const OpenStamp& one : stamps) end_write_later(one.hash, one.opened);
}

void Coherence::end_writes(const std::vector<OpenStamp>& stamps) {
  for (const OpenStamp& one : stamps) stamps_->end_write(one.hash, one.opened);
}

// A process may have stood still for as long as the record's count takes to come round.
Task<Status> Coherence::clear(Remote& remote) {
  std::vector<kv_op> ops;
  const uint64_t now_ns = boottime_ns();
  {
    const std::lock_guard lock(mutex_);
    for (const Clearing& one : clearings_) {
      if (now_ns - std::min(now_ns, one.wanted_ns) < kSecond) ops.push_back(one.op);
    }
    clearings_.clear();
  }
  if (ops.empty()) co_return Status::kOk;
  co_return from_fabric(co_await remote.batch(ops));
}

uint64_t Coherence::begin_payment() {
  paying_.store(true);
  return owed_.exchange(0);
}

Task<Status> Coherence::pay(Remote& remote, uint64_t groups) {
  if (groups == 0) co_return Status::kOk;
  kv_op ops[layout::kOwnerGroups];
  const unsigned count = revocations(groups, ops);
  co_return from_fabric(co_await remote.batch({ops, count}));
}

void Coherence::end_payment(uint64_t taken_back) {
  owed_.fetch_or(taken_back);
  paying_.store(false);
}

}  // namespace kvstore
