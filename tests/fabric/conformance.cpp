#include "conformance.hpp"

#include <doctest/doctest.h>
#include <poll.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <thread>

#include "base/crc32c.hpp"
#include "base/time_scale.hpp"
#include "fabric/cpu/tcp_socket.hpp"

namespace kvstore::test {

namespace {

constexpr uint64_t kRegionBytes = FabricFixture::kRegionBytes;

thread_local uint64_t completions = 0;

}  // namespace

TestBatch::TestBatch(std::vector<kv_op> operations) : ops_(std::move(operations)) {}

void TestBatch::on_complete(kv_batch* batch) {
  auto& self = *static_cast<TestBatch*>(batch->context);
  REQUIRE(!self.done_);
  self.done_ = true;
  self.order_ = ++completions;
}

void TestBatch::post(kv_connection& connection) {
  done_ = false;
  batch_.ops = ops_.data();
  batch_.op_count = static_cast<uint32_t>(ops_.size());
  batch_.complete = &TestBatch::on_complete;
  batch_.context = this;
  const uint32_t status = connection.ops->post(&connection, &batch_);
  if (status == KV_FABRIC_PENDING) return;
  batch_.status = status;
  done_ = true;
  order_ = ++completions;
}

bool drive(kv_connection& connection, const TestBatch& batch, uint64_t limit_ms) {
  const uint64_t end_ns = monotonic_ns() + limit_ms * 1'000'000;
  while (!batch.done()) {
    if (connection.ops->poll(&connection) > 0) continue;
    if (monotonic_ns() > end_ns) return false;
    short events = 0;
    const int fd = connection.ops->wait_descriptor(&connection, &events);
    pollfd entry{fd, events, 0};
    if (fd >= 0) poll(&entry, 1, 100);
  }
  return true;
}

uint32_t execute(kv_connection& connection, TestBatch& batch) {
  batch.post(connection);
  REQUIRE(drive(connection, batch));
  return batch.status();
}

kv_op read_into(uint64_t offset, void* destination, uint64_t length, uint32_t flags) {
  return kv_op{offset, length, destination, 0, 0, 0, KV_OP_READ, flags};
}

kv_op write_from(uint64_t offset, const void* source, uint64_t length, uint32_t flags) {
  return kv_op{offset, length, const_cast<void*>(source), 0, 0, 0, KV_OP_WRITE, flags};
}

kv_op compare_and_swap(uint64_t offset, uint64_t expected, uint64_t desire) {
  return kv_op{offset, 8, nullptr, expected, desire, 0, KV_OP_CAS, 0};
}

kv_op fetch_and_add(uint64_t offset, uint64_t addend) {
  return kv_op{offset, 8, nullptr, addend, 0, 0, KV_OP_FAA, 0};
}

std::vector<uint8_t> pattern(size_t bytes, uint64_t seed) {
  std::vector<uint8_t> result(bytes);
  uint64_t state = seed * 0x9e37'79b9'7f4a'7c15ull + 1;
  for (uint8_t& byte : result) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    byte = static_cast<uint8_t>(state >> 56);
  }
  return result;
}

