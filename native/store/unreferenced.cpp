#include "store/unreferenced.hpp"

#include <algorithm>
#include <bit>

#include "base/variant.hpp"
#include "index/places.hpp"
#include "layout/object.hpp"
#include "store/operations.hpp"

namespace kvstore {

using layout::Slot;

namespace {

constexpr unsigned kBatchesPerSlice = 8;
constexpr uint64_t kWhileNs = kMillisecond;
constexpr uint64_t kEntriesPerRead = 512;
// Reads of the buckets that a split under way may make vain.
constexpr unsigned kAttemptsMax = 16;

std::span<const CombinedBucket> looked_at(const Places& places) {
  return KV_VARIANT(sweep_ignores_splits) ? places.own() : places.all();
}

}  // namespace

Task<Status> is_referenced(Remote& remote, Directory& directory, uint64_t key_hash,
                           uint64_t address, bool& result) {
  Places places;
  result = true;  // until it is known to be otherwise
  for (unsigned attempt = 0; attempt < kAttemptsMax; ++attempt) {
    if (const Status s = co_await read_places(remote, directory, key_hash, places);
        s != Status::kOk) {
      co_return s;
    }
    for (const CombinedBucket& combined : looked_at(places)) {
      for (unsigned i = 0; i < kSlotsPerCombined; ++i) {
        const Slot slot = combined.slot(i);
        if (slot.address() != address) continue;
        if (!slot.tentative()) co_return Status::kOk;
        kv_op op[1] = {cas_op(combined.slot_offset(i), slot.word, slot.emptied().word)};
        if (const uint32_t s = co_await remote.batch(op); s != KV_FABRIC_OK) {
          co_return from_fabric(s);
        }
        if (op[0].result != slot.word) co_return Status::kOk;  // it has just committed
      }
    }
    Newcomers newcomers;
    Status confirmed = Status::kOk;
    if (!KV_VARIANT(sweep_ignores_splits)) {
      confirmed = co_await confirm_absence(remote, places, fingerprint_of(key_hash), newcomers);
    }
    if (confirmed != Status::kOk && confirmed != Status::kAbsent) co_return confirmed;
    const bool has_come =
        std::any_of(newcomers.slots, newcomers.slots + newcomers.count,
                    [&](const SlotRef& newcomer) { return newcomer.slot.address() == address; });
    if (confirmed == Status::kAbsent || has_come) continue;
    result = false;
    co_return Status::kOk;
  }
  co_return Status::kOk;
}

namespace {

Task<Status> look_at(Channel& channel, UnreferencedSearch& search, BlockHeader found) {
  bool live = false;
  if (found.sound) {
    const Status s = co_await is_referenced(channel.remote, channel.attachment->directory,
                                            found.key_hash, found.address, live);
    if (s != Status::kOk) co_return s;
  }
  const uint64_t bit = uint64_t{1} << (found.block % 64);
  uint64_t& word = search.dead[found.block / 64];
  word = live ? word & ~bit : word | bit;
  co_return Status::kOk;
}

}  // namespace

uint64_t UnreferencedSearch::dead_blocks() const {
  uint64_t count = 0;
  for (const uint64_t word : dead) count += uint64_t(std::popcount(word));
  return count;
}

void UnreferencedSearch::again() {
  blocks.skip.resize(dead.size());
  for (size_t w = 0; w < dead.size(); ++w) blocks.skip[w] = ~dead[w];
  std::fill(dead.begin(), dead.end(), 0);
  blocks.next = 0;
}

void UnreferencedSearch::spare_all() {
  blocks.skip.assign((blocks.shape.blocks + 63) / 64, ~uint64_t{0});
  std::fill(dead.begin(), dead.end(), 0);
}

Task<Status> search_slice(Channel& channel, UnreferencedSearch& search) {
  search.dead.resize((search.blocks.shape.blocks + 63) / 64);
  const auto visit = [&](BlockHeader found) { return look_at(channel, search, found); };
  for (unsigned batch = 0; batch < kBatchesPerSlice && !search.blocks.done(); ++batch) {
    if (const Status s = co_await visit_blocks(channel, search.blocks, visit); s != Status::kOk) {
      co_return s;
    }
  }
  co_return Status::kOk;
}

Task<Status> search_for_a_while(Channel& channel, std::vector<UnreferencedSearch>& searches,
                                size_t& at) {
  const uint64_t until_ns = monotonic_ns() + kWhileNs;
  while (at < searches.size()) {
    if (searches[at].blocks.done()) {
      ++at;
      continue;
    }
    if (const Status s = co_await search_slice(channel, searches[at]); s != Status::kOk) {
      co_return s;
    }
    if (monotonic_ns() >= until_ns || KV_BUGGIFY(short_slices)) co_return Status::kPending;
  }
  co_return Status::kOk;
}

Task<Status> read_segment_table(Channel& channel, std::vector<uint64_t>& words) {
  const layout::Geometry& geometry = channel.attachment->geometry;
  words.resize(geometry.segment_count);
  for (uint64_t at = 0; at < words.size(); at += kEntriesPerRead) {
    const uint64_t count = std::min<uint64_t>(kEntriesPerRead, words.size() - at);
    kv_op op[1] = {read_op(geometry.entry_offset(at), words.data() + at, count * 8)};
    if (const uint32_t s = co_await channel.remote.batch(op); s != KV_FABRIC_OK) {
      co_return from_fabric(s);
    }
  }
  co_return Status::kOk;
}

}  // namespace kvstore
