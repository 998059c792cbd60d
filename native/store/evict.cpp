// Memory for an object when the node is full: sampled eviction in the shape of Ditto (SOSP'23,
// section 4.2). Clients read the metadata of a few groups of slots, drop the least recently used,
// and retire their blocks; a block is usable again one epoch later, so puts on a full node evict
// ahead of need.

#include <algorithm>
#include <vector>

#include "base/random.hpp"
#include "store/client.hpp"
#include "store/operations.hpp"

namespace kvstore {

using layout::EvictionMetadata;
using layout::Slot;

namespace {

constexpr unsigned kGroupsSampled = 2;
constexpr unsigned kSlotsSampled = kGroupsSampled * layout::kSlotsPerGroup;
constexpr uint64_t kReclaimPollNs = kMillisecond / 2;
// Free blocks that a put on a full node keeps ahead, as a share of what its client owns of the
// class and in number: enough for the puts of one epoch.
constexpr uint64_t kStockShare = 16;
constexpr uint64_t kStockMin = 32;
constexpr uint64_t kStockMax = 8192;
// Whole extents are evicted no more often than they can come back: unlinked, reclaimed, released.
constexpr uint64_t kExtentPauseNs = 20 * kMillisecond;
constexpr unsigned kExtentTries = 8;
// How long a full node without eviction is waited for before memory is refused, and how long every
// put is then refused at once.
constexpr uint64_t kPatienceNs = 150 * kMillisecond;
constexpr uint64_t kRefusalHoldsNs = kSecond;

struct Sample {
  SlotRef ref;
  uint32_t idle_ms;
  bool guarded;  // clients have copies: it is in use, and to evict it takes messages
  bool useful;   // its block becomes ours to use: right class, in an own extent or one of its own
};

struct Sampled {
  layout::Bucket buckets[kGroupsSampled * layout::kBucketsPerGroup];
  EvictionMetadata metadata[kSlotsSampled];
};

Task<Status> read_sample(Channel& channel, Sampled& sampled, uint64_t& groups_offset) {
  const Attachment& attachment = *channel.attachment;
  const layout::DirectoryEntry entry =
      attachment.directory.entry_at(thread_random() % attachment.directory.size());
  const uint64_t group = thread_random() % (layout::kGroupsPerSubtable - kGroupsSampled + 1);
  groups_offset = entry.offset() + group * layout::kGroupBytes;
  kv_op ops[2] = {read_op(groups_offset, sampled.buckets, sizeof sampled.buckets),
                  read_op(entry.offset() + layout::kSubtableBucketBytes +
                              group * layout::kMetadataBytesPerGroup,
                          sampled.metadata, sizeof sampled.metadata)};
  co_return from_fabric(co_await channel.remote.batch(ops));
}

unsigned rank(Channel& channel, const Sampled& sampled, uint64_t groups_offset, unsigned size_class,
              std::span<Sample> samples) {
  const Attachment& attachment = *channel.attachment;
  const uint32_t now_ms = uint32_t(attachment.node_clock_ms());
  const bool shared = attachment.geometry.shares_extent(size_class);
  unsigned count = 0;
  for (unsigned i = 0; i < kSlotsSampled; ++i) {
    const unsigned bucket = i / layout::kSlotsPerBucket;
    const unsigned in_bucket = i % layout::kSlotsPerBucket;
    const Slot slot{sampled.buckets[bucket].slots[in_bucket]};
    if (!slot.readable() || slot.moving() || slot.frozen()) continue;
    if (!attachment.geometry.holds_block(slot.offset(), slot.size_class())) continue;
    const uint64_t offset = groups_offset + bucket * layout::kBucketBytes + 8 + in_bucket * 8;
    const bool useful =
        slot.size_class() == size_class && (!shared || attachment.allocator.owns(slot.offset()));
    samples[count++] = {
        {offset, slot}, now_ms - sampled.metadata[i].last_access_ms, slot.guarded(), useful};
  }
  std::sort(samples.begin(), samples.begin() + count, [](const Sample& a, const Sample& b) {
    if (a.guarded != b.guarded) return b.guarded;
    if (a.useful != b.useful) return a.useful;
    return a.idle_ms > b.idle_ms;
  });
  return count;
}

uint64_t stock_wanted(const Attachment& attachment, unsigned size_class) {
  return std::clamp(attachment.allocator.owned_blocks(size_class) / kStockShare, kStockMin,
                    kStockMax);
}

// After a block was taken on a full node: keeps enough others on their way.
Task<Status> evict_ahead(Channel& channel, unsigned size_class) {
  Attachment& attachment = *channel.attachment;
  const uint64_t coming =
      attachment.allocator.free_blocks(size_class) + attachment.limbo.blocks(size_class);
  if (coming >= stock_wanted(attachment, size_class)) co_return Status::kOk;
  co_await evict_sampled(channel, size_class, 2);
  co_return Status::kOk;
}

// Memory for a class of which nothing useful could be evicted: other clients own all its extents,
// or it has none. They are asked for theirs by `want_memory`; meanwhile whole extents go, the
// coldest of a sample first, so that their owners return the segments.
Task<Status> evict_elsewhere(Channel& channel, unsigned size_class) {
  Attachment& attachment = *channel.attachment;
  const uint64_t now_ns = monotonic_ns();
  uint64_t pause_ns = attachment.extent_eviction_pause_ns.load();
  if (now_ns < pause_ns || !attachment.extent_eviction_pause_ns.compare_exchange_strong(
                               pause_ns, now_ns + kExtentPauseNs)) {
    co_return Status::kOk;
  }
  Sampled sampled;
  uint64_t groups_offset = 0;
  if (const Status s = co_await read_sample(channel, sampled, groups_offset); s != Status::kOk) {
    co_return s;
  }
  Sample samples[kSlotsSampled];
  const unsigned count = rank(channel, sampled, groups_offset, 0, samples);
  const layout::Geometry& geometry = attachment.geometry;
  const uint32_t run = geometry.segments_for(layout::class_bytes(size_class) + layout::kLineBytes);
  for (unsigned i = 0; i < std::min(count, kExtentTries); ++i) {
    const uint64_t segment = geometry.segment_of(samples[i].ref.slot.offset());
    const Status s = co_await evict_segments(channel, segment, run);
    if (s != Status::kAbsent) co_return s;
  }
  co_return Status::kOk;
}

Task<Status> evict_for(Channel& channel, unsigned size_class) {
  Attachment& attachment = *channel.attachment;
  const uint64_t coming =
      attachment.allocator.free_blocks(size_class) + attachment.limbo.blocks(size_class);
  if (coming >= kStockMin) co_return Status::kOk;
  const Evicted evicted = co_await evict_sampled(channel, size_class, 2);
  if (evicted.useful == 0) co_return co_await evict_elsewhere(channel, size_class);
  co_return Status::kOk;
}

// Without eviction: whether what can come back, from reclamation or from others, has had its time.
class Patience {
 public:
  explicit Patience(Attachment& attachment) : attachment_(attachment) {}

