// A formatted region without a node, connections that fail on demand, and clients of the index that
// run its tasks to the end: what the tests of index and alloc share.

#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "alloc/segments.hpp"
#include "base/assert.hpp"
#include "base/crc32c.hpp"
#include "fabric/cpu/shm.hpp"
#include "index/candidate.hpp"
#include "index/directory.hpp"
#include "index/insert.hpp"
#include "index/split.hpp"
#include "layout/object.hpp"
#include "node/region.hpp"

namespace kvstore::test {

class FormattedRegion {
 public:
  explicit FormattedRegion(uint64_t bytes) : bytes_(bytes) {
    void* memory =
        ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    KV_ASSERT(memory != MAP_FAILED);
    data_ = static_cast<uint8_t*>(memory);
    geometry_ = format_region(data_, bytes, {1, 2, 0, 0, 5000});
  }
  ~FormattedRegion() { ::munmap(data_, bytes_); }
  FormattedRegion(const FormattedRegion&) = delete;
  FormattedRegion& operator=(const FormattedRegion&) = delete;

  uint8_t* data() const { return data_; }
  uint64_t bytes() const { return bytes_; }
  const layout::Geometry& geometry() const { return geometry_; }
  const std::atomic<uint32_t>& dead() const { return dead_; }
  uint64_t word(uint64_t offset) const {
    return __atomic_load_n(reinterpret_cast<const uint64_t*>(data_ + offset), __ATOMIC_ACQUIRE);
  }
  layout::SegmentEntry entry(uint64_t segment) const {
    return layout::SegmentEntry{word(geometry_.entry_offset(segment))};
  }
  uint64_t free_segments() const {
    uint64_t count = 0;
    for (uint64_t i = 0; i < geometry_.segment_count; ++i) count += entry(i).is_free();
    return count;
  }

 private:
  uint64_t bytes_;
  uint8_t* data_;
  layout::Geometry geometry_;
  std::atomic<uint32_t> dead_{0};
};

// When a connection breaks: after `batches` whole batches, with the first `ops` operations of the
// next one executed and its completion lost.
struct Fault {
  uint64_t batches = UINT64_MAX;
  uint32_t ops = 0;
  // Called ahead of each batch: what happens between two batches of a client.
  std::function<void(const kv_batch&)> before = {};
};

// A connection that executes at once, as shm does, until its fault.
struct LossyConnection : kv_connection {
  kv_connection* inner;
  Fault* fault;  // counts down; shared with the test

  static uint32_t post(kv_connection* base, kv_batch* batch) {
    LossyConnection& self = *static_cast<LossyConnection*>(base);
    if (self.broken != 0) return KV_FABRIC_DOWN;
    if (self.fault->before) self.fault->before(*batch);
    if (self.fault->batches > 0) {
      if (self.fault->batches != UINT64_MAX) --self.fault->batches;
      const uint32_t status = self.inner->ops->post(self.inner, batch);
      self.broken = self.inner->broken;
      return status;
    }
    kv_batch prefix = *batch;
    prefix.op_count = std::min(self.fault->ops, batch->op_count);
    if (prefix.op_count > 0) self.inner->ops->post(self.inner, &prefix);
    // What a lost batch leaves in its results is nothing to rely on.
    for (uint32_t i = 0; i < batch->op_count; ++i) batch->ops[i].result = 0xdeadbeefdeadbeef;
    self.fault->batches = UINT64_MAX;
    self.broken = 1;
    return KV_FABRIC_LOST;
  }
  static uint32_t poll(kv_connection*) { return 0; }
  static int wait_descriptor(kv_connection*, short*) { return -1; }
  static void close(kv_connection* base) { base->broken = 1; }
  static void destroy(kv_connection* base) {
    LossyConnection* self = static_cast<LossyConnection*>(base);
    self->inner->ops->destroy(self->inner);
    delete self;
  }
};

inline kv_connection* lossy_connection(void* region, uint64_t bytes,
                                       const std::atomic<uint32_t>* dead, Fault* fault) {
  static constexpr kv_connection_ops kOps = {
      KV_FABRIC_ABI_VERSION,  LossyConnection::post,
      LossyConnection::poll,  LossyConnection::wait_descriptor,
      LossyConnection::close, LossyConnection::destroy};
  LossyConnection* connection = new LossyConnection{};
  connection->inner = shm_connection(region, bytes, dead);
  static_cast<kv_connection&>(*connection) = *connection->inner;
  connection->ops = &kOps;
  connection->fault = fault;
  return connection;
}

// One registration's view of a region: runs tasks of alloc and index on the calling thread.
class RawClient {
 public:
  // Runs the task that `start` makes.
  template <class Start>
  auto run(Start&& start) {
    const Executor::Scope scope(executor_);
    auto task = start();
    const auto done = [&] { return task.done(); };
    KV_ASSERT(executor_.run(done, monotonic_ns() + 60 * kSecond, true) == Executor::Outcome::kDone);
    return task.take();
  }

  RawClient(const FormattedRegion& region, uint32_t registration)
      : region_(region),
        registration_(registration),
        directory(region.geometry()),
        segments(region.geometry(), registration) {
    connect();
    KV_ASSERT(run([&] { return directory.refresh(remote); }) == Status::kOk);
  }
  ~RawClient() { drop(); }

  void reconnect() {
    drop();
    connect();
  }
  uint32_t registration() const { return registration_; }
  SplitEnvironment environment() {
    return {segments, directory, registration_, split_running_, monotonic_ns() + 30 * kSecond};
  }
  Status split(uint64_t hash) {
    return run([&] { return split_subtable(remote, environment(), hash); });
  }
  Status resume(uint32_t holder) {
    return run([&] { return resume_split(remote, environment(), holder); });
  }

