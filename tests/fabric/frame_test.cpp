// The wire format and its parsers, without sockets.

#include "fabric/cpu/frame.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <vector>

#include "base/crc32c.hpp"
#include "conformance.hpp"

using namespace kvstore;
using namespace kvstore::frame;
using namespace kvstore::test;

namespace {

struct Judgement {
  OpDescriptor op;
  bool allowed;
};

template <typename Structure>
void append(std::vector<uint8_t>& bytes, const Structure& structure) {
  const auto* begin = reinterpret_cast<const uint8_t*>(&structure);
  bytes.insert(bytes.end(), begin, begin + sizeof(structure));
}

// One response to {FAA, READ of `length`, WRITE, CAS}, and the batch it answers.
struct Exchange {
  explicit Exchange(size_t length, uint64_t sequence = 7)
      : payload(pattern(length, length)), received(length) {
    ops = {fetch_and_add(0, 1), read_into(8, received.data(), length, KV_OP_CRC32C),
           write_from(0, payload.data(), 4), compare_and_swap(0, 1, 2)};
    batch.ops = ops.data();
    batch.op_count = static_cast<uint32_t>(ops.size());
    batch.sequence = sequence;
    append(response, ResponseHeader{kResponseMagic, KV_FABRIC_OK, sequence});
    append(response, uint64_t{0x1111});
    response.insert(response.end(), payload.begin(), payload.end());
    response.resize(response.size() + padding_bytes(length));
    append(response, uint64_t{0x2222});
    append(response, ResponseEnd{kEndMagic, static_cast<uint32_t>(sequence)});
  }
  void check_results() const {
    CHECK(ops[0].result == 0x1111);
    CHECK(ops[3].result == 0x2222);
    CHECK(ops[1].result == crc32c(0, payload.data(), payload.size()));
    CHECK(received == payload);
  }

  std::vector<uint8_t> payload, received, response;
  std::vector<kv_op> ops;
  kv_batch batch{};
};

}  // namespace

TEST_CASE("operations are judged against the region") {
  constexpr uint64_t kBytes = 1 << 20;
  const Judgement table[] = {
      {{KV_OP_READ, 0, 0, 1, 0}, true},
      {{KV_OP_READ, 0, 0, kBytes, 0}, true},
      {{KV_OP_WRITE, 0, kBytes - 1, 1, 0}, true},
      {{KV_OP_CAS, 0, kBytes - 8, 5, 6}, true},
      {{KV_OP_FAA, 0, 8, UINT64_MAX, 0}, true},
      {{KV_OP_READ, 0, 0, 0, 0}, false},
      {{KV_OP_READ, 0, 1, kBytes, 0}, false},
      {{KV_OP_READ, 0, kBytes, 1, 0}, false},
      {{KV_OP_WRITE, 0, UINT64_MAX, 2, 0}, false},
      {{KV_OP_WRITE, 0, 2, UINT64_MAX, 0}, false},
      {{KV_OP_WRITE, 0, UINT64_MAX - 7, 8, 0}, false},
      {{KV_OP_CAS, 0, kBytes - 4, 5, 6}, false},
      {{KV_OP_CAS, 0, kBytes, 5, 6}, false},
      {{KV_OP_FAA, 0, 4, 1, 0}, false},
      {{KV_OP_FAA, 0, 8, 1, 1}, false},
      {{KV_OP_READ, 0, 0, 8, 1}, false},
      {{KV_OP_READ, KV_OP_CRC32C, 0, 8, 0}, true},
      {{KV_OP_READ, 2, 0, 8, 0}, false},
      {{0, 0, 0, 8, 0}, false},
      {{5, 0, 0, 8, 0}, false},
  };
  for (const Judgement& row : table) {
    CAPTURE(row.op.kind);
    CAPTURE(row.op.offset);
    CAPTURE(row.op.operand);
    CHECK(operation_allowed(row.op, kBytes) == row.allowed);
  }
  CHECK_FALSE(operation_allowed({KV_OP_FAA, 0, 0, 1, 0}, 7));
  CHECK_FALSE(operation_allowed({KV_OP_READ, 0, 0, 1, 0}, 0));
}

TEST_CASE("the head of a request is parsed at any length") {
  std::vector<uint8_t> bytes;
  append(bytes, RequestHeader{kRequestMagic, 2, 99});
  append(bytes, OpDescriptor{KV_OP_READ, 0, 1, 2, 0});
  append(bytes, OpDescriptor{KV_OP_CAS, 0, 8, 3, 4});
  bytes.push_back(0xff);
  RequestHeader header{};
  std::vector<OpDescriptor> descriptors(kMaxBatchOps);
  size_t head_bytes = 0;
  for (size_t length = 0; length < 80; ++length) {
    CHECK(parse_request_head(bytes.data(), length, header, descriptors.data(), head_bytes) ==
          ParseResult::kNeedMore);
  }
  CHECK(parse_request_head(bytes.data(), bytes.size(), header, descriptors.data(), head_bytes) ==
        ParseResult::kComplete);
  CHECK(head_bytes == 80);
  CHECK(header.sequence == 99);
  CHECK(descriptors[1].desire == 4);
}