  // Called after each attempt to get memory that failed.
  bool is_over() {
    const uint64_t now_ns = monotonic_ns();
    if (attachment_.limbo.bytes() > 0 || began_ns_ == 0) {
      // Blocks on their way out of the limbo are not free yet: the time begins with the last.
      waited_for_limbo_ |= attachment_.limbo.bytes() > 0;
      began_ns_ = now_ns;
    }
    const uint64_t refused_ns = attachment_.refused_ns.load(std::memory_order_relaxed);
    const bool lately = refused_ns != 0 && now_ns - refused_ns < kRefusalHoldsNs;
    if (lately && !waited_for_limbo_) return true;
    if (now_ns - began_ns_ < kPatienceNs) return false;
    attachment_.refused_ns.store(now_ns, std::memory_order_relaxed);
    return true;
  }

 private:
  Attachment& attachment_;
  uint64_t began_ns_ = 0;
  bool waited_for_limbo_ = false;
};

}  // namespace

Task<bool> evict_slot(Channel& channel, SlotRef ref) {
  const Status emptied = co_await empty_slot(channel, ref);
  if (emptied != Status::kOk) co_return false;
  channel.attachment->limbo.retire({ref.slot.offset(), ref.slot.size_class()});
  ++channel.lane().counts().evictions;
  co_return true;
}

Task<Evicted> evict_sampled(Channel& channel, unsigned size_class, unsigned wanted) {
  Sampled sampled;
  uint64_t groups_offset = 0;
  Evicted evicted;
  if (co_await read_sample(channel, sampled, groups_offset) != Status::kOk) co_return evicted;
  Sample samples[kSlotsSampled];
  const unsigned count = rank(channel, sampled, groups_offset, size_class, samples);
  // At most a quarter of the sample goes, so that what goes is old among its neighbours.
  const unsigned limit = std::min(wanted, std::max(1u, count / 4));
  for (unsigned i = 0; i < count && evicted.total < limit; ++i) {
    if (channel.remote.broken()) break;
    if (!co_await evict_slot(channel, samples[i].ref)) continue;
    ++evicted.total;
    evicted.useful += samples[i].useful ? 1 : 0;
  }
  co_return evicted;
}

Task<Status> evict_in_places(Channel& channel, const Key& key) {
  Places places;
  if (const Status s =
          co_await read_places(channel.remote, channel.attachment->directory, key.hash, places);
      s != Status::kOk) {
    co_return s;
  }
  const unsigned first = unsigned(thread_random() % (2 * kSlotsPerCombined));
  for (unsigned n = 0; n < 2 * kSlotsPerCombined; ++n) {
    const unsigned i = (first + n) % (2 * kSlotsPerCombined);
    const CombinedBucket& combined = places.own()[i / kSlotsPerCombined];
    const Slot slot = combined.slot(i % kSlotsPerCombined);
    if (!slot.readable() || slot.moving() || slot.frozen()) continue;
    if (co_await evict_slot(channel, {combined.slot_offset(i % kSlotsPerCombined), slot})) break;
    if (channel.remote.broken()) co_return Status::kNodeUnreachable;
  }
  co_return Status::kOk;
}

Task<TakeResult> allocate(Channel& channel, unsigned size_class) {
  Attachment& attachment = *channel.attachment;
  Lane& lane = channel.lane();
  Patience patience(attachment);
  for (;;) {
    if (lane.cancelled()) co_return TakeResult{Status::kDeadlineExceeded, {}};
    if (const std::optional<Block> block = attachment.allocator.take_local(size_class)) {
      if (attachment.full.load(std::memory_order_relaxed) && attachment.evicts()) {
        co_await evict_ahead(channel, size_class);
      }
      co_return TakeResult{Status::kOk, *block};
    }
    const TakeResult taken = co_await attachment.allocator.take(channel.remote, size_class);
    if (taken.grown) attachment.full.store(false, std::memory_order_relaxed);
    if (taken.status != Status::kOutOfMemory) co_return taken;
    attachment.full.store(true, std::memory_order_relaxed);

    if (attachment.evicts()) {
      co_await evict_for(channel, size_class);
      if (channel.remote.broken()) co_return TakeResult{Status::kNodeUnreachable, {}};
    } else if (patience.is_over()) {
      co_return TakeResult{Status::kOutOfMemory, {}};
    }
    lane.client().want_memory(channel.member(), size_class);
    const uint64_t now = monotonic_ns();
    if (lane.cancelled() || now >= lane.deadline_ns()) {
      co_return TakeResult{Status::kOutOfMemory, {}};
    }
    co_await lane.wait_without_addresses(now + kReclaimPollNs);
  }
}

}  // namespace kvstore
