// The fabrics that are held to the rules of the conformance suite.

#include "conformance.hpp"
#include "fabric/cpu/shm.hpp"
#include "tcp_node.hpp"

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

}  // namespace

const std::vector<RegisteredFabric>& registered_fabrics() {
  static const std::vector<RegisteredFabric> fabrics = {
      {"tcp", [] { return std::make_unique<TcpFixture>(2); }},
      {"tcp with one agent thread", [] { return std::make_unique<TcpFixture>(1); }},
      {"shm", [] { return std::make_unique<ShmFixture>(); }},
  };
  return fabrics;
}

}  // namespace kvstore::test
