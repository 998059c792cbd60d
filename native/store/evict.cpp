// Memory for an object when the node is full: sampled eviction in the shape of Ditto (SOSP'23,
// section 4.2). Clients read the metadata of a few groups of slots, drop what the node's policy
// ranks lowest among them and those remembered of earlier samples, and retire their blocks; a block
// is usable again one epoch later, so puts on a full node evict ahead of need.

#include <algorithm>
#include <array>
#include <new>
#include <vector>

#include "base/assert.hpp"
#include "base/random.hpp"
#include "coro/frame_pool.hpp"
#include "store/client.hpp"
#include "store/eviction_policy.hpp"
#include "store/operations.hpp"

namespace kvstore {

using layout::EvictionMetadata;
using layout::Slot;

namespace {

// Groups a sample: eight of a full index, more of a sparse one.
constexpr unsigned kGroupsLeast = 8;
constexpr unsigned kGroupsMost = 40;
constexpr unsigned kSlotsSampled = kGroupsMost * layout::kSlotsPerGroup;
constexpr unsigned kSlotsWanted = 120;  // in use
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

constexpr unsigned kRankedMax = kSlotsSampled + EvictionPool::kEntries;

struct Sampled {
  uint64_t groups_offset;
  uint64_t metadata_offset;
  unsigned slots;
  layout::Bucket buckets[kGroupsMost * layout::kBucketsPerGroup];
  EvictionMetadata metadata[kSlotsSampled];
};

// What may be evicted, the first that should go first.
struct Victim {
  EvictionEntry entry;
  uint32_t idle_ms;
  bool useful;  // its block becomes ours to use: right class, in an own extent or one of its own
};
constexpr unsigned kVictimsMax = 16;
struct Victims {
  unsigned ranked = 0;  // entries that could be chosen from
  unsigned count = 0;
  Victim chosen[kVictimsMax];
};

Task<Status> read_sample(Channel& channel, Sampled& sampled) {
  const Attachment& attachment = *channel.attachment;
  const layout::DirectoryEntry entry =
      attachment.directory.entry_at(thread_random() % attachment.directory.size());
  const unsigned groups =
      std::clamp(kSlotsWanted / std::max(1u, channel.eviction_pool.used_per_group()), kGroupsLeast,
                 kGroupsMost);
  const uint64_t group = thread_random() % (layout::kGroupsPerSubtable - groups + 1);
  sampled.slots = groups * layout::kSlotsPerGroup;
  sampled.groups_offset = entry.offset() + group * layout::kGroupBytes;
  sampled.metadata_offset =
      entry.offset() + layout::kSubtableBucketBytes + group * layout::kMetadataBytesPerGroup;
  kv_op ops[2] = {
      read_op(sampled.groups_offset, sampled.buckets, groups * layout::kGroupBytes),
      read_op(sampled.metadata_offset, sampled.metadata, groups * layout::kMetadataBytesPerGroup)};
  co_return from_fabric(co_await channel.remote.batch(ops));
}

struct Ranked {
  EvictionEntry entry;
  EntryWorth worth;
  bool useful;
};

// The entries of a sample that may go, and those remembered. Pins count only while they are not
// too many.
unsigned collect(Channel& channel, const Sampled& sampled, std::array<Ranked, kRankedMax>& ranked) {
  const Attachment& attachment = *channel.attachment;
  const uint64_t now_ms = attachment.node_clock_at_ms(monotonic_ns());
  unsigned count = 0;
  unsigned pins = 0;
  for (unsigned i = 0; i < sampled.slots; ++i) {
    const unsigned bucket = i / layout::kSlotsPerBucket;
    const unsigned in_bucket = i % layout::kSlotsPerBucket;
    const Slot slot{sampled.buckets[bucket].slots[in_bucket]};
    if (!slot.readable() || slot.moving() || slot.frozen()) continue;
    if (!attachment.geometry.holds_block(slot.offset(), slot.size_class())) continue;
    const uint64_t offset =
        sampled.groups_offset + bucket * layout::kBucketBytes + 8 + in_bucket * 8;
    const uint64_t metadata_offset = sampled.metadata_offset + i * sizeof(EvictionMetadata);
    EvictionMetadata metadata = sampled.metadata[i];
    channel.recent_uses.apply(metadata_offset, metadata);
    metadata.pinned_until_s = sampled.metadata[i].pinned_until_s;  // which uses say nothing of
    ranked[count++].entry = {{offset, slot}, metadata_offset, metadata, false};
    pins += pinned(sampled.metadata[i], now_ms) ? 1 : 0;
  }
  channel.eviction_pool.saw(sampled.slots / layout::kSlotsPerGroup, count);
  if (pins * kPinnedShare <= count) {
    const auto is_pinned = [&](const Ranked& one) { return pinned(one.entry.metadata, now_ms); };
    count = unsigned(std::remove_if(ranked.begin(), ranked.begin() + count, is_pinned) -
                     ranked.begin());
  }
  for (unsigned i = 0; i < count; ++i) {
    EvictionEntry& entry = ranked[i].entry;
    entry.owned = !attachment.geometry.shares_extent(entry.ref.slot.size_class()) ||
                  attachment.allocator.owns(entry.ref.slot.offset());
  }
  channel.eviction_pool.take(
      attachment.superblock.incarnation, monotonic_ns(), sampled.groups_offset,
      sampled.groups_offset + sampled.slots / layout::kSlotsPerGroup * layout::kGroupBytes,
      [&](EvictionEntry entry) {
        channel.recent_uses.apply(entry.metadata_offset, entry.metadata);
        ranked[count++].entry = entry;
      });
  return count;
}

// Chooses at most `wanted` victims, those whose blocks are useful first, and remembers the next.
void choose(Channel& channel, const Sampled& sampled, unsigned size_class, unsigned wanted,
            Victims& victims) {
  const Attachment& attachment = *channel.attachment;
  std::array<Ranked, kRankedMax> ranked;
  const unsigned count = collect(channel, sampled, ranked);
  const uint32_t now_ms = uint32_t(attachment.node_clock_at_ms(monotonic_ns()));
  for (unsigned i = 0; i < count; ++i) {
    const EvictionEntry& entry = ranked[i].entry;
    const unsigned own_class = entry.ref.slot.size_class();
    ranked[i].useful = own_class == size_class && entry.owned;
    ranked[i].worth = entry_worth(attachment.superblock.eviction, entry.metadata, own_class, now_ms,
                                  attachment.reuse);
  }
  const unsigned sorted = std::min(count, wanted + EvictionPool::kEntries);
  std::partial_sort(ranked.begin(), ranked.begin() + sorted, ranked.begin() + count,
                    [](const Ranked& a, const Ranked& b) {
                      // Of which clients have copies: in use, and to evict it takes messages.
                      const bool a_guarded = a.entry.ref.slot.guarded();
                      const bool b_guarded = b.entry.ref.slot.guarded();
                      if (a_guarded != b_guarded) return b_guarded;
                      if (a.useful != b.useful) return a.useful;
                      return a.worth < b.worth;
                    });
  victims.ranked = count;
  for (unsigned i = 0; i < sorted; ++i) {
    if (victims.count < wanted) {
      victims.chosen[victims.count++] = {ranked[i].entry, ranked[i].worth.idle_ms,
                                         ranked[i].useful};
    } else if (!channel.eviction_pool.full()) {
      channel.eviction_pool.keep(ranked[i].entry);
    }
  }
}

// Entries of which nothing has been told: what has just been put, or a split has carried. They
// count as used now, and from now on; otherwise the first would go before the heartbeat has told of
// them, or the others never.
Task<Status> date_unknown(Channel& channel, const Sampled& sampled) {
  constexpr unsigned kDatedMax = 8;
  const uint32_t now_ms = time_of_use(channel.attachment->node_clock_at_ms(monotonic_ns()));
  kv_op ops[kDatedMax];
  unsigned count = 0;
  for (unsigned i = 0; i < sampled.slots && count < kDatedMax; ++i) {
    const Slot slot{
        sampled.buckets[i / layout::kSlotsPerBucket].slots[i % layout::kSlotsPerBucket]};
    if (!slot.readable() || sampled.metadata[i].last_access_ms != 0) continue;
    const uint64_t metadata_offset = sampled.metadata_offset + i * sizeof(EvictionMetadata);
    EvictionMetadata metadata = sampled.metadata[i];
    channel.recent_uses.apply(metadata_offset, metadata);
    if (metadata.last_access_ms != 0) continue;
    ops[count++] =
        write_op(sampled.metadata_offset + i * sizeof(EvictionMetadata), &now_ms, sizeof now_ms);
  }
  if (count == 0) co_return Status::kOk;
  co_return from_fabric(co_await channel.remote.batch({ops, count}));
}

// Samples and chooses: two READs.
Task<Status> find_victims(Channel& channel, unsigned size_class, unsigned wanted,
                          Victims& victims) {
  const Scratch memory(sizeof(Sampled));
  Sampled& sampled = *new (memory.data()) Sampled;
  const Status s = co_await read_sample(channel, sampled);
  if (s != Status::kOk) co_return s;
  choose(channel, sampled, size_class, wanted, victims);
  co_return co_await date_unknown(channel, sampled);
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
  Victims victims;
  if (const Status s = co_await find_victims(channel, 0, kExtentTries, victims); s != Status::kOk) {
    co_return s;
  }
  const layout::Geometry& geometry = attachment.geometry;
  const uint32_t run = geometry.segments_for(layout::class_bytes(size_class) + layout::kLineBytes);
  for (unsigned i = 0; i < victims.count; ++i) {
    const uint64_t segment = geometry.segment_of(victims.chosen[i].entry.ref.slot.offset());
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
  Evicted evicted;
  Victims victims;
  // What is put into a slot next is not taken for what was there, until the heartbeat tells of it.
  const EvictionMetadata unknown{};
  kv_op clears[kVictimsMax];
  KV_ASSERT(2 * wanted <= kVictimsMax);
  // Some may be gone already.
  if (co_await find_victims(channel, size_class, 2 * wanted, victims) != Status::kOk) {
    co_return evicted;
  }
  // At most a quarter of the sample goes, so that what goes is worth little among its neighbours.
  const unsigned limit = std::min(wanted, std::max(1u, victims.ranked / 4));
  for (unsigned i = 0; i < victims.count; ++i) {
    if (evicted.total >= limit) {
      channel.eviction_pool.put_back(victims.chosen[i].entry);
      continue;
    }
    if (channel.remote.broken()) break;
    const EvictionEntry& entry = victims.chosen[i].entry;
    if (!co_await evict_slot(channel, entry.ref)) continue;
    channel.recent_uses.forget(entry.metadata_offset);
    clears[evicted.total] = write_op(entry.metadata_offset, &unknown, sizeof unknown);
    ++evicted.total;
    evicted.useful += victims.chosen[i].useful ? 1 : 0;
    channel.attachment->reuse.evicted(victims.chosen[i].idle_ms);
  }
  // If that is lost the next one to look at them takes them for older than they are.
  if (evicted.total > 0) co_await channel.remote.batch({clears, evicted.total});
  co_return evicted;
}

Task<Status> evict_in_places(Channel& channel, const Key& key) {
  Places places;
  if (const Status s =
          co_await read_places(channel.remote, channel.attachment->directory, key.hash, places);
      s != Status::kOk) {
    co_return s;
  }
  // The metadata of a combined bucket's slots lie together, as its buckets do.
  EvictionMetadata metadata[2][kSlotsPerCombined];
  uint64_t offsets[2];
  kv_op ops[2];
  for (unsigned c = 0; c < 2; ++c) {
    const uint64_t in_subtable = places.own()[c].offset - places.subtable();
    offsets[c] =
        places.subtable() + layout::kSubtableBucketBytes +
        in_subtable / layout::kBucketBytes * layout::kSlotsPerBucket * sizeof(EvictionMetadata);
    ops[c] = read_op(offsets[c], metadata[c], sizeof metadata[c]);
  }
  if (const uint32_t s = co_await channel.remote.batch(ops); s != KV_FABRIC_OK) {
    co_return from_fabric(s);
  }
  const Attachment& attachment = *channel.attachment;
  const uint32_t now_ms = uint32_t(attachment.node_clock_at_ms(monotonic_ns()));
  SlotRef victim;
  uint64_t victim_metadata = 0;
  EntryWorth least{};
  for (unsigned n = 0; n < 2 * kSlotsPerCombined; ++n) {
    const CombinedBucket& combined = places.own()[n / kSlotsPerCombined];
    const unsigned i = n % kSlotsPerCombined;
    const Slot slot = combined.slot(i);
    if (!slot.readable() || slot.moving() || slot.frozen()) continue;
    const EntryWorth worth =
        entry_worth(attachment.superblock.eviction, metadata[n / kSlotsPerCombined][i],
                    slot.size_class(), now_ms, attachment.reuse);
    if (victim.offset != 0 && !(worth < least)) continue;
    least = worth;
    victim = {combined.slot_offset(i), slot};
    victim_metadata = offsets[n / kSlotsPerCombined] + i * sizeof(EvictionMetadata);
  }
  if (victim.offset != 0 && co_await evict_slot(channel, victim)) {
    const EvictionMetadata unknown{};
    kv_op clear[1] = {write_op(victim_metadata, &unknown, sizeof unknown)};
    co_await channel.remote.batch(clear);
  }
  co_return channel.remote.broken() ? Status::kNodeUnreachable : Status::kOk;
}

// A harvest that was lost may have cleared the bits of blocks that nobody has taken. Another
// operation may have connected the lane again meanwhile: then nothing lost can still execute.
void search_if_lost(Channel& channel, Status s) {
  if (channel.remote.broken()) {
    channel.want_scrub();
  } else if (s == Status::kNodeUnreachable) {
    channel.attachment->scrub_wanted.store(true, std::memory_order_release);
  }
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
    search_if_lost(channel, taken.status);
    if (taken.grown) attachment.full.store(false, std::memory_order_relaxed);
    if (taken.status != Status::kOutOfMemory) co_return taken;
    attachment.full.store(true, std::memory_order_relaxed);

    if (attachment.evicts()) {
      search_if_lost(channel, co_await evict_for(channel, size_class));
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
