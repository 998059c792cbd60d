// The wire format of the tcp fabric, and the parsers of it as functions over bytes (no socket
// here).
//
//   client                                                      agent
//     Hello                                      ->
//                                                <-  Welcome
//     RequestHeader, OpDescriptor[op_count],     ->
//       then, for each WRITE in order: its payload
//                                                <-  ResponseHeader, then, if the status is OK,
//                                                      for each operation in order:
//                                                        CAS, FAA: the word before (8 bytes)
//                                                        READ: its payload
//                                                        WRITE: nothing
//                                                      and ResponseEnd
//
// Every integer is little endian and fixed-width. Every payload is followed by zero bytes up to the
// next multiple of 8, so every frame begins at a multiple of 8 of its stream. A response carries no
// lengths: they follow from the request, so a client has none to distrust. Requests are answered in
// order. A response may begin before its request has arrived in full, so only ResponseEnd says that
// everything has been executed.
//
// An agent refuses a request as a whole before it executes any of it. It then answers REFUSED,
// reads no further frame and closes. A frame that breaks the format is not answered; the agent
// closes.

#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "fabric/fabric.h"

namespace kvstore::frame {

static_assert(std::endian::native == std::endian::little,
              "the structures below are the wire format; a big-endian host must convert them");

inline constexpr uint64_t kHelloMagic = 0x3150'4354'564b'0a0dull;  // "\r\nKVTCP1"
inline constexpr uint32_t kRequestMagic = 0x5152'564b;             // "KVRQ"
inline constexpr uint32_t kResponseMagic = 0x5352'564b;            // "KVRS"
inline constexpr uint32_t kEndMagic = 0x4552'564b;                 // "KVRE"
inline constexpr uint32_t kVersion = 1;

inline constexpr uint32_t kMaxBatchOps = 1024;
inline constexpr uint32_t kMaxOutstanding = 256;
inline constexpr uint64_t kAlignment = 8;

struct Hello {
  uint64_t magic;
  uint32_t version;
  uint32_t registration;
  uint32_t lane;
  uint32_t reserved;  // 0
  uint64_t incarnation;
  uint8_t token[16];
};

enum WelcomeStatus : uint32_t {
  kWelcomeOk = 0,
  kWelcomeVersion = 1,      // the agent speaks only `Welcome.version`
  kWelcomeIncarnation = 2,  // the node has restarted since the registration was granted
  kWelcomeToken = 3,        // wrong token, or the registration is unknown or fenced
  kWelcomeFull = 4,         // the agent has as many connections as it takes
};

struct Welcome {
  uint64_t magic;
  uint32_t version;
  uint32_t status;  // WelcomeStatus; the limits below are 0 unless it is kWelcomeOk
  uint64_t region_bytes;
  uint32_t max_batch_ops;
  uint32_t max_outstanding;
};

struct RequestHeader {
  uint32_t magic;
  uint32_t op_count;  // 1 .. kMaxBatchOps
  uint64_t sequence;  // the client's, returned in the response
};

struct OpDescriptor {
  uint32_t kind;   // kv_op_kind
  uint32_t flags;  // KV_OP_CRC32C as a hint: the reader checks the payload as a whole
  uint64_t offset;
  uint64_t operand;  // READ, WRITE: length in bytes; CAS: expected word; FAA: addend
  uint64_t desire;   // CAS: new word; otherwise 0
};

struct ResponseHeader {
  uint32_t magic;
  uint32_t status;  // KV_FABRIC_OK or KV_FABRIC_REFUSED
  uint64_t sequence;
};

struct ResponseEnd {
  uint32_t magic;
  uint32_t sequence;  // its low half
};

static_assert(sizeof(Hello) == 48 && offsetof(Hello, incarnation) == 24 &&
              offsetof(Hello, token) == 32);
static_assert(sizeof(Welcome) == 32 && offsetof(Welcome, region_bytes) == 16);
static_assert(sizeof(RequestHeader) == 16 && offsetof(RequestHeader, sequence) == 8);
static_assert(sizeof(OpDescriptor) == 32 && offsetof(OpDescriptor, offset) == 8 &&
              offsetof(OpDescriptor, operand) == 16 && offsetof(OpDescriptor, desire) == 24);
static_assert(sizeof(ResponseHeader) == 16 && offsetof(ResponseHeader, sequence) == 8);
static_assert(sizeof(ResponseEnd) == 8);

// The largest part of a request that must lie in one buffer before it can be judged.
inline constexpr size_t kMaxRequestHeadBytes =
    sizeof(RequestHeader) + kMaxBatchOps * sizeof(OpDescriptor);

// The zero bytes that follow a payload of `payload_bytes`.
constexpr uint64_t padding_bytes(uint64_t payload_bytes) {
  return (kAlignment - payload_bytes % kAlignment) % kAlignment;
}

OpDescriptor describe(const kv_op& op);

// Whether a region of `region_bytes` can execute the operation: a known kind, no unknown flag, at
// least one byte, all of it inside the region, atomics aligned. Overflow-safe for any values.
bool operation_allowed(const OpDescriptor& op, uint64_t region_bytes);

// Whether `hello` is a greeting of this protocol, of whatever version.
bool hello_well_formed(const Hello& hello);

enum class ParseResult {
  kNeedMore,   // the head of the request is not complete yet
  kMalformed,  // these bytes can never become a request
  kComplete,   // header and descriptors are written; WRITE payloads follow
};

// Parses the head of a request (header and descriptors) at the beginning of `bytes`. On kComplete
// `descriptors[0 .. header.op_count)` are written and the head took `head_bytes`. Descriptors are
// checked for format only; `operation_allowed` judges them. `descriptors` has kMaxBatchOps entries.
ParseResult parse_request_head(const uint8_t* bytes, size_t available, RequestHeader& header,
                               OpDescriptor* descriptors, size_t& head_bytes);

// Takes the responses of a connection apart and puts results and payloads where the batches want
// them. It consumes bytes in whatever pieces they arrive and keeps at most one header of them.
class ResponseReader {
 public:
  enum class Event {
    kNeedMore,   // all bytes consumed
    kCompleted,  // the expected batch is complete; bytes may remain
    kRefused,    // the expected batch was refused; nothing may follow
    kGarbled,    // the peer broke the format
  };