TEST_CASE("a head that can never become a request is malformed at once") {
  const RequestHeader table[] = {{kRequestMagic + 1, 1, 0},
                                 {kResponseMagic, 1, 0},
                                 {kRequestMagic, 0, 0},
                                 {kRequestMagic, kMaxBatchOps + 1, 0},
                                 {kRequestMagic, UINT32_MAX, 0}};
  for (const RequestHeader& row : table) {
    RequestHeader header{};
    std::vector<OpDescriptor> descriptors(kMaxBatchOps);
    size_t head_bytes = 0;
    CHECK(parse_request_head(reinterpret_cast<const uint8_t*>(&row), sizeof(row), header,
                             descriptors.data(), head_bytes) == ParseResult::kMalformed);
  }
}

TEST_CASE("a response is understood in pieces of any size") {
  for (const size_t length : {1u, 8u, 100u, 5000u}) {
    for (const size_t piece : {1u, 3u, 8u, 17u, 4096u, 100'000u}) {
      Exchange exchange(length);
      ResponseReader reader;
      reader.expect(&exchange.batch, true);
      auto event = ResponseReader::Event::kNeedMore;
      for (size_t at = 0; at < exchange.response.size();) {
        REQUIRE(event == ResponseReader::Event::kNeedMore);
        size_t consumed = 0;
        const size_t count = std::min(piece, exchange.response.size() - at);
        event = reader.feed(exchange.response.data() + at, count, consumed);
        REQUIRE(consumed == count);
        at += consumed;
      }
      CHECK(event == ResponseReader::Event::kCompleted);
      exchange.check_results();
    }
  }
}

TEST_CASE("a long READ is received in place, wherever the pieces end") {
  for (const size_t arriving : {1u, 20u, 25u, 5000u, 70'000u}) {
    Exchange exchange(60'001);
    ResponseReader reader;
    reader.expect(&exchange.batch, true);
    auto event = ResponseReader::Event::kNeedMore;
    size_t direct_bytes = 0;
    for (size_t at = 0;
         at < exchange.response.size() && event == ResponseReader::Event::kNeedMore;) {
      size_t left = std::min(arriving, exchange.response.size() - at);
      size_t consumed = 0;
      const auto plan = reader.plan(4096, 1 << 20);
      const size_t lead = plan.direct_bytes == 0 ? left : std::min(left, plan.lead_bytes);
      event = reader.feed(exchange.response.data() + at, lead, consumed);
      at += lead;
      left -= lead;
      const size_t direct = std::min(left, plan.direct_bytes);
      if (direct == 0) continue;
      std::copy_n(exchange.response.data() + at, direct, plan.destination);
      reader.credit(direct);
      direct_bytes += direct;
      event = reader.feed(exchange.response.data() + at + direct, left - direct, consumed);
      at += left;
    }
    CHECK(event == ResponseReader::Event::kCompleted);
    CHECK(direct_bytes + 4096 + arriving > 60'001);
    exchange.check_results();
  }
}

TEST_CASE("a plan says whether its bytes are the last of their payload") {
  Exchange exchange(60'001);
  ResponseReader reader;
  reader.expect(&exchange.batch, true);
  size_t at = reader.plan(4096, 20'000).lead_bytes;
  size_t consumed = 0;
  REQUIRE(reader.feed(exchange.response.data(), at, consumed) == ResponseReader::Event::kNeedMore);
  for (const size_t expected : {20'000u, 20'000u, 20'000u}) {
    const auto plan = reader.plan(4096, 20'000);
    CHECK(plan.lead_bytes == 0);
    CHECK(plan.payload_bytes == 60'001);
    CHECK(plan.direct_bytes == expected);
    CHECK_FALSE(plan.ends_payload);
    std::copy_n(exchange.response.data() + at, expected - 4096, plan.destination);
    reader.credit(expected - 4096);
    at += expected - 4096;
  }
  const auto plan = reader.plan(4096, 20'000);
  CHECK(plan.direct_bytes == 60'001 - 3 * (20'000 - 4096));
  CHECK(plan.ends_payload);
}

TEST_CASE("a garbled response is never taken for a good one") {
  const size_t places[] = {0, 1, 2, 3, 4, 5, 8, 15, 24 + 5, 24 + 7, 40, 43, 44, 47};
  for (const size_t place : places) {
    CAPTURE(place);
    Exchange exchange(5);
    REQUIRE(exchange.response.size() == 48);
    exchange.response[place] ^= 0x40;
    ResponseReader reader;
    reader.expect(&exchange.batch, true);
    size_t consumed = 0;
    CHECK(reader.feed(exchange.response.data(), exchange.response.size(), consumed) ==
          ResponseReader::Event::kGarbled);
  }
  ResponseReader idle;
  size_t consumed = 0;
  const uint8_t byte = 0;
  CHECK(idle.feed(&byte, 1, consumed) == ResponseReader::Event::kGarbled);
}

TEST_CASE("success is not believed of a batch that cannot succeed") {
  Exchange exchange(100);
  ResponseReader reader;
  size_t consumed = 0;
  reader.expect(&exchange.batch, false);
  CHECK(reader.plan(4096, 4096).direct_bytes == 0);
  CHECK(reader.feed(exchange.response.data(), exchange.response.size(), consumed) ==
        ResponseReader::Event::kGarbled);
  CHECK(std::count(exchange.received.begin(), exchange.received.end(), 0) == 100);
  const ResponseHeader refusal{kResponseMagic, KV_FABRIC_REFUSED, 7};
  reader.expect(&exchange.batch, false);
  CHECK(reader.feed(reinterpret_cast<const uint8_t*>(&refusal), sizeof(refusal), consumed) ==
        ResponseReader::Event::kRefused);
}