  Remote remote;
  Fault fault;

 private:
  void connect() {
    connection_ = lossy_connection(region_.data(), region_.bytes(), &region_.dead(), &fault);
    remote.bind(connection_, &executor_);
  }
  void drop() {
    remote.bind(nullptr, nullptr);
    connection_->ops->destroy(connection_);
  }

  const FormattedRegion& region_;
  const uint32_t registration_;
  Executor executor_;
  kv_connection* connection_ = nullptr;
  std::atomic<bool> split_running_{false};

 public:
  Directory directory;
  SegmentTable segments;
};

// Keys with objects of one unit each in a region, put and looked up through the index alone.
// Both phases, with nothing in between.
inline Task<InsertResult> insert(Remote& remote, Directory& directory,
                                 const layout::Geometry& geometry, const Key& key,
                                 const Places& places, layout::Slot contents,
                                 std::span<const Candidate> examined) {
  Rivals rivals;
  const InsertResult begun = co_await begin_insert(remote, directory, geometry, key, places,
                                                   contents, examined, rivals, {});
  if (begun.outcome != InsertOutcome::kTentative) co_return begun;
  co_return co_await commit_insert(remote, begun, rivals);
}

class Entries {
 public:
  static constexpr unsigned kClass = 2;

  explicit Entries(FormattedRegion& region) : region_(region) {}

  // Writes the key's object to a new block; returns the block's address in units.
  uint64_t write_object(RawClient& client, const Key& key) {
    const uint64_t block_bytes = layout::class_bytes(kClass);
    if (next_ + block_bytes > end_) {
      constexpr uint32_t kRun = 4;
      const ClaimResult claimed = client.run([&] {
        return client.segments.claim(client.remote, kRun, layout::SegmentEntry::kObjects, kClass,
                                     0);
      });
      KV_ASSERT(claimed.status == Status::kOk);
      next_ = region_.geometry().segment_offset(claimed.extent.segment);
      end_ = next_ + kRun * region_.geometry().segment_bytes;
    }
    const uint64_t address = next_ / layout::kUnitBytes;
    layout::ObjectHeader header{};
    header.key_bytes = uint16_t(key.bytes);
    header.key_hash = key.hash;
    header.version = address;
    header.address_generation = address;
    header.value_crc = crc32c(0, key.data, key.bytes);
    layout::seal(header);
    std::memcpy(region_.data() + next_, &header, sizeof header);
    std::memcpy(region_.data() + next_ + sizeof header, key.data, key.bytes);
    next_ += block_bytes;
    return address;
  }

  // Inserts an absent key, splitting where it must.
  Status insert_new(RawClient& client, const Key& key) {
    const uint64_t address = write_object(client, key);
    const layout::Slot contents = layout::Slot{}.successor(0, 0, kClass, address);
    for (unsigned attempt = 0; attempt < 64; ++attempt) {
      const InsertOutcome outcome = try_insert(client, key, contents);
      if (outcome == InsertOutcome::kInserted) return Status::kOk;
      if (outcome == InsertOutcome::kLost) return Status::kNodeUnreachable;
      if (outcome == InsertOutcome::kUnknown) return Status::kOutcomeUnknown;
      if (outcome == InsertOutcome::kFull) {
        const Status s = client.split(key.hash);
        if (s != Status::kOk) return s;
      }
    }
    return Status::kDeadlineExceeded;
  }

  InsertOutcome try_insert(RawClient& client, const Key& key, layout::Slot contents) {
    Places places;
    if (client.run([&] {
          return read_places(client.remote, client.directory, key.hash, places);
        }) != Status::kOk) {
      return InsertOutcome::kLost;
    }
    Candidate examined[kCandidatesMax];
    const unsigned count = look(client, key, places, examined);
    if (matches(examined, count) > 0) return InsertOutcome::kConflict;
    return client
        .run([&] {
          return insert(client.remote, client.directory, region_.geometry(), key, places, contents,
                        {examined, count});
        })
        .outcome;
  }

  // How many slots that a reader follows lead to the key.
  unsigned copies(RawClient& client, const Key& key) {
    Places places;
    KV_ASSERT(client.run([&] {
      return read_places(client.remote, client.directory, key.hash, places);
    }) == Status::kOk);
    Candidate examined[kCandidatesMax];
    const unsigned count = look(client, key, places, examined);
    return matches(examined, count);
  }

 private:
  static unsigned matches(const Candidate* examined, unsigned count) {
    return unsigned(std::count_if(examined, examined + count, [](const Candidate& candidate) {
      return candidate.verdict == Candidate::Verdict::kMatch;
    }));
  }
  unsigned look(RawClient& client, const Key& key, const Places& places, Candidate* examined) {
    uint64_t matches = places.matches(key.fingerprint());
    unsigned count = 0;
    while (matches != 0 && count < kCandidatesMax) {
      examined[count++].ref = places.numbered(take_lowest(matches));
    }
    KV_ASSERT(client.run([&] {
      return examine(client.remote, region_.geometry(), key, {examined, count});
    }) == Status::kOk);
    return count;
  }

  FormattedRegion& region_;
  uint64_t next_ = 0;
  uint64_t end_ = 0;
};

// Keys by number, kept so that a Key can point at them.
class KeySet {
 public:
  explicit KeySet(uint64_t count) {
    for (uint64_t i = 0; i < count; ++i) texts_.push_back("key-" + std::to_string(i));
  }
  Key operator[](uint64_t i) const { return make_key(texts_[i].data(), texts_[i].size()); }
  uint64_t size() const { return texts_.size(); }

 private:
  std::vector<std::string> texts_;
};

inline bool sanitized() {
  return std::getenv("KVSTORE_SANITIZED") != nullptr;
}

}  // namespace kvstore::test