namespace {

uint32_t execute_ops(kv_connection& connection, std::vector<kv_op> ops) {
  TestBatch batch(std::move(ops));
  return execute(connection, batch);
}

// The node goes on serving others, and `connection` is over.
void check_only_this_connection_ended(FabricFixture& fixture, kv_connection& connection) {
  uint64_t word = 0;
  CHECK(connection.broken == 1);
  CHECK(execute_ops(connection, {read_into(0, &word, 8)}) == KV_FABRIC_DOWN);
  const ConnectionPtr other = fixture.connect();
  CHECK(execute_ops(*other, {fetch_and_add(8, 1)}) == KV_FABRIC_OK);
}

void write_then_read(FabricFixture& fixture) {
  const ConnectionPtr connection = fixture.connect();
  for (const size_t length : {1u, 7u, 8u, 13u, 1000u, 4096u, 20'000u, 300'001u}) {
    const auto source = pattern(length, length);
    std::vector<uint8_t> inside(length), after(length);
    TestBatch both({write_from(24, source.data(), length), read_into(24, inside.data(), length)});
    CHECK(execute(*connection, both) == KV_FABRIC_OK);
    CHECK(inside == source);
    CHECK(execute_ops(*connection, {read_into(24, after.data(), length)}) == KV_FABRIC_OK);
    CHECK(after == source);
  }
}

void read_does_not_see_later_write(FabricFixture& fixture) {
  const ConnectionPtr connection = fixture.connect();
  for (const size_t length : {8u, 1000u, 16'384u, 16'385u, 2'000'003u}) {
    const auto old_bytes = pattern(length, 1), new_bytes = pattern(length, 2);
    std::vector<uint8_t> seen(length);
    CHECK(execute_ops(*connection, {write_from(8, old_bytes.data(), length)}) == KV_FABRIC_OK);
    TestBatch batch({read_into(8, seen.data(), length), write_from(8, new_bytes.data(), length)});
    CHECK(execute(*connection, batch) == KV_FABRIC_OK);
    CHECK(seen == old_bytes);
  }
}

void later_write_wins(FabricFixture& fixture) {
  const ConnectionPtr connection = fixture.connect();
  const auto first = pattern(50'000, 1), second = pattern(50'000, 2);
  std::vector<uint8_t> seen(50'000);
  TestBatch batch({write_from(0, first.data(), 50'000), write_from(0, second.data(), 50'000),
                   write_from(100, first.data(), 10), read_into(0, seen.data(), 50'000)});
  CHECK(execute(*connection, batch) == KV_FABRIC_OK);
  auto expected = second;
  std::copy_n(first.begin(), 10, expected.begin() + 100);
  CHECK(seen == expected);
}

// Completion means execution: other connections and the node see it at once.
void completed_write_has_executed(FabricFixture& fixture) {
  const ConnectionPtr connection = fixture.connect();
  std::vector<uint64_t> words(1'000'000);
  uint64_t read_first = 0;
  for (uint64_t round = 1; round <= 20; ++round) {
    std::fill(words.begin(), words.end(), round);
    TestBatch batch({read_into(8, &read_first, 8), write_from(8, words.data(), words.size() * 8)});
    CHECK(execute(*connection, batch) == KV_FABRIC_OK);
    CHECK(read_first == round - 1);
    CHECK(fixture.word_at_node(8) == round);
    CHECK(fixture.word_at_node(words.size() * 8) == round);
  }
}

void atomic_then_read(FabricFixture& fixture) {
  const ConnectionPtr connection = fixture.connect();
  uint64_t inside = 0, between = 0, after = 0;
  TestBatch first({fetch_and_add(64, 5), read_into(64, &inside, 8), compare_and_swap(64, 5, 9)});
  TestBatch second({read_into(64, &between, 8), fetch_and_add(64, 1)});
  TestBatch third({read_into(64, &after, 8)});
  first.post(*connection);
  second.post(*connection);
  third.post(*connection);
  CHECK(drive(*connection, third));
  CHECK(inside == 5);
  CHECK(between == 9);
  CHECK(after == 10);
  CHECK(second.op(1).result == 9);
}

void cas_returns_word_before(FabricFixture& fixture) {
  const ConnectionPtr connection = fixture.connect();
  TestBatch batch({compare_and_swap(8, 0, 7), compare_and_swap(8, 0, 8),
                   compare_and_swap(8, 7, UINT64_MAX), compare_and_swap(8, 7, 1)});
  CHECK(execute(*connection, batch) == KV_FABRIC_OK);
  CHECK(batch.op(0).result == 0);
  CHECK(batch.op(1).result == 7);
  CHECK(batch.op(2).result == 7);
  CHECK(batch.op(3).result == UINT64_MAX);
  CHECK(fixture.word_at_node(8) == UINT64_MAX);
}

void faa_wraps(FabricFixture& fixture) {
  const ConnectionPtr connection = fixture.connect();
  TestBatch batch({fetch_and_add(16, UINT64_MAX), fetch_and_add(16, 3)});
  CHECK(execute(*connection, batch) == KV_FABRIC_OK);
  CHECK(batch.op(0).result == 0);
  CHECK(batch.op(1).result == UINT64_MAX);
  CHECK(fixture.word_at_node(16) == 2);
}

void concurrent_faa_loses_nothing(FabricFixture& fixture) {
  constexpr int kThreads = 4, kBatches = 200, kOps = 20;
  std::atomic<int> failed{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&fixture, &failed] {
      const ConnectionPtr connection = fixture.connect();
      for (int n = 0; n < kBatches; ++n) {
        TestBatch batch(std::vector<kv_op>(kOps, fetch_and_add(128, 1)));
        batch.post(*connection);
        if (!drive(*connection, batch) || batch.status() != KV_FABRIC_OK) ++failed;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(failed == 0);
  CHECK(fixture.word_at_node(128) == kThreads * kBatches * kOps);
}

void misaligned_atomic_refused(FabricFixture& fixture) {
  for (const uint64_t offset : {1u, 4u, 15u}) {
    for (const kv_op& op : {compare_and_swap(offset, 0, 1), fetch_and_add(offset, 1)}) {
      const ConnectionPtr connection = fixture.connect();
      TestBatch batch({op});
      CHECK(execute(*connection, batch) == KV_FABRIC_REFUSED);
      check_only_this_connection_ended(fixture, *connection);
    }
  }
  CHECK(fixture.word_at_node(0) == 0);
}

void atomic_of_other_length_refused(FabricFixture& fixture) {
  for (const uint64_t length : {0u, 4u, 16u}) {
    const ConnectionPtr connection = fixture.connect();
    kv_op op = fetch_and_add(0, 1);
    op.length = length;
    CHECK(execute_ops(*connection, {op}) == KV_FABRIC_REFUSED);
  }
  CHECK(fixture.word_at_node(0) == 0);
}

void out_of_region_refused(FabricFixture& fixture) {
  uint64_t local[2] = {};
  const std::pair<uint64_t, uint64_t> ranges[] = {
      {kRegionBytes, 1},          {kRegionBytes - 8, 9},   {0, kRegionBytes + 1},
      {UINT64_MAX - 7, 16},       {16, UINT64_MAX - 8},    {UINT64_MAX, 1},
      {kRegionBytes, UINT64_MAX}, {UINT64_MAX, UINT64_MAX}};
  for (const auto& [offset, length] : ranges) {
    for (const kv_op& op : {read_into(offset, local, length), write_from(offset, local, length)}) {
      const ConnectionPtr connection = fixture.connect();
      TestBatch batch({op});
      CHECK(execute(*connection, batch) == KV_FABRIC_REFUSED);
      check_only_this_connection_ended(fixture, *connection);
    }
  }
  for (const uint64_t offset : {uint64_t{kRegionBytes}, uint64_t{UINT64_MAX - 7}}) {
    const ConnectionPtr connection = fixture.connect();
    CHECK(execute_ops(*connection, {compare_and_swap(offset, 0, 1)}) == KV_FABRIC_REFUSED);
  }
  const ConnectionPtr connection = fixture.connect();
  CHECK(execute_ops(*connection, {read_into(kRegionBytes - 8, local, 8)}) == KV_FABRIC_OK);
}

void zero_length_refused(FabricFixture& fixture) {
  uint64_t local = 0;
  for (const kv_op& op : {read_into(0, &local, 0), write_from(0, &local, 0)}) {
    const ConnectionPtr connection = fixture.connect();
    TestBatch batch({op});
    CHECK(execute(*connection, batch) == KV_FABRIC_REFUSED);
    check_only_this_connection_ended(fixture, *connection);
  }
}

void unknown_kind_refused(FabricFixture& fixture) {
  for (const uint32_t kind : {0u, 5u, UINT32_MAX}) {
    const ConnectionPtr connection = fixture.connect();
    kv_op op = fetch_and_add(0, 1);
    op.kind = kind;
    TestBatch batch({op});
    CHECK(execute(*connection, batch) == KV_FABRIC_REFUSED);
    check_only_this_connection_ended(fixture, *connection);
  }
}

// Batches before the refused one count; what follows the refused operation does not happen.
void refusal_stops_everything_after(FabricFixture& fixture) {
  const ConnectionPtr connection = fixture.connect();
  TestBatch before({fetch_and_add(0, 1)});
  TestBatch refused({fetch_and_add(8, 1), fetch_and_add(3, 1), fetch_and_add(16, 1)});
  TestBatch after({fetch_and_add(24, 1)});
  before.post(*connection);
  refused.post(*connection);
  after.post(*connection);
  CHECK(drive(*connection, before));
  CHECK(drive(*connection, refused));
  CHECK(drive(*connection, after));
  CHECK(before.status() == KV_FABRIC_OK);
  CHECK(refused.status() == KV_FABRIC_REFUSED);
  CHECK((after.status() == KV_FABRIC_LOST || after.status() == KV_FABRIC_DOWN));
  CHECK(fixture.word_at_node(0) == 1);
  CHECK(fixture.word_at_node(16) == 0);
  CHECK(fixture.word_at_node(24) == 0);
}

void checksums_are_of_the_bytes_moved(FabricFixture& fixture) {
  const ConnectionPtr connection = fixture.connect();
  for (const size_t length : {1u, 8u, 9u, 1024u, 5000u, 70'000u, 1'000'001u}) {
    const auto source = pattern(length, length);
    std::vector<uint8_t> seen(length);
    kv_op write = write_from(40, source.data(), length, KV_OP_CRC32C);
    kv_op read = read_into(40, seen.data(), length, KV_OP_CRC32C);
    write.operand = 0;
    read.operand = 0x1234'5678;
    TestBatch batch({write, read});
    CHECK(execute(*connection, batch) == KV_FABRIC_OK);
    CHECK(batch.op(0).result == crc32c(0, source.data(), length));
    CHECK(batch.op(1).result == crc32c(0x1234'5678, source.data(), length));
    CHECK(seen == source);
  }
}

void large_transfers_intact(FabricFixture& fixture) {
  constexpr size_t kLength = 64u << 20;
  const ConnectionPtr connection = fixture.connect();
  const auto source = pattern(kLength, 3);
  std::vector<uint8_t> seen(kLength);
  CHECK(execute_ops(*connection, {write_from(4096, source.data(), kLength)}) == KV_FABRIC_OK);
  TestBatch both({read_into(4096, seen.data(), kLength, KV_OP_CRC32C)});
  CHECK(execute(*connection, both) == KV_FABRIC_OK);
  CHECK(std::memcmp(seen.data(), source.data(), kLength) == 0);
  CHECK(both.op(0).result == crc32c(0, source.data(), kLength));
  // Both directions full at the same time.
  const auto other = pattern(kLength / 2, 4);
  TestBatch down(
      {read_into(4096, seen.data(), kLength / 2), write_from(4096, other.data(), kLength / 2)});
  TestBatch up({read_into(4096, seen.data(), kLength / 2)});
  down.post(*connection);
  up.post(*connection);
  CHECK(drive(*connection, up));
  CHECK(up.status() == KV_FABRIC_OK);
  CHECK(std::memcmp(seen.data(), other.data(), kLength / 2) == 0);
}

void many_outstanding_complete_in_order(FabricFixture& fixture) {
  const ConnectionPtr connection = fixture.connect();
  const size_t count = std::min(connection->max_outstanding, 256u);
  const size_t ops = std::min(connection->max_batch_ops, 1024u);
  std::vector<std::unique_ptr<TestBatch>> batches;
  for (size_t i = 0; i < count; ++i) {
    const size_t length = i % 5 == 0 ? ops : 1 + i % 7;
    batches.push_back(
        std::make_unique<TestBatch>(std::vector<kv_op>(length, fetch_and_add(256, 1))));
    batches.back()->post(*connection);
  }
  CHECK(drive(*connection, *batches.back()));
  uint64_t expected = 0;
  for (size_t i = 0; i < count; ++i) {
    REQUIRE(batches[i]->done());
    CHECK(batches[i]->status() == KV_FABRIC_OK);
    if (i > 0) CHECK(batches[i]->completion_order() == batches[i - 1]->completion_order() + 1);
    const size_t length = i % 5 == 0 ? ops : 1 + i % 7;
    CHECK(batches[i]->op(0).result == expected);
    CHECK(batches[i]->op(length - 1).result == expected + length - 1);
    expected += length;
  }
  CHECK(fixture.word_at_node(256) == expected);
}

void batch_of_everything(FabricFixture& fixture) {
  const ConnectionPtr connection = fixture.connect();
  const size_t lengths[] = {1, 8, 2048, 2049, 4095, 4096, 4097, 16'384, 16'385, 70'000, 300'007};
  std::vector<kv_op> ops;
  std::vector<std::vector<uint8_t>> sources, results;
  uint64_t offset = 1024;
  for (const size_t length : lengths) {
    sources.push_back(pattern(length, length));
    results.emplace_back(length);
    ops.push_back(write_from(offset, sources.back().data(), length));
    ops.push_back(fetch_and_add(8, length));
    ops.push_back(read_into(offset, results.back().data(), length, KV_OP_CRC32C));
    offset += length + 3;
  }
  TestBatch batch(ops);
  for (int round = 0; round < 20; ++round) {
    for (auto& result : results) std::fill(result.begin(), result.end(), 0);
    REQUIRE(execute(*connection, batch) == KV_FABRIC_OK);
    for (size_t i = 0; i < results.size(); ++i) CHECK(results[i] == sources[i]);
  }
}

// Writers store words whose halves are equal; a reader must never see two different halves.
void words_are_never_torn(FabricFixture& fixture) {
  constexpr size_t kWords = 24'000;
  constexpr int kRounds = 60;
  std::atomic<bool> stop{false};
  std::atomic<int> failed{0};
  const auto write_rounds = [&](uint32_t seed) {
    const ConnectionPtr connection = fixture.connect();
    std::vector<uint64_t> words(kWords);
    for (uint32_t value = seed; !stop; value += 2) {
      std::fill(words.begin(), words.end(), uint64_t{value} << 32 | value);
      TestBatch batch({write_from(16, words.data(), kWords * 8), write_from(8, words.data(), 8)});
      batch.post(*connection);
      if (!drive(*connection, batch) || batch.status() != KV_FABRIC_OK) ++failed;
    }
  };
  std::thread first(write_rounds, 1), second(write_rounds, 2);
  const ConnectionPtr connection = fixture.connect();
  size_t torn = 0;
  for (int round = 0; round < kRounds; ++round) {
    std::vector<uint64_t> seen(kWords + 1);
    // Two shapes: all at once, and the first words as transfers of their own.
    TestBatch batch({read_into(16, seen.data(), kWords * 8), read_into(8, &seen[kWords], 8),
                     read_into(24, &seen[1], 1024)});
    batch.post(*connection);
    if (!drive(*connection, batch) || batch.status() != KV_FABRIC_OK) ++failed;
    for (const uint64_t word : seen) torn += (word >> 32) != (word & UINT32_MAX);
  }
  stop = true;
  first.join();
  second.join();
  CHECK(failed == 0);
  CHECK(torn == 0);
}

void peer_death_loses_what_is_pending(FabricFixture& fixture) {
  const ConnectionPtr connection = fixture.connect();
  CHECK(execute_ops(*connection, {fetch_and_add(0, 1)}) == KV_FABRIC_OK);
  fixture.kill_peer();
  TestBatch first({fetch_and_add(0, 1)}), second({fetch_and_add(0, 1)});
  const uint64_t begin_ns = monotonic_ns();
  first.post(*connection);
  second.post(*connection);
  CHECK(drive(*connection, first));
  CHECK(drive(*connection, second));
  for (const TestBatch* batch : {&first, &second}) {
    CHECK((batch->status() == KV_FABRIC_LOST || batch->status() == KV_FABRIC_DOWN));
  }
  CHECK(monotonic_ns() - begin_ns < patient(5'000'000'000));
  CHECK(connection->broken == 1);
  CHECK(execute_ops(*connection, {fetch_and_add(0, 1)}) == KV_FABRIC_DOWN);
}

void close_is_final(FabricFixture& fixture) {
  const ConnectionPtr connection = fixture.connect();
  TestBatch pending({fetch_and_add(0, 1)});
  pending.post(*connection);
  connection->ops->close(connection.get());
  CHECK(pending.done());
  CHECK((pending.status() == KV_FABRIC_LOST || connection->completes_inline == 1));
  CHECK(connection->broken == 1);
  CHECK(execute_ops(*connection, {fetch_and_add(0, 1)}) == KV_FABRIC_DOWN);
  connection->ops->close(connection.get());
  CHECK(connection->ops->poll(connection.get()) == 0);
  CHECK(execute_ops(*connection, {fetch_and_add(0, 1)}) == KV_FABRIC_DOWN);
}

void table_is_of_this_version(FabricFixture& fixture) {
  const ConnectionPtr connection = fixture.connect();
  CHECK(connection->ops->abi_version == KV_FABRIC_ABI_VERSION);
  CHECK(connection->region_bytes == kRegionBytes);
  CHECK(connection->max_batch_ops >= KV_FABRIC_BATCH_OPS_LEAST);
  CHECK(connection->max_outstanding >= KV_FABRIC_OUTSTANDING_LEAST);
  CHECK(connection->broken == 0);
}

constexpr ConformanceRule kRules[] = {
    {"the connection describes itself", table_is_of_this_version},
    {"a READ sees the WRITEs before it", write_then_read},
    {"a READ does not see the WRITEs after it", read_does_not_see_later_write},
    {"the later of two WRITEs wins", later_write_wins},
    {"a WRITE that has completed has executed", completed_write_has_executed},
    {"a READ sees the atomics before it, in the batch and between batches", atomic_then_read},
    {"CAS returns the word before, whether it succeeds or not", cas_returns_word_before},
    {"FAA wraps around", faa_wraps},
    {"concurrent FAAs lose nothing", concurrent_faa_loses_nothing},
    {"a misaligned atomic is refused", misaligned_atomic_refused},
    {"an atomic of another length than a word is refused", atomic_of_other_length_refused},
    {"an access outside the region is refused", out_of_region_refused},
    {"a transfer of no bytes is refused", zero_length_refused},
    {"an unknown kind of operation is refused", unknown_kind_refused},
    {"nothing after a refused operation executes", refusal_stops_everything_after},
    {"checksums are of exactly the bytes moved", checksums_are_of_the_bytes_moved},
    {"large transfers arrive intact", large_transfers_intact},
    {"all outstanding batches complete in order", many_outstanding_complete_in_order},
    {"one batch may mix operations of all kinds and lengths", batch_of_everything},
    {"a word is never torn", words_are_never_torn},
    {"the death of the peer completes what is pending in bounded time",
     peer_death_loses_what_is_pending},
    {"close is final and idempotent", close_is_final},
};

}  // namespace

std::span<const ConformanceRule> conformance_rules() {
  return kRules;
}

}  // namespace kvstore::test
