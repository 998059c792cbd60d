#include "index/split.hpp"

#include <algorithm>
#include <vector>

#include "base/assert.hpp"
#include "fabric/overlapped.hpp"

namespace kvstore {

using layout::BucketHeader;
using layout::DirectoryEntry;
using layout::DirectoryLock;
using layout::SegmentEntry;
using layout::SplitRecord;

namespace {

constexpr uint64_t kLockPollNs = kMillisecond / 2;
// Groups carried at once: their round trips overlap.
constexpr unsigned kGroupsAtOnce = 16;

uint64_t record_field(size_t field) {
  return layout::kSplitRecordOffset + field;
}

Task<Status> read_record(Remote& remote, SplitRecord& record) {
  kv_op op[1] = {read_op(layout::kSplitRecordOffset, &record, sizeof record)};
  co_return from_fabric(co_await remote.batch(op));
}

// kOk: taken, `lock` is its word now. kAbsent: somebody else holds it.
Task<Status> take_lock(Remote& remote, uint32_t registration, DirectoryLock& lock) {
  const DirectoryLock mine = lock.taken_by(registration);
  kv_op op[1] = {cas_op(record_field(offsetof(SplitRecord, lock)), lock.word, mine.word)};
  if (const uint32_t s = co_await remote.batch(op); s != KV_FABRIC_OK) co_return from_fabric(s);
  if (op[0].result != lock.word) co_return Status::kAbsent;
  lock = mine;
  co_return Status::kOk;
}

Task<Status> release_lock(Remote& remote, DirectoryLock lock) {
  kv_op op[1] = {
      cas_op(record_field(offsetof(SplitRecord, lock)), lock.word, lock.released().word)};
  co_return from_fabric(co_await remote.batch(op));
}

Task<Status> wait_for_lock(Remote& remote, uint64_t deadline_ns) {
  for (;;) {
    uint64_t word = 0;
    kv_op op[1] = {read_op(record_field(offsetof(SplitRecord, lock)), &word, 8)};
    if (const uint32_t s = co_await remote.batch(op); s != KV_FABRIC_OK) {
      co_return from_fabric(s);
    }
    if (DirectoryLock{word}.holder() == 0) co_return Status::kOk;
    const uint64_t now = monotonic_ns();
    if (now >= deadline_ns) co_return Status::kDeadlineExceeded;
    co_await remote.executor().sleep_until(now + kLockPollNs);
  }
}

// Takes an extent and fills it with an empty subtable whose buckets are all `filling`.
Task<Status> make_subtable(Remote& remote, SegmentTable& segments, unsigned depth, uint64_t suffix,
                           uint64_t& offset) {
  const uint32_t run = segments.geometry().segments_for(layout::kSubtableBytes);
  const ClaimResult claimed = co_await segments.claim(remote, run, SegmentEntry::kSubtable, 0, 0);
  if (claimed.status != Status::kOk) co_return claimed.status;
  offset = segments.geometry().segment_offset(claimed.extent.segment);
  std::vector<uint64_t> words(layout::kSubtableBytes / 8, 0);
  const unsigned buckets = layout::kGroupsPerSubtable * layout::kBucketsPerGroup;
  for (unsigned b = 0; b < buckets; ++b) {
    words[b * layout::kBucketBytes / 8] = BucketHeader::make(depth, suffix, true).word;
  }
  kv_op op[1] = {write_op(offset, words.data(), words.size() * 8)};
  co_return from_fabric(co_await remote.batch(op));
}

// The source comes last: a record with a source is whole.
Task<Status> write_record(Remote& remote, const SplitRecord& record) {
  kv_op ops[4] = {
      write_op(record_field(offsetof(SplitRecord, target)), &record.target, 8),
      write_op(record_field(offsetof(SplitRecord, depth)), &record.depth, 8),
      write_op(record_field(offsetof(SplitRecord, target_suffix)), &record.target_suffix, 8),
      write_op(record_field(offsetof(SplitRecord, source)), &record.source, 8)};
  co_return from_fabric(co_await remote.batch(ops));
}

// Copies the lower half of the directory to the upper half, then raises the depth that everyone
// reads. Doing it again changes nothing.
Task<Status> deepen_directory(Remote& remote, const layout::Geometry& geometry, uint64_t wanted) {
  uint64_t depth = 0;
  kv_op read_depth[1] = {read_op(layout::kGlobalDepthOffset, &depth, 8)};
  if (const uint32_t s = co_await remote.batch(read_depth); s != KV_FABRIC_OK) {
    co_return from_fabric(s);
  }
  if (depth >= wanted) co_return Status::kOk;
  if (depth + 1 != wanted || wanted > geometry.directory_depth_max) co_return Status::kCorrupt;
  std::vector<uint64_t> words(uint64_t{1} << depth);
  kv_op read[1] = {read_op(geometry.directory_offset, words.data(), words.size() * 8)};
  if (const uint32_t s = co_await remote.batch(read); s != KV_FABRIC_OK) {
    co_return from_fabric(s);
  }
  kv_op ops[2] = {
      write_op(geometry.directory_offset + words.size() * 8, words.data(), words.size() * 8),
      write_op(layout::kGlobalDepthOffset, &wanted, 8)};
  co_return from_fabric(co_await remote.batch(ops));
}

// Points the entries of both suffixes at their subtables. Doing it again changes nothing.
Task<Status> publish(Remote& remote, const layout::Geometry& geometry, const SplitRecord& record) {
  if (const Status s = co_await deepen_directory(remote, geometry, record.depth);
      s != Status::kOk) {
    co_return s;
  }
  uint64_t depth = 0;
  kv_op read[1] = {read_op(layout::kGlobalDepthOffset, &depth, 8)};
  if (const uint32_t s = co_await remote.batch(read); s != KV_FABRIC_OK) {
    co_return from_fabric(s);
  }
  if (depth > geometry.directory_depth_max || depth < record.depth) co_return Status::kCorrupt;
  const uint64_t new_entry = DirectoryEntry::make(record.target, unsigned(record.depth)).word;
  const uint64_t old_entry = DirectoryEntry::make(record.source, unsigned(record.depth)).word;
  const uint64_t old_suffix = record.target_suffix ^ (uint64_t{1} << (record.depth - 1));
  const uint64_t stride = uint64_t{1} << record.depth;
  constexpr unsigned kPairsPerBatch = 256;
  std::vector<kv_op> ops;
  for (uint64_t i = 0; i < uint64_t{1} << depth; i += stride) {
    const uint64_t at = geometry.directory_offset;
    ops.push_back(write_op(at + (i + record.target_suffix) * 8, &new_entry, 8));
    ops.push_back(write_op(at + (i + old_suffix) * 8, &old_entry, 8));
    if (ops.size() < 2 * kPairsPerBatch && i + stride < uint64_t{1} << depth) continue;
    if (const uint32_t s = co_await remote.batch(ops); s != KV_FABRIC_OK) {
      co_return from_fabric(s);
    }
    ops.clear();
  }
  co_return Status::kOk;
}

Task<Status> carry_all(Remote& remote, const layout::Geometry& geometry, const SplitRecord& record,
                       uint64_t deadline_ns) {
  const uint64_t source = record.source * layout::kUnitBytes;
  const uint64_t target = record.target * layout::kUnitBytes;
  const auto step = [&](size_t group) {
    return carry_group(remote, geometry, source, target, unsigned(group), deadline_ns);
  };
  const Status s = co_await overlapped(remote, layout::kGroupsPerSubtable, kGroupsAtOnce, step);
  co_return s == Status::kAbsent ? Status::kCorrupt : s;
}

// Steps 3 to 5: everything after the record is written.
Task<Status> finish(Remote& remote, const SplitEnvironment& environment, SplitRecord record,
                    DirectoryLock lock, uint64_t deadline_ns) {
  const layout::Geometry& geometry = environment.segments.geometry();
  if (const Status s = co_await publish(remote, geometry, record); s != Status::kOk) co_return s;
  if (const Status s = co_await carry_all(remote, geometry, record, deadline_ns);
      s != Status::kOk) {
    co_return s;
  }
  const SplitRecord none{};
  kv_op ops[2] = {
      write_op(record_field(offsetof(SplitRecord, source)), &none.source, 8),
      cas_op(record_field(offsetof(SplitRecord, lock)), lock.word, lock.released().word)};
  if (const uint32_t s = co_await remote.batch(ops); s != KV_FABRIC_OK) co_return from_fabric(s);
  co_return co_await environment.directory.refresh(remote);
}

bool plausible(const layout::Geometry& geometry, const SplitRecord& record) {
  const auto is_subtable = [&](uint64_t address) {
    return address <= (geometry.region_bytes - layout::kSubtableBytes) / layout::kUnitBytes &&
           address * layout::kUnitBytes >= geometry.first_segment_offset &&
           (address * layout::kUnitBytes - geometry.first_segment_offset) %
                   geometry.segment_bytes ==
               0;
  };
  return is_subtable(record.source) && is_subtable(record.target) && record.depth > 0 &&
         record.depth <= geometry.directory_depth_max &&
         record.target_suffix < uint64_t{1} << record.depth;
}

// The carrying may take longer than the caller's deadline allows; half a split would stop every
// insert that needs one, so it is given this long to end.
constexpr uint64_t kFinishNs = 30 * kSecond;

}  // namespace

// With the lock held, makes the new subtable and goes through all the steps.
static Task<Status> split_locked(Remote& remote, SplitEnvironment environment, uint64_t hash,
                                 DirectoryEntry before, DirectoryLock lock) {
  const layout::Geometry& geometry = environment.segments.geometry();
  if (const Status s = co_await environment.directory.refresh(remote); s != Status::kOk) {
    co_return s;
  }
  const DirectoryEntry entry = environment.directory.entry_of(hash);
  if (entry != before) co_return co_await release_lock(remote, lock);  // it has been split since
  const unsigned depth = entry.depth() + 1;
  if (depth > geometry.directory_depth_max) {
    co_await release_lock(remote, lock);
    co_return Status::kOutOfMemory;
  }
  const uint64_t old_suffix = hash & ((uint64_t{1} << (depth - 1)) - 1);
  const uint64_t suffix = old_suffix | uint64_t{1} << (depth - 1);
  uint64_t target = 0;
  const Status made = co_await make_subtable(remote, environment.segments, depth, suffix, target);
  if (made != Status::kOk) {
    co_await release_lock(remote, lock);
    co_return made;
  }
  SplitRecord record{};
  record.source = entry.address();
  record.target = target / layout::kUnitBytes;
  record.depth = depth;
  record.target_suffix = suffix;
  if (const Status s = co_await write_record(remote, record); s != Status::kOk) co_return s;
  co_return co_await finish(remote, environment, record, lock, monotonic_ns() + kFinishNs);
}

Task<Status> split_subtable(Remote& remote, SplitEnvironment environment, uint64_t hash) {
  const DirectoryEntry before = environment.directory.entry_of(hash);
  SplitRecord record;
  if (const Status s = co_await read_record(remote, record); s != Status::kOk) co_return s;
  DirectoryLock lock{record.lock};
  const bool free = lock.holder() == 0;
  const bool left_behind = lock.holder() == environment.registration && environment.may_resume;
  if ((!free && !left_behind) || environment.running.exchange(true)) {
    co_return co_await wait_for_lock(remote, environment.deadline_ns);
  }
  Status status;
  if (left_behind) {
    status = co_await resume_split(remote, environment, environment.registration);
  } else {
    status = co_await take_lock(remote, environment.registration, lock);
    if (status == Status::kOk) {
      status = co_await split_locked(remote, environment, hash, before, lock);
    } else if (status == Status::kAbsent) {
      status = Status::kOk;  // somebody else began one: look at the buckets again
    }
  }
  environment.running.store(false);
  co_return status;
}

Task<Status> resume_split(Remote& remote, SplitEnvironment environment, uint32_t holder) {
  SplitRecord record;
  if (const Status s = co_await read_record(remote, record); s != Status::kOk) co_return s;
  DirectoryLock lock{record.lock};
  if (lock.holder() != holder) co_return Status::kOk;
  const Status taken = co_await take_lock(remote, environment.registration, lock);
  if (taken != Status::kOk) co_return taken == Status::kAbsent ? Status::kOk : taken;
  if (record.source == 0) co_return co_await release_lock(remote, lock);
  if (!plausible(environment.segments.geometry(), record)) co_return Status::kCorrupt;
  co_return co_await finish(remote, environment, record, lock, monotonic_ns() + kFinishNs);
}

}  // namespace kvstore
