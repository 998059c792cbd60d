#include "lock/space.hpp"

#include <algorithm>
#include <array>
#include <utility>

#include "base/assert.hpp"
#include "coro/clock.hpp"
#include "lock/case.hpp"

namespace kvstore {
namespace {

constexpr size_t kRepliesMax = 4096;

}  // namespace

LockSpace::LockSpace(OpenPort open_port, uint32_t registration, uint64_t incarnation,
                     const layout::Geometry& geometry, uint64_t lease_ns)
    : open_port_(std::move(open_port)),
      registration_(registration),
      incarnation_(incarnation),
      geometry_(geometry),
      lease_ns_(lease_ns),
      renewed_ns_(monotonic_ns()),
      table_(geometry) {}

LockSpace::~LockSpace() {
  for_each([](LocalLock& lock) { delete &lock; });
}

// ---- opening --------------------------------------------------------------------------------

Task<Status> LockSpace::open_postbox(Remote& remote) {
  {
    const std::lock_guard lock(open_mutex_);
    if (!postbox_) {
      std::string error;
      PortPtr port = open_port_(error);
      if (!port) co_return Status::kRefused;
      postbox_ = std::make_unique<Postbox>(std::move(port), registration_, incarnation_, geometry_);
      handlers_[size_t(MessageKind::kLock)] = [this](const Message& m) { handle(m); };
      for (unsigned kind = 0; kind < kMessageKinds; ++kind) {
        postbox_->set_handler(MessageKind(kind), handlers_[kind]);
      }
    }
  }
  // Twice does no harm.
  if (const Status s = co_await postbox_->open(remote); s != Status::kOk) co_return s;
  reachable_.store(postbox_.get(), std::memory_order_release);
  if (alarm_) alarm_(0);  // there is a descriptor to wait for
  co_return Status::kOk;
}

Task<Status> LockSpace::open(Remote& remote, SegmentTable& segments) {
  if (is_open()) co_return Status::kOk;
  if (const Status s = co_await open_postbox(remote); s != Status::kOk) co_return s;
  if (const Status s = co_await table_.open(remote, segments); s != Status::kOk) co_return s;
  {
    const std::lock_guard lock(locks_mutex_);
    if (!locks_) locks_ = std::make_unique<std::atomic<LocalLock*>[]>(lock_count());
  }
  opened_.store(true, std::memory_order_release);
  co_return Status::kOk;
}

LocalLock* LockSpace::find(uint32_t number) const {
  if (!is_open() || number >= lock_count()) return nullptr;
  return locks_[number].load(std::memory_order_acquire);
}

LocalLock& LockSpace::lock_at(uint32_t number) {
  KV_ASSERT(is_open());
  KV_ASSERT(number < lock_count());
  std::atomic<LocalLock*>& place = locks_[number];
  if (LocalLock* lock = place.load(std::memory_order_acquire)) return *lock;
  const std::lock_guard guard(locks_mutex_);
  if (LocalLock* lock = place.load(std::memory_order_acquire)) return *lock;
  LocalLock* lock = new LocalLock(*this, number);
  if (failed_ != Status::kOk) lock->fail(failed_);
  place.store(lock, std::memory_order_release);
  return *lock;
}

// ---- messages -------------------------------------------------------------------------------

unsigned LockSpace::receive() {
  Postbox* const postbox = reachable_.load(std::memory_order_acquire);
  return postbox == nullptr ? 0 : postbox->receive();
}

int LockSpace::wait_descriptor() const {
  const Postbox* const postbox = reachable_.load(std::memory_order_acquire);
  return postbox == nullptr ? -1 : postbox->wait_descriptor();
}

Task<Status> LockSpace::send(Remote& remote, uint32_t to, const LockMessage& message) {
  co_return co_await postbox_->send(remote, to, MessageKind::kLock, message.bytes());
}

void LockSpace::reply(uint32_t to, MessageKind kind, std::span<const uint8_t> content) {
  KV_ASSERT(content.size() <= kReplyBytesMax);
  if (postbox_->send_at_once(to, kind, content) != Status::kPending) return;
  if (replies_.size() < kRepliesMax) {
    Reply& reply = replies_.emplace_back();
    reply.to = to;
    reply.kind = kind;
    reply.bytes = uint32_t(content.size());
    std::copy(content.begin(), content.end(), reply.content.begin());
  }
  schedule(0);
}

void LockSpace::handle(const Message& message) {
  LockMessage content;
  if (!LockMessage::read(message.content, content)) return;
  if (!is_open() || content.lock >= lock_count()) return;
  switch (content.kind) {
    case LockMessage::kGrant:
      counts_.grants_received.fetch_add(1, std::memory_order_relaxed);
      if (LocalLock* lock = find(content.lock)) lock->granted(content.number);
      return;
    case LockMessage::kAsk:
      answer(message.from, content);
      return;
    case LockMessage::kReset:
      // Answered by the upkeep, once nothing here stands against it.
      if (lock_at(content.lock).reset_announced(message.from, content.number, content.bound)) {
        schedule(0);
      }
      return;
    case LockMessage::kResetOver:
      // Whether it is true shows when the lock is entered.
      if (LocalLock* lock = find(content.lock)) lock->reset_over();
      return;
    case LockMessage::kAnswer:
      if (content.number >= kSurveyQuestion) {
        keep_for_survey(message.from, content);
        return;
      }
      [[fallthrough]];
    default:
      if (LockCase* known = case_of(content.lock)) known->told(message.from, content);
  }
}

uint64_t LockSpace::begin_survey() {
  const std::lock_guard lock(survey_mutex_);
  surveys_[next_survey_];
  return next_survey_++;
}

std::vector<LockSpace::SurveyAnswer> LockSpace::take_survey(uint64_t question) {
  const std::lock_guard lock(survey_mutex_);
  return std::exchange(surveys_[question], {});
}

void LockSpace::end_survey(uint64_t question) {
  const std::lock_guard lock(survey_mutex_);
  surveys_.erase(question);
}

void LockSpace::keep_for_survey(uint32_t from, const LockMessage& message) {
  const std::lock_guard lock(survey_mutex_);
  const auto survey = surveys_.find(message.number);
  if (survey == surveys_.end() || survey->second.size() >= kRepliesMax) return;
  survey->second.push_back({from, message});
}

// What there is of the writers' place, or of that of the readers.
LockMessage LockSpace::answer_of(LocalLock& lock, const LockMessage& question, bool exclusive) {
  LockMessage answer = question;
  const LocalLock::View view = lock.view(exclusive);
  answer.bound = view.index;
  answer.threads = view.waiting + view.holding;
  const uint64_t age_ms = (monotonic_ns() - view.since_ns) / kMillisecond;
  answer.age_ms = uint32_t(std::min<uint64_t>(age_ms, UINT32_MAX));
  switch (view.place) {
    case LocalLock::Place::kOut:
    case LocalLock::Place::kBarred:
      answer.claim = LockMessage::kNothing;
      break;
    case LocalLock::Place::kQueued:
      // It may be ours to take, if a grant was lost.
      attend(lock, 0);
      [[fallthrough]];
    case LocalLock::Place::kEntering:
      answer.claim = LockMessage::kWaits;
      break;
    default:
      answer.claim = LockMessage::kHolds;
  }
  return answer;
}

void LockSpace::answer(uint32_t from, const LockMessage& question) {
  LocalLock* const lock = find(question.lock);
  for (const bool exclusive : {true, false}) {
    LockMessage answer = question;
    answer.claim = LockMessage::kNothing;
    if (lock != nullptr) answer = answer_of(*lock, question, exclusive);
    answer.kind = LockMessage::kAnswer;
    answer.flags = exclusive ? LockMessage::kExclusive : 0;
    reply(from, answer);
  }
}

// ---- upkeep ---------------------------------------------------------------------------------

void LockSpace::schedule(uint64_t due_ns) {
  uint64_t known_ns = due_ns_.load(std::memory_order_acquire);
  while (due_ns < known_ns) {
    // In one order with what a service does that goes to sleep.
    if (due_ns_.compare_exchange_weak(known_ns, due_ns, std::memory_order_seq_cst)) {
      if (alarm_) alarm_(due_ns);
      return;
    }
  }
}

void LockSpace::attend(LocalLock& lock, uint64_t due_ns) {
  if (due_ns == UINT64_MAX) due_ns = monotonic_ns() + LockCase::kFirstLookNs;
  {
    const std::lock_guard guard(attention_mutex_);
    attention_.push_back({&lock, due_ns});
  }
  schedule(due_ns);
}

bool LockSpace::is_current() {
  // Clocks may run apart by a thousandth.
  const uint64_t renewed_ns = renewed_ns_.load(std::memory_order_acquire);
  return monotonic_ns() - renewed_ns < lease_ns_ - lease_ns_ / 64;
}

LockCase* LockSpace::case_of(uint32_t number) {
  for (const auto& known : cases_) {
    if (known->lock().number() == number) return known.get();
  }
  return nullptr;
}

void LockSpace::take_in_attention() {
  std::vector<Attention> wanted;
  {
    const std::lock_guard guard(attention_mutex_);
    wanted.swap(attention_);
  }
  for (const Attention& one : wanted) {
    LockCase* known = case_of(one.lock->number());
    if (known == nullptr) {
      cases_.push_back(std::make_unique<LockCase>(*this, *one.lock));
      known = cases_.back().get();
    }
    known->hurry(one.due_ns);
  }
}

void LockSpace::note_deaths(uint64_t deaths) {
  if (deaths_.exchange(deaths, std::memory_order_acq_rel) == deaths) return;
  for (const auto& known : cases_) known->hurry(0);
  if (!cases_.empty()) schedule(0);
}

Task<Status> LockSpace::upkeep(Remote& remote, bool fenced) {
  due_ns_.store(UINT64_MAX, std::memory_order_release);
  std::vector<Reply> replies;
  replies.swap(replies_);
  for (const Reply& one : replies) {
    co_await postbox_->send(remote, one.to, one.kind, {one.content.data(), one.bytes});
    if (remote.broken()) {
      schedule(monotonic_ns() + LockCase::kFirstLookNs);  // what is not said is asked for again
      co_return Status::kNodeUnreachable;
    }
  }
  take_in_attention();
  const uint64_t now_ns = monotonic_ns();
  const uint64_t deaths = deaths_.load(std::memory_order_acquire);
  uint64_t next_ns = UINT64_MAX;
  bool unknown = false;
  // Messages may come meanwhile, but no case comes or goes.
  for (const auto& one : cases_) {
    if (one->due_ns() <= now_ns && !remote.broken()) {
      co_await one->tend(remote, fenced, deaths);
    }
    unknown |= one->is_unknown();
    next_ns = std::min(next_ns, one->due_ns());
  }
  std::erase_if(cases_, [](const auto& one) { return one->is_closed(); });
  unknown_.store(unknown, std::memory_order_release);
  schedule(next_ns);
  co_return remote.broken() ? Status::kNodeUnreachable : Status::kOk;
}

void LockSpace::fail(Status status) {
  {
    const std::lock_guard guard(locks_mutex_);
    if (failed_ != Status::kOk) return;
    failed_ = status;
  }
  for_each([status](LocalLock& lock) { lock.fail(status); });
}

}  // namespace kvstore
