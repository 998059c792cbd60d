#include "lock/survey.hpp"

#include <algorithm>
#include <cstring>
#include <map>
#include <set>
#include <tuple>

#include "coro/clock.hpp"
#include "lock/recovery.hpp"

namespace kvstore {

using layout::LockHeader;

namespace {

constexpr uint64_t kReadBytes = 64 << 10;
constexpr uint64_t kPauseNsMin = 5 * kMillisecond;
constexpr uint64_t kPauseNsMax = 80 * kMillisecond;
constexpr uint64_t kPatienceNs = 500 * kMillisecond;

struct Busy {
  uint32_t lock;
  LockHeader header;
};

Task<Status> find_busy(Remote& remote, LockTable& table, size_t locks_max, std::vector<Busy>& busy,
                       bool& more) {
  const layout::LockTableShape& shape = table.shape();
  const uint64_t at_once = std::max<uint64_t>(1, kReadBytes / shape.record_bytes());
  std::vector<uint8_t> records(at_once * shape.record_bytes());
  for (uint64_t first = 0; first < shape.lock_count; first += at_once) {
    const uint64_t count = std::min(at_once, shape.lock_count - first);
    kv_op op[1] = {read_op(table.record_offset(uint32_t(first)), records.data(),
                           count * shape.record_bytes())};
    if (const uint32_t s = co_await remote.batch(op); s != KV_FABRIC_OK) co_return from_fabric(s);
    for (uint64_t i = 0; i < count; ++i) {
      LockHeader header;
      std::memcpy(&header.word, records.data() + i * shape.record_bytes(), 8);
      if (header.size() == 0 && !header.resetting()) continue;
      more = busy.size() == locks_max;
      if (more) co_return Status::kOk;
      busy.push_back({uint32_t(first + i), header});
    }
  }
  co_return Status::kOk;
}

kv_lock_sighting sighting_of(const Busy& busy) {
  kv_lock_sighting row{};
  row.kind = busy.header.resetting() ? KV_LOCK_IN_RESET : KV_LOCK_IN_USE;
  row.lock = busy.lock;
  row.requests = uint32_t(busy.header.size());
  row.writers = uint32_t(busy.header.exclusive());
  row.index = busy.header.head();
  return row;
}

kv_lock_sighting sighting_of(uint32_t from, const LockMessage& answer) {
  kv_lock_sighting row{};
  row.kind = answer.claim == LockMessage::kHolds ? KV_LOCK_HOLDS : KV_LOCK_WAITS;
  row.lock = answer.lock;
  row.registration = from;
  row.writers = (answer.flags & LockMessage::kExclusive) != 0 ? 1 : 0;
  row.requests = answer.threads;
  row.index = answer.bound;
  row.age_ms = answer.age_ms;
  return row;
}

}  // namespace

Task<Status> survey_locks(Remote& remote, LockSpace& space, size_t locks_max, uint64_t until_ns,
                          std::vector<kv_lock_sighting>& sightings, bool& more) {
  std::vector<Busy> busy;
  if (const Status s = co_await find_busy(remote, space.table(), locks_max, busy, more);
      s != Status::kOk) {
    co_return s;
  }
  std::vector<uint32_t> peers;
  if (const Status s =
          co_await read_reachable(remote, space.geometry(), space.registration(), peers);
      s != Status::kOk) {
    co_return s;
  }
  // By lock, client and place.
  std::map<std::tuple<uint32_t, uint32_t, bool>, LockMessage> told;
  const uint64_t question = space.begin_survey();
  const uint64_t end_ns = std::min(until_ns, monotonic_ns() + kPatienceNs);
  Status status = Status::kOk;
  for (uint64_t pause_ns = kPauseNsMin;; pause_ns = std::min(2 * pause_ns, kPauseNsMax)) {
    for (const Busy& one : busy) {
      for (const uint32_t peer : peers) {
        const bool known =
            told.contains({one.lock, peer, true}) && told.contains({one.lock, peer, false});
        if (known || remote.broken()) continue;
        const LockMessage ask{.kind = LockMessage::kAsk, .lock = one.lock, .number = question};
        co_await space.send(remote, peer, ask);
      }
    }
    if (remote.broken()) status = Status::kNodeUnreachable;
    if (status != Status::kOk || told.size() == 2 * busy.size() * peers.size()) break;
    if (monotonic_ns() >= end_ns) break;
    co_await remote.executor().sleep_until(std::min(end_ns, monotonic_ns() + pause_ns));
    for (const LockSpace::SurveyAnswer& one : space.take_survey(question)) {
      const bool exclusive = (one.message.flags & LockMessage::kExclusive) != 0;
      told[{one.message.lock, one.from, exclusive}] = one.message;
    }
  }
  space.end_survey(question);
  std::set<uint32_t> silent(peers.begin(), peers.end());
  for (const auto& [key, message] : told) silent.erase(std::get<1>(key));
  for (const Busy& one : busy) {
    sightings.push_back(sighting_of(one));
    for (const auto& [key, message] : told) {
      if (std::get<0>(key) != one.lock || message.claim == LockMessage::kNothing) continue;
      sightings.push_back(sighting_of(std::get<1>(key), message));
    }
  }
  if (busy.empty()) silent.clear();
  for (const uint32_t client : silent) {
    kv_lock_sighting row{};
    row.kind = KV_LOCK_SILENT;
    row.registration = client;
    sightings.push_back(row);
  }
  co_return status;
}

}  // namespace kvstore
