#include "cache/storage.hpp"

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/assert.hpp"
#include "base/crc32c.hpp"
#include "base/sequence_lock.hpp"
#include "base/variant.hpp"

namespace kvstore {
namespace {

constexpr uint64_t kShardBytes = 32 << 20;
constexpr uint64_t kShardsMax = 16;
// Of the bytes that a copy takes with all that belongs to it, on average.
constexpr uint64_t kBytesPerWay = 256;
constexpr uint64_t kSmallShare = 10;
// A copy that would take more of its ring puts out too much else.
constexpr uint64_t kShareOfRing = 4;
// Rounds that a change gives to others, which are copied for it, before it puts one out.
constexpr unsigned kSecondChances = 8;
// A key may be looked for behind the last copy.
constexpr uint64_t kPastEndBytes = 2 * layout::kKeyBytesMax;

constexpr uint32_t kUsesMask = 0xff;

}  // namespace

CacheStorage::CacheStorage(uint64_t bytes) {
  KV_ASSERT(bytes >= kBytesMin);
  const uint64_t shards = std::bit_floor(std::clamp<uint64_t>(bytes / kShardBytes, 1, kShardsMax));
  const uint64_t sets = std::bit_floor(bytes / shards / kBytesPerWay / kWays);
  const uint64_t index_bytes = shards * sets * (sizeof(Set) + (kWays + 1) * sizeof(uint32_t));
  const uint64_t shard_bytes = (bytes - index_bytes) / shards / kUnitBytes * kUnitBytes;
  memory_.emplace(shards * shard_bytes + kPastEndBytes);
  arena_ = static_cast<uint8_t*>(memory_->data());
  sets_.emplace(shards * sets);
  marks_.emplace(shards * sets * kWays);
  tags_.emplace(shards * sets);
  shards_ = std::make_unique<Shard[]>(shards);
  shard_mask_ = unsigned(shards - 1);
  for (uint64_t i = 0; i < shards; ++i) {
    Shard& shard = shards_[i];
    shard.sets = &(*sets_)[i * sets];
    shard.marks = &(*marks_)[i * sets * kWays];
    shard.tags = &(*tags_)[i * sets];
    shard.set_mask = sets - 1;
    shard.small.base = i * shard_bytes;
    shard.small.bytes = shard_bytes / kSmallShare / kUnitBytes * kUnitBytes;
    shard.main.base = shard.small.base + shard.small.bytes;
    shard.main.bytes = shard_bytes - shard.small.bytes;
  }
  value_bytes_max_ = shards_[0].main.bytes / kShareOfRing - value_at(layout::kKeyBytesMax);
}

// ---- reading --------------------------------------------------------------------------------

CacheStorage::Header CacheStorage::header_at(uint64_t offset) const {
  Header header;
  region_copy(&header, arena_ + offset, sizeof header);
  return header;
}

std::atomic<uint32_t>& CacheStorage::mark_of(const Shard& shard, const Way& way) const {
  return shard.marks[&way - &shard.sets[0].ways[0]];
}

bool CacheStorage::find(const Key& key, View& view) const {
  const Shard& shard = shard_of(key.hash);
  for (const Way& way : shard.sets[set_number(shard, key.hash)].ways) {
    if (way.hash.load(std::memory_order_relaxed) != key.hash) continue;
    const uint64_t word = way.place.load(std::memory_order_acquire);
    if (word == 0) continue;
    const uint64_t offset = offset_of(word);
    const Header header = header_at(offset);
    uint8_t name[layout::kKeyBytesMax];
    region_copy(name, arena_ + offset + kUnitBytes, key.bytes);
    order_reads();
    if (way.place.load(std::memory_order_relaxed) != word) continue;
    if (header.key_bytes != key.bytes || std::memcmp(name, key.data, key.bytes) != 0) continue;
    view = {header.facts(), word, &way.place, arena_ + offset + value_at(key.bytes),
            &mark_of(shard, way)};
    return true;
  }
  return false;
}

bool CacheStorage::take(const View& view, void* into) const {
  region_copy(into, view.value, view.facts.value_bytes);
  order_reads();
  return view.place->load(std::memory_order_relaxed) == view.word;
}

bool CacheStorage::note_use(const View& view, uint32_t now_ms, uint32_t again_ms) {
  // Uses that threads note at once may be lost, which changes nothing that matters.
  const uint32_t mark = view.mark->load(std::memory_order_relaxed);
  const uint32_t uses = mark & kUsesMask;
  constexpr uint32_t kClockMask = UINT32_MAX >> 8;
  const bool due = ((now_ms - (mark >> 8)) & kClockMask) >= again_ms;
  if (uses == kUsesMax && !due) return false;
  view.mark->store((due ? now_ms << 8 : mark & ~kUsesMask) | std::min(uses + 1, kUsesMax),
                   std::memory_order_relaxed);
  return due;
}

// ---- the index ------------------------------------------------------------------------------

CacheStorage::Way* CacheStorage::way_of(Shard& shard, uint64_t hash) const {
  for (Way& way : shard.sets[set_number(shard, hash)].ways) {
    if (way.place.load(std::memory_order_relaxed) == 0) continue;
    if (way.hash.load(std::memory_order_relaxed) == hash) return &way;
  }
  return nullptr;
}

// The key's own, a free one, or that of the copy that was read least.
CacheStorage::Way& CacheStorage::way_for(Shard& shard, uint64_t hash) {
  if (Way* known = way_of(shard, hash)) {
    forget(shard, *known);
    return *known;
  }
  Set& set = shard.sets[set_number(shard, hash)];
  Way* least = &set.ways[0];
  uint32_t least_uses = UINT32_MAX;
  for (Way& way : set.ways) {
    if (way.place.load(std::memory_order_relaxed) == 0) return way;
    const uint32_t uses = uses_of(shard, way);
    if (uses < least_uses) {
      least = &way;
      least_uses = uses;
    }
  }
  forget(shard, *least);
  evictions_.fetch_add(1, std::memory_order_relaxed);
  return *least;
}

// All that changes tags of a shard holds its lock.
void CacheStorage::set_tag(Shard& shard, const Way& way, uint32_t tag) {
  const uint64_t number = uint64_t(&way - &shard.sets[0].ways[0]);
  std::atomic<uint32_t>& tags = shard.tags[number / kWays];
  const unsigned shift = unsigned(number % kWays * 8);
  const uint32_t others = tags.load(std::memory_order_relaxed) & ~(uint32_t{0xff} << shift);
  tags.store(others | tag << shift, std::memory_order_relaxed);
}

// Its bytes stay where they are until the ring comes round.
void CacheStorage::forget(Shard& shard, Way& way) {
  const Header header = header_at(offset_of(way.place.load(std::memory_order_relaxed)));
  way.place.store(0, std::memory_order_relaxed);
  set_tag(shard, way, 0);
  order_writes();
  const auto record = shard.records.find(header.record);
  KV_ASSERT(record != shard.records.end());
  if (--record->second == 0) shard.records.erase(record);
  entries_.fetch_sub(1, std::memory_order_relaxed);
  bytes_used_.fetch_sub(header.copy_bytes(), std::memory_order_relaxed);
}

// ---- the rings ------------------------------------------------------------------------------

bool CacheStorage::has_room(const Ring& ring, uint64_t bytes) const {
  const uint64_t to_end = ring.bytes - ring.head % ring.bytes;
  const uint64_t needed = bytes <= to_end ? bytes : to_end + bytes;
  return ring.head - ring.tail + needed <= ring.bytes;
}

// Where in the arena, once there is room.
uint64_t CacheStorage::claim(Ring& ring, uint64_t bytes) {
  const uint64_t to_end = ring.bytes - ring.head % ring.bytes;
  if (bytes > to_end) {
    Header filler{};
    filler.value_bytes = uint32_t(to_end);
    region_copy(arena_ + ring.base + ring.head % ring.bytes, &filler, sizeof filler);
    ring.head += to_end;
  }
  const uint64_t offset = ring.base + ring.head % ring.bytes;
  ring.head += bytes;
  return offset;
}

bool CacheStorage::move(Shard& shard, Way& way, const Header& header, uint64_t offset, Ring& to) {
  // The source may be what is written over, so it goes by another place.
  shard.moved.resize(header.copy_bytes());
  region_copy(shard.moved.data(), arena_ + offset, header.copy_bytes());
  if (!has_room(to, header.copy_bytes())) return false;
  way.place.store(0, std::memory_order_relaxed);
  order_writes();
  const uint64_t target = claim(to, header.copy_bytes());
  region_copy(arena_ + target, shard.moved.data(), header.copy_bytes());
  way.place.store(uint64_t{++shard.number} << 32 | target / kUnitBytes, std::memory_order_release);
  return true;
}

// The way of the oldest copy in a ring; nullptr: it is none any more.
CacheStorage::Way* CacheStorage::oldest_of(Shard& shard, const Ring& ring, Header& header) const {
  KV_ASSERT(ring.tail < ring.head);
  const uint64_t offset = ring.base + ring.tail % ring.bytes;
  header = header_at(offset);
  if (header.hash == 0) return nullptr;
  Way* const way = way_of(shard, header.hash);
  if (way == nullptr || offset_of(way->place.load(std::memory_order_relaxed)) != offset) {
    return nullptr;
  }
  return way;
}

uint32_t CacheStorage::uses_of(const Shard& shard, const Way& way) const {
  return mark_of(shard, way).load(std::memory_order_relaxed) & kUsesMask;
}

// Takes the oldest copy out of a ring. Returns whether it stays, in the main ring, where it takes
// as much room again. What comes from the small ring without having been read stays only where room
// is to spare.
bool CacheStorage::pop(Shard& shard, Ring& ring, bool may_stay) {
  Header header;
  Way* const way = oldest_of(shard, ring, header);
  const uint64_t offset = ring.base + ring.tail % ring.bytes;
  KV_ASSERT(header.copy_bytes() != 0);
  ring.tail += header.copy_bytes();
  if (way == nullptr) return false;
  const uint32_t uses = uses_of(shard, *way);
  const bool from_small = &ring == &shard.small;
  if (may_stay && (uses > 0 || from_small) && move(shard, *way, header, offset, shard.main)) {
    std::atomic<uint32_t>& mark = mark_of(shard, *way);
    mark.store((mark.load(std::memory_order_relaxed) & ~kUsesMask) | uses / 2,
               std::memory_order_relaxed);
    return !from_small;
  }
  forget(shard, *way);
  evictions_.fetch_add(1, std::memory_order_relaxed);
  return false;
}

void CacheStorage::make_room(Shard& shard, Ring& ring, uint64_t bytes) {
  KV_ASSERT(bytes <= ring.bytes / 2);
  unsigned stayed = 0;
  while (!has_room(ring, bytes)) {
    if (&ring == &shard.small && ring.tail < ring.head) {
      // What was read in the small ring needs room in the main one.
      Header oldest;
      const Way* const way = oldest_of(shard, ring, oldest);
      if (way != nullptr && uses_of(shard, *way) > 0) {
        make_room(shard, shard.main, oldest.copy_bytes());
      }
    }
    stayed += pop(shard, ring, &ring == &shard.small || stayed < kSecondChances);
  }
}

// ---- changes --------------------------------------------------------------------------------

bool CacheStorage::put_locked(const Key& key, const CopyFacts& facts, const void* value,
                              uint32_t value_crc) {
  if (facts.value_bytes > value_bytes_max_) return false;
  if (facts.subtable / layout::kPageBytes > UINT32_MAX) return false;
  Shard& shard = shard_of(key.hash);
  const Header header{.hash = key.hash,
                      .version = facts.version,
                      .slot_offset = facts.slot_offset,
                      .hosted = facts.hosted,
                      .stamp = facts.stamp,
                      .subtable_page = uint32_t(facts.subtable / layout::kPageBytes),
                      .value_bytes = uint32_t(facts.value_bytes),
                      .record = facts.record,
                      .key_bytes = uint16_t(key.bytes),
                      .codec = uint8_t(facts.codec),
                      .absent = facts.absent};
  const bool fits_small = header.copy_bytes() <= shard.small.bytes / kShareOfRing;
  Ring& ring = fits_small ? shard.small : shard.main;
  make_room(shard, ring, header.copy_bytes());
  Way& way = way_for(shard, key.hash);
  const uint64_t offset = claim(ring, header.copy_bytes());
  region_copy(arena_ + offset, &header, sizeof header);
  region_copy(arena_ + offset + kUnitBytes, key.data, key.bytes);
  const uint32_t key_crc = crc32c(0, key.data, key.bytes);
  const uint32_t crc =
      crc32c_copy(key_crc, arena_ + offset + value_at(key.bytes), value, facts.value_bytes);
  // Nothing leads there, so the bytes are passed over when the ring comes round.
  if (crc != value_crc) return false;
  ++shard.records[facts.record];
  entries_.fetch_add(1, std::memory_order_relaxed);
  bytes_used_.fetch_add(header.copy_bytes(), std::memory_order_relaxed);
  mark_of(shard, way).store(0, std::memory_order_relaxed);
  way.hash.store(key.hash, std::memory_order_relaxed);
  way.place.store(uint64_t{++shard.number} << 32 | offset / kUnitBytes, std::memory_order_release);
  set_tag(shard, way, tag_of(key.hash));
  return true;
}

bool CacheStorage::drop_locked(uint64_t hash, uint32_t& uses) {
  Shard& shard = shard_of(hash);
  Way* way = way_of(shard, hash);
  if (way == nullptr) return false;
  uses = uses_of(shard, *way);
  if (KV_VARIANT(cache_leaves_ended)) {
    const uint64_t offset = offset_of(way->place.load(std::memory_order_relaxed));
    if (!header_at(offset).stamp.is_current()) return true;
  }
  forget(shard, *way);
  return true;
}

uint32_t CacheStorage::of_record_locked(uint64_t hash, uint32_t record) const {
  const Shard& shard = shard_of(hash);
  const auto found = shard.records.find(record);
  return found == shard.records.end() ? 0 : found->second;
}

void CacheStorage::clear_locked(unsigned index) {
  Shard& shard = shards_[index];
  for (uint64_t s = 0; s <= shard.set_mask; ++s) {
    for (Way& way : shard.sets[s].ways) {
      if (way.place.load(std::memory_order_relaxed) != 0) forget(shard, way);
    }
  }
  // Nothing is left in the rings that anybody can reach.
  for (Ring* ring : {&shard.small, &shard.main}) ring->head = ring->tail = 0;
}

}  // namespace kvstore