  // Where the next bytes of the stream belong: `lead_bytes` through `feed`, then `direct_bytes` at
  // `destination`, then whatever comes through `feed`.
  struct Plan {
    size_t lead_bytes = 0;
    uint8_t* destination = nullptr;
    size_t direct_bytes = 0;
    uint64_t payload_bytes = 0;  // of the READ that the direct bytes belong to
    bool ends_payload = false;   // the last of the direct bytes is the last of the payload
  };

  // Names the batch whose response comes next; nullptr if none is due. An answer of OK is garbled
  // if not `may_succeed`: the operations of such a batch were never checked against their memory.
  void expect(kv_batch* batch, bool may_succeed);

  Event feed(const uint8_t* bytes, size_t available, size_t& consumed);

  // Looks ahead past at most `lead_limit` bytes for a READ payload worth receiving in place.
  Plan plan(size_t lead_limit, size_t direct_limit) const;

  // `bytes` bytes have arrived at the planned destination, after the planned lead was fed.
  void credit(size_t bytes);

 private:
  bool feed_header(const uint8_t*& cursor, const uint8_t* end, Event& event);
  bool stage(size_t wanted, const uint8_t*& cursor, const uint8_t* end);
  Event feed_end(const uint8_t*& cursor, const uint8_t* end);
  Event feed_payload(kv_op& op, const uint8_t*& cursor, const uint8_t* end);
  void begin_op();

  kv_batch* batch_ = nullptr;
  bool may_succeed_ = false;
  bool header_done_ = false;
  uint32_t op_index_ = 0;
  uint64_t op_bytes_ = 0;  // of the current operation's result, padding included, so far
  size_t staged_bytes_ = 0;
  uint8_t staged_[sizeof(ResponseHeader)] = {};
};

}  // namespace kvstore::frame
