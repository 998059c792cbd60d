// The outcome of a step or of a whole operation. The same numbers as kv_status of the C ABI.

#pragma once

#include "api/kvstore.h"
#include "fabric/fabric.h"

namespace kvstore {

enum class Status : int {
  kOk = KV_OK,
  kAbsent = KV_ABSENT,
  kPending = KV_PENDING,
  kConditionFailed = KV_CONDITION_FAILED,
  kOutOfMemory = KV_OUT_OF_MEMORY,
  kNodeUnreachable = KV_NODE_UNREACHABLE,
  kDeadlineExceeded = KV_DEADLINE_EXCEEDED,
  kOutcomeUnknown = KV_OUTCOME_UNKNOWN,
  kKeyInvalid = KV_KEY_INVALID,
  kValueTooLarge = KV_VALUE_TOO_LARGE,
  kBufferTooSmall = KV_BUFFER_TOO_SMALL,
  kCorrupt = KV_CORRUPT,
  kForked = KV_FORKED,
  kClosed = KV_CLOSED,
  kInterrupted = KV_INTERRUPTED,
  kRefused = KV_REFUSED,
  kNoAttachment = KV_NO_ATTACHMENT,
  kFenced = KV_FENCED,
  kInvalid = KV_INVALID,
  kBusy = KV_BUSY,
  kWouldDeadlock = KV_WOULD_DEADLOCK,
  kLockLost = KV_LOCK_LOST,
  kLockWornOut = KV_LOCK_WORN_OUT,
  kFencedWrite = KV_FENCED_WRITE,
  kFenceMismatch = KV_FENCE_MISMATCH,
  kLeaseTooShort = KV_LEASE_TOO_SHORT
};

// The connection broke, or was broken before: what was posted may or may not have executed.
inline Status from_fabric(uint32_t fabric_status) {
  switch (fabric_status) {
    case KV_FABRIC_OK:
      return Status::kOk;
    case KV_FABRIC_REFUSED:
      return Status::kRefused;
    default:
      return Status::kNodeUnreachable;
  }
}

}  // namespace kvstore
