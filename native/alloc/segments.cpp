#include "alloc/segments.hpp"

#include <algorithm>
#include <array>
#include <vector>

#include "base/assert.hpp"
#include "base/random.hpp"

namespace kvstore {

using layout::SegmentEntry;

namespace {

constexpr uint64_t kEntriesPerRead = 512;
constexpr uint64_t kCasPerBatch = 256;
// A free run that somebody else took first is looked for again this often.
constexpr unsigned kRacesMax = 256;
constexpr unsigned kRacesTogether = 4;

}  // namespace

Task<Status> SegmentTable::read_entry(Remote& remote, uint64_t segment, SegmentEntry& entry) {
  KV_ASSERT(segment < geometry_.segment_count);
  kv_op op[1] = {read_op(geometry_.entry_offset(segment), &entry.word, 8)};
  co_return from_fabric(co_await remote.batch(op));
}

Task<std::optional<SegmentTable::Run>> SegmentTable::find_free(Remote& remote, uint32_t run,
                                                               uint64_t from, uint64_t until,
                                                               Status& status) {
  std::vector<uint64_t> words(kEntriesPerRead);
  uint64_t length = 0;  // of the free run that ends at the current entry
  SegmentEntry head;
  for (uint64_t at = from; at < until; at += kEntriesPerRead) {
    const uint64_t count = std::min(kEntriesPerRead, until - at);
    kv_op op[1] = {read_op(geometry_.entry_offset(at), words.data(), count * 8)};
    if (const uint32_t s = co_await remote.batch(op); s != KV_FABRIC_OK) {
      status = from_fabric(s);
      co_return std::nullopt;
    }
    for (uint64_t i = 0; i < count; ++i) {
      const SegmentEntry entry{words[i]};
      if (!entry.is_free()) {
        length = 0;
        continue;
      }
      if (length++ == 0) head = entry;
      if (length == run) co_return Run{at + i + 1 - run, head};
    }
  }
  status = Status::kOutOfMemory;
  co_return std::nullopt;
}

// Claims the head and the followers of a run that was seen free. False if somebody was faster;
// nothing stays taken then.
Task<bool> SegmentTable::take(Remote& remote, Run& found, uint32_t run) {
  const SegmentEntry claiming =
      found.head.successor(SegmentEntry::kClaiming, registration_, run, 0);
  kv_op head_op[1] = {
      cas_op(geometry_.entry_offset(found.segment), found.head.word, claiming.word)};
  if (co_await remote.batch(head_op) != KV_FABRIC_OK || head_op[0].result != found.head.word) {
    co_return false;
  }
  found.head = claiming;
  // A follower's version starts over with each claim, so a free one is read before it is taken.
  std::vector<uint64_t> words(run);
  std::vector<kv_op> ops;
  bool taken = true;
  for (uint64_t at = 1; taken && at < run; at += kCasPerBatch) {
    const uint64_t count = std::min<uint64_t>(kCasPerBatch, run - at);
    kv_op read[1] = {
        read_op(geometry_.entry_offset(found.segment + at), words.data() + at, count * 8)};
    if (co_await remote.batch(read) != KV_FABRIC_OK) co_return false;
    ops.clear();
    for (uint64_t i = at; i < at + count; ++i) {
      const SegmentEntry seen{words[i]};
      if (!seen.is_free()) {
        taken = false;
        break;
      }
      ops.push_back(
          cas_op(geometry_.entry_offset(found.segment + i), seen.word,
                 seen.successor(SegmentEntry::kFollower, registration_, uint32_t(i), 0).word));
    }
    if (ops.empty()) break;
    if (co_await remote.batch(ops) != KV_FABRIC_OK) co_return false;
    for (const kv_op& op : ops) taken &= op.result == op.operand;
  }
  if (!taken) co_await dissolve(remote, found.segment, claiming);
  co_return taken;
}

Task<Status> SegmentTable::dissolve(Remote& remote, uint64_t segment, SegmentEntry head) {
  const uint64_t run = std::min<uint64_t>(head.run(), geometry_.segment_count - segment);
  std::vector<uint64_t> words(kCasPerBatch);
  std::vector<kv_op> ops;
  for (uint64_t at = 1; at < run; at += kCasPerBatch) {
    const uint64_t count = std::min<uint64_t>(kCasPerBatch, run - at);
    kv_op read[1] = {read_op(geometry_.entry_offset(segment + at), words.data(), count * 8)};
    if (const uint32_t s = co_await remote.batch(read); s != KV_FABRIC_OK) {
      co_return from_fabric(s);
    }
    ops.clear();
    for (uint64_t i = 0; i < count; ++i) {
      const SegmentEntry entry{words[i]};
      // Only this head's own followers: the distance names it.
      if (entry.kind() != SegmentEntry::kFollower || entry.run() != at + i) continue;
      ops.push_back(
          cas_op(geometry_.entry_offset(segment + at + i), entry.word, entry.freed().word));
    }
    if (ops.empty()) continue;
    if (const uint32_t s = co_await remote.batch(ops); s != KV_FABRIC_OK) {
      co_return from_fabric(s);
    }
  }
  kv_op op[1] = {cas_op(geometry_.entry_offset(segment), head.word, head.freed().word)};
  if (const uint32_t s = co_await remote.batch(op); s != KV_FABRIC_OK) co_return from_fabric(s);
  if (segment < hint_.load(std::memory_order_relaxed)) {
    hint_.store(segment, std::memory_order_relaxed);
  }
  co_return op[0].result == head.word ? Status::kOk : Status::kAbsent;
}

Task<ClaimResult> SegmentTable::claim(Remote& remote, uint32_t run, SegmentEntry::Kind kind,
                                      unsigned size_class, uint64_t clear_bytes) {
  KV_ASSERT(run > 0);
  if (run > geometry_.segment_count) co_return ClaimResult{};
  for (unsigned race = 0; race < kRacesMax; ++race) {
    const uint64_t start = hint_.load(std::memory_order_relaxed) % geometry_.segment_count;
    Status status = Status::kOk;
    std::optional<Run> found =
        co_await find_free(remote, run, start, geometry_.segment_count, status);
    if (!found && status == Status::kOutOfMemory && start > 0) {
      // The run may begin before the hint and reach past it.
      const uint64_t until = std::min<uint64_t>(start + run, geometry_.segment_count);
      found = co_await find_free(remote, run, 0, until, status);
    }
    if (!found) co_return ClaimResult{status, {}};
    Run& taken = *found;
    const bool got = co_await take(remote, taken, run);
    if (remote.broken()) co_return ClaimResult{Status::kNodeUnreachable, {}};
    if (!got) {
      // Whoever loses again and again looks elsewhere: the others look where it does.
      const bool elsewhere = race >= kRacesTogether;
      hint_.store(elsewhere ? thread_random() : taken.segment + run, std::memory_order_relaxed);
      continue;
    }
    const std::vector<uint8_t> zeros(clear_bytes, 0);
    const SegmentEntry ready = taken.head.successor(kind, registration_, run, size_class);
    kv_op ops[2];
    unsigned count = 0;
    if (clear_bytes > 0) {
      ops[count++] = write_op(geometry_.segment_offset(taken.segment), zeros.data(), clear_bytes);
    }
    ops[count++] = cas_op(geometry_.entry_offset(taken.segment), taken.head.word, ready.word);
    if (const uint32_t s = co_await remote.batch({ops, count}); s != KV_FABRIC_OK) {
      co_return ClaimResult{from_fabric(s), {}};
    }
    // Nobody else changes a head that this client claimed, unless it has been fenced.
    if (ops[count - 1].result != taken.head.word) co_return ClaimResult{Status::kFenced, {}};
    hint_.store(taken.segment + run, std::memory_order_relaxed);
    co_return ClaimResult{Status::kOk, Extent{taken.segment, run}};
  }
  co_return ClaimResult{};
}

Task<Status> SegmentTable::release(Remote& remote, uint64_t segment, SegmentEntry head) {
  const SegmentEntry claiming =
      head.successor(SegmentEntry::kClaiming, registration_, head.run(), 0);
  kv_op op[1] = {cas_op(geometry_.entry_offset(segment), head.word, claiming.word)};
  if (const uint32_t s = co_await remote.batch(op); s != KV_FABRIC_OK) co_return from_fabric(s);
  if (op[0].result != head.word) co_return Status::kAbsent;
  co_return co_await dissolve(remote, segment, claiming);
}

}  // namespace kvstore
