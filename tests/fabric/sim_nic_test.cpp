// What the NIC model of the sim fabric does, measured from outside and held against its parameters.

#include <doctest/doctest.h>

#include <array>
#include <cmath>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#include "conformance.hpp"
#include "fabric/sim/sim.hpp"

namespace kvstore::test {
namespace {

constexpr uint64_t kBytes = 1 << 20;
constexpr uint64_t kMicrosecond = 1000;

// Posts the same batch again whenever it completes, and notes how long each took.
class Loop final : public sim::SimListener {
 public:
  Loop(sim::Schedule& schedule, sim::SimNode& node, uint32_t lane, std::vector<kv_op> ops)
      : schedule_(schedule), batch_(std::move(ops)), connection_(node.connect(1, lane, this)) {
    post();
  }
  void arrived() override {
    if (connection_->ops->poll(connection_.get()) == 0) return;
    REQUIRE(batch_.done());
    latency_ns_ = schedule_.now_ns() - posted_ns_;
    ++completed_;
    post();
  }
  uint64_t completed() const { return completed_; }
  uint64_t latency_ns() const { return latency_ns_; }

 private:
  void post() {
    posted_ns_ = schedule_.now_ns();
    batch_.post(*connection_);
  }

  sim::Schedule& schedule_;
  TestBatch batch_;
  ConnectionPtr connection_;
  uint64_t posted_ns_ = 0;
  uint64_t completed_ = 0;
  uint64_t latency_ns_ = 0;
};

sim::SimTiming exact_timing() {
  sim::SimTiming timing;
  timing.delay_ns_min = 900;
  timing.delay_ns_spread = 0;
  timing.late_per_million = 0;
  timing.step_ns_max = 0;
  timing.pieces_max = 1;
  return timing;
}

struct Measured {
  double first_per_s = 0;  // batches of the first half of the lanes
  double rest_per_s = 0;
  uint64_t latency_ns = 0;  // of the last batch of the first lane
  double busy = 0;
};

// `lanes` closed loops for a virtual millisecond.
Measured measure(const sim::SimTiming& timing, unsigned lanes,
                 const std::function<std::vector<kv_op>(unsigned lane)>& ops_of) {
  std::vector<uint64_t> region(kBytes / 8, 0);
  sim::Schedule schedule(1);
  sim::SimNode node(schedule, reinterpret_cast<uint8_t*>(region.data()), kBytes, timing);
  std::vector<std::unique_ptr<Loop>> loops;
  for (unsigned lane = 0; lane < lanes; ++lane) {
    loops.push_back(std::make_unique<Loop>(schedule, node, lane, ops_of(lane)));
  }
  const uint64_t begin_ns = schedule.now_ns();
  while (schedule.now_ns() < begin_ns + 1000 * kMicrosecond) REQUIRE(schedule.run_next());
  Measured measured;
  for (unsigned lane = 0; lane < lanes; ++lane) {
    (lane < lanes / 2 ? measured.first_per_s : measured.rest_per_s) +=
        double(loops[lane]->completed()) * 1e3;
  }
  measured.latency_ns = loops[0]->latency_ns();
  measured.busy = double(node.nic().busy_ns()) / 1e6;
  return measured;
}

std::vector<kv_op> read_of(void* into, uint64_t bytes) {
  return {read_into(0, into, bytes)};
}

void check_near(double value, double expected) {
  CAPTURE(value);
  CAPTURE(expected);
  CHECK(std::abs(value - expected) < 0.02 * expected);
}

}  // namespace

TEST_CASE("sim nic: an operation alone takes the way there, memory, and the way back") {
  sim::SimTiming timing = exact_timing();
  timing.nic.reads_per_s = 100'000'000;
  timing.nic.memory_ns = 300;
  timing.post_ns = 80;
  uint64_t word = 0;
  const Measured one = measure(timing, 1, [&](unsigned) { return read_of(&word, 8); });
  CHECK(one.latency_ns == 80 + 900 + 10 + 300 + 900);
  check_near(one.rest_per_s, 1e9 / 2190);
  check_near(one.busy, 10.0 / 2190);
}

TEST_CASE("sim nic: each kind of operation has its rate") {
  sim::SimTiming timing = exact_timing();
  timing.nic.reads_per_s = 111'200'000;
  timing.nic.writes_per_s = 92'700'000;
  timing.nic.atomics_per_s = 50'000'000;
  std::array<uint64_t, 1000> words{};
  const auto rate = [&](uint32_t kind) {
    const Measured all = measure(timing, 1000, [&](unsigned lane) {
      kv_op op = fetch_and_add(lane * 8, 1);
      if (kind == KV_OP_READ) op = read_into(lane * 8, &words[lane], 8);
      if (kind == KV_OP_WRITE) op = write_from(lane * 8, &words[lane], 8);
      return std::vector<kv_op>{op};
    });
    check_near(all.busy, 1.0);
    return all.first_per_s + all.rest_per_s;
  };
  check_near(rate(KV_OP_READ), 111.2e6);
  check_near(rate(KV_OP_WRITE), 92.7e6);
  check_near(rate(KV_OP_FAA), 50e6);
}

TEST_CASE("sim nic: a batch counts as its operations") {
  sim::SimTiming timing = exact_timing();
  timing.nic.reads_per_s = 10'000'000;
  std::array<std::array<uint64_t, 4>, 100> words{};
  const Measured all = measure(timing, 100, [&](unsigned lane) {
    std::vector<kv_op> ops;
    for (unsigned i = 0; i < 4; ++i) ops.push_back(read_into(i * 8, &words[lane][i], 8));
    return ops;
  });
  check_near(all.first_per_s + all.rest_per_s, 10e6 / 4);
  // 100 batches wait in one line.
  check_near(double(all.latency_ns), 100 * 400.0);
}

TEST_CASE("sim nic: long transfers fill the bandwidth") {
  sim::SimTiming timing = exact_timing();
  timing.nic.reads_per_s = 111'200'000;
  timing.nic.bytes_per_s = 25'000'000'000;
  std::vector<uint8_t> into(65536);
  const Measured all =
      measure(timing, 8, [&](unsigned) { return read_of(into.data(), into.size()); });
  check_near((all.first_per_s + all.rest_per_s) * 65536, 25e9);
}

TEST_CASE("sim nic: atomics on one address wait for each other, others pass or wait too") {
  sim::SimTiming timing = exact_timing();
  timing.nic.reads_per_s = 100'000'000;
  timing.nic.atomics_per_s = 50'000'000;
  timing.nic.atomic_ns = 250;
  std::array<uint64_t, 40> words{};
  // Half of the lanes add to one word, the other half read.
  const auto run = [&] {
    return measure(timing, 40, [&](unsigned lane) {
      return std::vector<kv_op>{lane < 20 ? fetch_and_add(0, 1) : read_into(8, &words[lane], 8)};
    });
  };
  const Measured passing = run();
  check_near(passing.first_per_s, 4e6);
  check_near(passing.rest_per_s, 20 * 1e9 / 1810);
  timing.nic.head_of_line = true;
  const Measured waiting = run();
  check_near(waiting.first_per_s, 4e6);
  CHECK(waiting.rest_per_s < 0.6 * passing.rest_per_s);
  check_near(waiting.busy, 1.0);
}

TEST_CASE("sim nic: atomics on different addresses do not wait for each other") {
  sim::SimTiming timing = exact_timing();
  timing.nic.atomics_per_s = 50'000'000;
  timing.nic.atomic_ns = 250;
  const auto rate = [&](uint64_t stride) {
    const Measured all = measure(timing, 200, [&](unsigned lane) {
      return std::vector<kv_op>{fetch_and_add(lane % 16 * stride, 1)};
    });
    return all.first_per_s + all.rest_per_s;
  };
  check_near(rate(8), 50e6);
  // Sixteen words that share their low bits.
  check_near(rate(4096 * 8), 4e6);
}

TEST_CASE("sim nic: a processor posts and completes so many operations a second") {
  sim::SimTiming timing = exact_timing();
  timing.delay_ns_min = 1;
  timing.post_ns = 300;
  timing.complete_ns = 200;
  uint64_t word = 0;
  const Measured one = measure(timing, 1, [&](unsigned) { return read_of(&word, 8); });
  check_near(one.rest_per_s, 1e9 / 502);
}

}  // namespace kvstore::test
