// DSLR (Yoon, Chowdhury, Mozafari, SIGMOD'18): tickets of 16 bits in one word, polled with a
// back-off that adapts to how often a poll was in vain.
//
//   bits  0..15  writers served     bits 32..47  writers that have come
//   bits 16..31  readers served     bits 48..63  readers that have come

#include <algorithm>

#include "lock/baselines/rival.hpp"

namespace kvstore::rivals {
namespace {

constexpr uint64_t kTicketsMax = 32'768;  // then the word is set to 0 when all are served
constexpr uint64_t kPauseNsMin = 100;
constexpr uint64_t kCapNsMin = 100;
constexpr uint64_t kCapNsMax = 3'200;
constexpr uint64_t kJitterNs = 2'000;
constexpr uint64_t kAdaptNs = 100'000;

struct Word {
  uint64_t word = 0;
  uint64_t writers_served() const { return word & 0xffff; }
  uint64_t readers_served() const { return word >> 16 & 0xffff; }
  uint64_t writers() const { return word >> 32 & 0xffff; }
  uint64_t readers() const { return word >> 48; }
  bool is_full() const { return writers() >= kTicketsMax || readers() >= kTicketsMax; }
  bool is_idle() const { return writers_served() == writers() && readers_served() == readers(); }
};

constexpr uint64_t one_more(bool exclusive) {
  return uint64_t{1} << (exclusive ? 32 : 48);
}
constexpr uint64_t one_served(bool exclusive) {
  return uint64_t{1} << (exclusive ? 0 : 16);
}

class Dslr final : public Rival {
 public:
  explicit Dslr(Seat& seat) : seat_(seat) {}

  Task<Status> acquire(uint32_t lock, bool exclusive) override {
    Remote& remote = seat_.remote(lock);
    const uint64_t at = seat_.offset(lock);
    for (;;) {
      kv_op op[1] = {faa_op(at, one_more(exclusive))};
      if (const uint32_t s = co_await remote.batch(op); s != KV_FABRIC_OK) {
        co_return from_fabric(s);
      }
      const Word ticket{op[0].result};
      if (!ticket.is_full()) co_return co_await wait(remote, at, ticket, exclusive);
      if (const Status s = co_await begin_anew(remote, at, exclusive); s != Status::kOk) {
        co_return s;
      }
    }
  }

  Task<Status> release(uint32_t lock, bool exclusive) override {
    kv_op op[1] = {faa_op(seat_.offset(lock), one_served(exclusive))};
    co_return from_fabric(co_await seat_.remote(lock).batch(op));
  }

 private:
  static bool is_turn(const Word& now, const Word& ticket, bool exclusive) {
    return now.writers_served() == ticket.writers() &&
           (!exclusive || now.readers_served() == ticket.readers());
  }

  Task<Status> wait(Remote& remote, uint64_t at, Word ticket, bool exclusive) {
    Word now = ticket;
    for (uint64_t pause_ns = kPauseNsMin; !is_turn(now, ticket, exclusive); pause_ns *= 2) {
      const uint64_t cap_ns = cap_ns_ + seat_.random_below(kJitterNs);
      co_await seat_.executor().sleep_until(monotonic_ns() + std::min(pause_ns, cap_ns));
      kv_op look[1] = {read_op(at, &now.word, 8)};
      if (const uint32_t s = co_await remote.batch(look); s != KV_FABRIC_OK) {
        co_return from_fabric(s);
      }
      ++polls_;
      if (!is_turn(now, ticket, exclusive)) ++polls_in_vain_;
      adapt();
    }
    co_return Status::kOk;
  }

  void adapt() {
    const uint64_t now_ns = monotonic_ns();
    if (now_ns < adapt_ns_) return;
    adapt_ns_ = now_ns + kAdaptNs;
    const double in_vain = double(polls_in_vain_) / double(polls_);
    if (in_vain > 0.7) cap_ns_ = std::min(2 * cap_ns_, kCapNsMax);
    if (in_vain < 0.5) cap_ns_ = std::max(cap_ns_ / 2, kCapNsMin);
    polls_ = polls_in_vain_ = 0;
  }

  // Takes the ticket back, and waits until somebody has set the word to 0. While a ticket is to be
  // taken back the word does not look idle.
  Task<Status> begin_anew(Remote& remote, uint64_t at, bool exclusive) {
    kv_op op[1] = {faa_op(at, ~one_more(exclusive) + 1)};
    if (const uint32_t s = co_await remote.batch(op); s != KV_FABRIC_OK) co_return from_fabric(s);
    for (;;) {
      Word now;
      kv_op look[1] = {read_op(at, &now.word, 8)};
      if (const uint32_t s = co_await remote.batch(look); s != KV_FABRIC_OK) {
        co_return from_fabric(s);
      }
      if (!now.is_full()) co_return Status::kOk;
      if (!now.is_idle()) continue;
      kv_op reset[1] = {cas_op(at, now.word, 0)};
      if (const uint32_t s = co_await remote.batch(reset); s != KV_FABRIC_OK) {
        co_return from_fabric(s);
      }
    }
  }

  Seat& seat_;
  uint64_t cap_ns_ = kCapNsMin;
  uint64_t adapt_ns_ = 0;
  uint64_t polls_ = 0;
  uint64_t polls_in_vain_ = 0;
};

}  // namespace

const Kind kDslr = {
    "dslr",
    "DSLR, tickets with adaptive back-off",
    8,
    0,
    false,
    false,
    false,
    nullptr,
    [](Seat& seat, Shared*) -> std::unique_ptr<Rival> { return std::make_unique<Dslr>(seat); }};

}  // namespace kvstore::rivals
