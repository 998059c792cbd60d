// A client that inserts, replaces, removes and finds keys through the index alone, with the rules
// that operations of the store follow, and the state of keys that says which outcomes are allowed.

#pragma once

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <optional>

#include "tests/index/fixture.hpp"

namespace kvstore::test {

// The object's version is what the test counts in: a key's n-th change writes version n.
class IndexUser {
 public:
  IndexUser(FormattedRegion& region, uint32_t registration)
      : client(region, registration), region_(region) {}

  // Each returns whether the change was made before the deadline; a change that was not made in
  // time has left nothing behind.
  bool put(const Key& key, uint64_t version) {
    const uint64_t address = write_object(key, version);
    return until_done([&] { return try_put(key, address); });
  }
  bool remove(const Key& key) {
    return until_done([&] {
      const std::optional<Hit> hit = look(key);
      if (!hit || !hit->found) return false;
      if (hit->slot.slot.moving()) return help(key, hit->places);
      return swap(hit->slot, hit->slot.slot.emptied());
    });
  }
  // The version that the key has, 0 if it is absent, nothing if that can't be told in time.
  std::optional<uint64_t> find(const Key& key) {
    std::optional<uint64_t> version;
    until_done([&] {
      const std::optional<Hit> hit = look(key);
      if (hit) version = hit->found ? hit->version : 0;
      return hit.has_value();
    });
    return version;
  }

  RawClient client;

 private:
  static constexpr unsigned kClass = Entries::kClass;

  struct Hit {
    Places places;
    bool found = false;
    SlotRef slot;
    uint64_t version = 0;
    Candidate examined[kCandidatesMax];
    unsigned examined_count = 0;
  };

  template <class Step>
  bool until_done(Step&& step) {
    const uint64_t deadline_ns = monotonic_ns() + 20 * kSecond;
    while (!step()) {
      if (monotonic_ns() > deadline_ns) return false;
    }
    return true;
  }

  uint64_t write_object(const Key& key, uint64_t version) {
    const uint64_t block_bytes = layout::class_bytes(kClass);
    if (next_ + block_bytes > end_) {
      const ClaimResult claimed = client.run([&] {
        return client.segments.claim(client.remote, 1, layout::SegmentEntry::kObjects, kClass, 0);
      });
      KV_ASSERT(claimed.status == Status::kOk);
      next_ = region_.geometry().segment_offset(claimed.extent.segment);
      end_ = next_ + region_.geometry().segment_bytes;
    }
    const uint64_t offset = next_;
    next_ += block_bytes;
    layout::ObjectHeader header{};
    header.key_bytes = uint16_t(key.bytes);
    header.key_hash = key.hash;
    header.version = version;
    header.address_generation = offset / layout::kUnitBytes;
    header.value_crc = crc32c(0, key.data, key.bytes);
    layout::seal(header);
    uint8_t object[128] = {};
    KV_ASSERT(sizeof header + key.bytes <= sizeof object);
    std::memcpy(object, &header, sizeof header);
    std::memcpy(object + sizeof header, key.data, key.bytes);
    const auto write = [&]() -> Task<Status> {
      kv_op op[1] = {write_op(offset, object, sizeof object)};
      co_return from_fabric(co_await client.remote.batch(op));
    };
    KV_ASSERT(client.run(write) == Status::kOk);
    return offset / layout::kUnitBytes;
  }

  // Nothing: look again.
  std::optional<Hit> look(const Key& key) {
    Hit hit;
    if (client.run([&] {
          return read_places(client.remote, client.directory, key.hash, hit.places);
        }) != Status::kOk) {
      return std::nullopt;
    }
    uint64_t matches = hit.places.matches(key.fingerprint());
    while (matches != 0 && hit.examined_count < kCandidatesMax) {
      hit.examined[hit.examined_count++].ref = hit.places.numbered(take_lowest(matches));
    }
    const std::span<Candidate> examined(hit.examined, hit.examined_count);
    if (client.run([&] { return examine(client.remote, region_.geometry(), key, examined); }) !=
        Status::kOk) {
      return std::nullopt;
    }
    for (const Candidate& candidate : examined) {
      KV_ASSERT(candidate.verdict != Candidate::Verdict::kUnsound);  // nothing is reused here
      if (candidate.verdict != Candidate::Verdict::kMatch) continue;
      hit.found = true;
      hit.slot = candidate.ref;
      hit.version = candidate.header.version;
      return hit;
    }
    Newcomers newcomers;
    const Status confirmed = client.run(
        [&] { return confirm_absence(client.remote, hit.places, key.fingerprint(), newcomers); });
    if (confirmed != Status::kOk || newcomers.count > 0) return std::nullopt;
    return hit;
  }

  bool swap(const SlotRef& ref, layout::Slot desire) {
    uint64_t seen = 0;
    const auto cas = [&]() -> Task<Status> {
      kv_op op[1] = {cas_op(ref.offset, ref.slot.word, desire.word)};
      const uint32_t posted = co_await client.remote.batch(op);
      seen = op[0].result;
      co_return from_fabric(posted);
    };
    return client.run(cas) == Status::kOk && seen == ref.slot.word;
  }

  // Carries the key's groups; false, since the key is to be looked up again.
  bool help(const Key& key, const Places& places) {
    if (!places.filling()) return false;
    for (const Position& position : positions_of(key.hash).at) {
      client.run([&] {
        return carry_group(client.remote, region_.geometry(), places.sibling(), places.subtable(),
                           position.group, monotonic_ns() + kSecond);
      });
    }
    return false;
  }

  bool try_put(const Key& key, uint64_t address) {
    std::optional<Hit> hit = look(key);
    if (!hit) return false;
    if (hit->found) {
      if (hit->slot.slot.moving()) return help(key, hit->places);
      return swap(hit->slot, hit->slot.slot.successor(key.fingerprint(), 0, kClass, address));
    }
    const layout::Slot contents = layout::Slot{}.successor(0, 0, kClass, address);
    const InsertResult result = client.run([&] {
      return insert(client.remote, client.directory, region_.geometry(), key, hit->places, contents,
                    {hit->examined, hit->examined_count});
    });
    if (result.outcome == InsertOutcome::kFilling) return help(key, hit->places);
    if (result.outcome == InsertOutcome::kFull) client.split(key.hash);
    return result.outcome == InsertOutcome::kInserted;
  }

  FormattedRegion& region_;
  uint64_t next_ = 0;
  uint64_t end_ = 0;
};

// What a key may be seen as. Odd changes leave it present with that version, even ones absent.
class KeyStates {
 public:
  explicit KeyStates(uint64_t keys)
      : begun_(std::make_unique<std::atomic<uint64_t>[]>(keys)),
        done_(std::make_unique<std::atomic<uint64_t>[]>(keys)) {}

  uint64_t begin(uint64_t key) { return begun_[key].fetch_add(1) + 1; }
  void end(uint64_t key) { done_[key].fetch_add(1); }
  uint64_t done(uint64_t key) const { return done_[key].load(); }
  uint64_t begun(uint64_t key) const { return begun_[key].load(); }

  // Whether `version` (0: absent) is one of the states between two moments.
  static bool allowed(uint64_t version, uint64_t done_before, uint64_t begun_after) {
    if (version != 0) return version % 2 == 1 && done_before <= version && version <= begun_after;
    return done_before % 2 == 0 || done_before + 1 <= begun_after;
  }

 private:
  std::unique_ptr<std::atomic<uint64_t>[]> begun_;
  std::unique_ptr<std::atomic<uint64_t>[]> done_;
};

}  // namespace kvstore::test
