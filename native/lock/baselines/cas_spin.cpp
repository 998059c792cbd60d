// The reader-writer spin lock that DecLock's evaluation begins with: one word, polled without
// pause.
//
//   bits  0..31  readers, those that wait included
//   bits 32..63  the writer, 0: none

#include "lock/baselines/rival.hpp"

namespace kvstore::rivals {
namespace {

constexpr unsigned kOwnerShift = 32;

class CasSpin final : public Rival {
 public:
  explicit CasSpin(Seat& seat) : seat_(seat), own_(uint64_t{seat.number() + 1} << kOwnerShift) {}

  Task<Status> acquire(uint32_t lock, bool exclusive) override {
    Remote& remote = seat_.remote(lock);
    const uint64_t at = seat_.offset(lock);
    if (exclusive) {
      for (;;) {
        kv_op op[1] = {cas_op(at, 0, own_)};
        if (const uint32_t s = co_await remote.batch(op); s != KV_FABRIC_OK) {
          co_return from_fabric(s);
        }
        if (op[0].result == 0) co_return Status::kOk;
      }
    }
    kv_op op[1] = {faa_op(at, 1)};
    if (const uint32_t s = co_await remote.batch(op); s != KV_FABRIC_OK) co_return from_fabric(s);
    uint64_t seen = op[0].result;
    while (seen >> kOwnerShift != 0) {
      kv_op look[1] = {read_op(at, &seen, 8)};
      if (const uint32_t s = co_await remote.batch(look); s != KV_FABRIC_OK) {
        co_return from_fabric(s);
      }
    }
    co_return Status::kOk;
  }

  Task<Status> release(uint32_t lock, bool exclusive) override {
    Remote& remote = seat_.remote(lock);
    const uint64_t at = seat_.offset(lock);
    if (!exclusive) {
      kv_op op[1] = {faa_op(at, ~uint64_t{0})};
      co_return from_fabric(co_await remote.batch(op));
    }
    for (uint64_t readers = 0;;) {
      kv_op op[1] = {cas_op(at, own_ | readers, readers)};
      if (const uint32_t s = co_await remote.batch(op); s != KV_FABRIC_OK) {
        co_return from_fabric(s);
      }
      if (op[0].result == (own_ | readers)) co_return Status::kOk;
      readers = op[0].result & UINT32_MAX;
    }
  }

 private:
  Seat& seat_;
  const uint64_t own_;
};

}  // namespace

const Kind kCasSpin = {
    "cas",
    "reader-writer spin lock by CAS",
    8,
    0,
    false,
    false,
    false,
    nullptr,
    [](Seat& seat, Shared*) -> std::unique_ptr<Rival> { return std::make_unique<CasSpin>(seat); }};

}  // namespace kvstore::rivals
