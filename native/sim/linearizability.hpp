// Is a recorded history of one key linearizable? The search of Wing and Gong with Lowe's
// memory of configurations: operations are placed one after another, each at an instant between its
// call and its return, such that every answer is what a versioned register would have given.
//
// An operation without a known outcome (its client crashed, its deadline passed, its completion was
// lost) may take effect at any instant after its call, or never. Registers of different keys are
// independent, so a history is checked key by key.
//
// Every written value has a number of its own, so a read says which write it saw. A number that
// nobody wrote is garbage, and no order explains it.

#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace kvstore::sim {

enum class OperationKind : uint8_t {
  kGet,
  kContains,
  kPut,
  kDelete,
  kWipe  // of nobody: the key's node lost its power
};

enum class OperationCondition : uint8_t {
  kNone,
  kIfAbsent,  // of a put: the key is not there
  kIfVersion  // of a put or a delete: the key is there with `if_version`
};

enum class OperationOutcome : uint8_t {
  kOk,               // read, there, written or deleted
  kAbsent,           // of get, contains and delete
  kConditionFailed,  // nothing was changed
  kFenced,           // likewise: somebody has written with a later fence
  kNoEffect,         // it failed and says that it changed nothing: no statement about the key
  kUnknown           // it may have taken effect, may still do so, or never
};

inline constexpr uint64_t kNeverReturned = UINT64_MAX;

struct Operation {
  uint32_t client = 0;
  uint64_t key = 0;
  OperationKind kind = OperationKind::kGet;
  OperationCondition condition = OperationCondition::kNone;
  OperationOutcome outcome = OperationOutcome::kUnknown;
  uint64_t called_ns = 0;
  uint64_t returned_ns = kNeverReturned;  // later than or equal to the call
  uint64_t value = 0;                     // the number written or read, from 1
  uint64_t version = 0;                   // as returned by a put or a get; 0: not known
  uint64_t if_version = 0;
  uint64_t fence = 0;     // of a put or a delete: the token that it carries; 0: none
  bool mortal = false;    // of a put: with a time to live, so it may vanish
  uint64_t lives_ns = 0;  // how long
  bool copied = false;    // of a read: from a client's copy
};

struct LinearizabilityOptions {
  // The store may drop a key by itself at any instant (eviction, expiry).
  bool may_vanish = false;
  // The search gives up after so many configurations.
  uint64_t configurations_max = 4'000'000;
  // Reads from copies need only be regular: each fits in among the writes, as if it were the only
  // read.
  bool regular_copies = false;
};

enum class Verdict : uint8_t { kLinearizable, kViolation, kUndecided };

struct LinearizabilityResult {
  Verdict verdict = Verdict::kLinearizable;
  uint64_t key = 0;
  uint64_t configurations = 0;
  // Of a violation: the operation that no order could explain, by its index, and one line about it.
  size_t operation = 0;
  std::string reason;
};

// Of the operations of one key, in any order.
LinearizabilityResult check_key(std::span<const Operation> history,
                                const LinearizabilityOptions& options = {});

// Of any keys; the first violation, or else the first key left undecided. `operation` is the index
// in `history`.
LinearizabilityResult check_history(std::span<const Operation> history,
                                    const LinearizabilityOptions& options = {});

// One line: client, operation, times and outcome.
std::string describe(const Operation& operation);

}  // namespace kvstore::sim
