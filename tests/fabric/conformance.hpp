// The rules that every fabric obeys, one a row, and what a fabric must provide to be held to them.

#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "fabric/fabric.h"

namespace kvstore::test {

struct ConnectionDeleter {
  void operator()(kv_connection* connection) const { connection->ops->destroy(connection); }
};
using ConnectionPtr = std::unique_ptr<kv_connection, ConnectionDeleter>;

// A node with a fresh zeroed region.
class FabricFixture {
 public:
  static constexpr uint64_t kRegionBytes = 72u << 20;

  virtual ~FabricFixture() = default;
  // A new connection, usable from any one thread. Never null: it fails the test instead.
  virtual ConnectionPtr connect() = 0;
  // Ends the node as a crash would: connections learn of it by themselves.
  virtual void kill_peer() = 0;
  // What stands in the region, read at the node.
  virtual uint64_t word_at_node(uint64_t offset) const = 0;
};

struct RegisteredFabric {
  std::string name;
  std::function<std::unique_ptr<FabricFixture>()> make;
};

// The fabrics under test; each joins with one line of the table in fabrics.cpp.
const std::vector<RegisteredFabric>& registered_fabrics();

struct ConformanceRule {
  const char* name;
  void (*check)(FabricFixture& fixture);
};

std::span<const ConformanceRule> conformance_rules();

// A batch with its operations, and whether it is done.
class TestBatch {
 public:
  explicit TestBatch(std::vector<kv_op> operations);
  TestBatch(const TestBatch&) = delete;
  TestBatch& operator=(const TestBatch&) = delete;

  void post(kv_connection& connection);
  bool done() const { return done_; }
  uint32_t status() const { return batch_.status; }
  const kv_op& op(size_t index) const { return ops_[index]; }
  // The position of this batch among all that completed in this thread.
  uint64_t completion_order() const { return order_; }

 private:
  static void on_complete(kv_batch* batch);

  std::vector<kv_op> ops_;
  kv_batch batch_{};
  bool done_ = false;
  uint64_t order_ = 0;
};

// Polls, blocking in between, until the batch is done or the time is over. Returns whether it is.
bool drive(kv_connection& connection, const TestBatch& batch, uint64_t limit_ms = 20'000);

// Posts and drives one batch; returns its status. A batch that never completes fails the test.
uint32_t execute(kv_connection& connection, TestBatch& batch);

kv_op read_into(uint64_t offset, void* destination, uint64_t length, uint32_t flags = 0);
kv_op write_from(uint64_t offset, const void* source, uint64_t length, uint32_t flags = 0);
kv_op compare_and_swap(uint64_t offset, uint64_t expected, uint64_t desire);
kv_op fetch_and_add(uint64_t offset, uint64_t addend);

// Bytes that differ from place to place and from seed to seed.
std::vector<uint8_t> pattern(size_t bytes, uint64_t seed);

}  // namespace kvstore::test
