// The fabrics that are held to the rules of the conformance suite.

#include "conformance.hpp"
#include "fabric/cpu/shm.hpp"
#include "sim_node.hpp"
#include "tcp_node.hpp"
#include "verbs_node.hpp"

namespace kvstore::test {

namespace {

class TcpFixture final : public FabricFixture {
 public:
  explicit TcpFixture(uint32_t threads) : node_(kRegionBytes, threads) {}
  ConnectionPtr connect() override { return node_.connect(); }
  void kill_peer() override { node_.kill(); }
  uint64_t word_at_node(uint64_t offset) const override { return node_.region().word(offset); }

 private:
  TcpNode node_;
};

class ShmFixture final : public FabricFixture {
 public:
  ConnectionPtr connect() override {
    return ConnectionPtr(shm_connection(region_.data(), kRegionBytes, &dead_));
  }
  void kill_peer() override { dead_ = 1; }
  uint64_t word_at_node(uint64_t offset) const override { return region_.word(offset); }

 private:
  PrivateRegion region_{kRegionBytes};
  std::atomic<uint32_t> dead_{0};
};

class SimFixture final : public FabricFixture {
 public:
  explicit SimFixture(const sim::SimTiming& timing) : node_(kRegionBytes, timing) {}
  ConnectionPtr connect() override { return node_.connect(); }
  void kill_peer() override { node_.kill(); }
  uint64_t word_at_node(uint64_t offset) const override { return node_.word(offset); }

 private:
  LockedSimNode node_;
};

// Long and uneven delays, and every transfer in as many pieces as there can be.
sim::SimTiming rough_timing() {
  sim::SimTiming timing;
  timing.delay_ns_spread = 50'000;
  timing.late_per_million = 200'000;
  timing.step_ns_max = 20'000;
  timing.pieces_max = sim::SimNode::kPiecesLimit;
  return timing;
}

class VerbsFixture final : public FabricFixture {
 public:
  ConnectionPtr connect() override { return node_.connect(); }
  void kill_peer() override { node_.dismiss_all(); }
  uint64_t word_at_node(uint64_t offset) const override { return node_.region().word(offset); }

 private:
  VerbsNode node_{kRegionBytes};
};

std::vector<RegisteredFabric> all_fabrics() {
  std::vector<RegisteredFabric> fabrics = {
      {"tcp", [] { return std::make_unique<TcpFixture>(2); }},
      {"tcp with one agent thread", [] { return std::make_unique<TcpFixture>(1); }},
      {"shm", [] { return std::make_unique<ShmFixture>(); }},
      {"sim", [] { return std::make_unique<SimFixture>(sim::SimTiming{}); }},
      {"sim with rough timing", [] { return std::make_unique<SimFixture>(rough_timing()); }},
  };
  if (verbs_device() != nullptr) {
    fabrics.push_back({"verbs", [] { return std::make_unique<VerbsFixture>(); }});
  }
  return fabrics;
}

}  // namespace

const std::vector<RegisteredFabric>& registered_fabrics() {
  static const std::vector<RegisteredFabric> fabrics = all_fabrics();
  return fabrics;
}

}  // namespace kvstore::test
