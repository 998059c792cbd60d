// The lock of Mellor-Crummey and Scott (TOCS'91) over RDMA, for writers only: a word names the last
// in the queue, each tells the one before that it follows, and is told when its turn has come.

#include "fabric/sim/masked.hpp"
#include "lock/baselines/rival.hpp"

namespace kvstore::rivals {
namespace {

class Mcs final : public Rival {
 public:
  explicit Mcs(Seat& seat) : seat_(seat), own_(seat.number() + 1) {}

  Task<Status> acquire(uint32_t lock, bool) override {
    successor_ = 0;
    granted_ = false;
    seat_.gate.close();
    sim::MaskedSwap swap;
    swap.swap[0] = own_;
    swap.swap_mask[0] = ~uint64_t{0};
    kv_op op[1] = {sim::masked_swap_op(seat_.offset(lock), swap)};
    const uint32_t s = co_await seat_.remote(lock).batch(op);
    if (s != KV_FABRIC_OK || swap.old[0] == 0) co_return from_fabric(s);
    seat_.send(uint32_t(swap.old[0] - 1), {seat_.number(), lock, kFollows, {}});
    while (!granted_) {
      co_await seat_.gate;
      seat_.gate.close();
    }
    co_return Status::kOk;
  }

  Task<Status> release(uint32_t lock, bool) override {
    if (successor_ == 0) {
      kv_op op[1] = {cas_op(seat_.offset(lock), own_, 0)};
      const uint32_t s = co_await seat_.remote(lock).batch(op);
      if (s != KV_FABRIC_OK || op[0].result == own_) co_return from_fabric(s);
    }
    while (successor_ == 0) {
      co_await seat_.gate;
      seat_.gate.close();
    }
    seat_.send(uint32_t(successor_ - 1), {seat_.number(), lock, kGrant, {}});
    co_return Status::kOk;
  }

  void receive(const Message& message) override {
    if (message.kind == kFollows) successor_ = message.from + 1;
    if (message.kind == kGrant) granted_ = true;
    seat_.gate.open(seat_.executor());
  }

 private:
  enum : uint32_t { kFollows, kGrant };

  Seat& seat_;
  const uint64_t own_;
  uint64_t successor_ = 0;
  bool granted_ = false;
};

}  // namespace

const Kind kMcs = {
    "mcs",
    "MCS with notification, writers only",
    16,
    0,
    true,
    true,
    true,
    nullptr,
    [](Seat& seat, Shared*) -> std::unique_ptr<Rival> { return std::make_unique<Mcs>(seat); }};

}  // namespace kvstore::rivals
