#include "node/sweep.hpp"

#include <algorithm>
#include <bit>

#include "index/split.hpp"
#include "lock/table.hpp"
#include "store/operations.hpp"

namespace kvstore {

using layout::ExtentShape;
using layout::SegmentEntry;

namespace {

Task<Status> read_bitmap(Channel& channel, uint64_t segment, const ExtentShape& shape,
                         std::vector<uint64_t>& bits) {
  bits.assign((shape.blocks + 63) / 64, 0);
  kv_op op[1] = {
      read_op(channel.attachment->geometry.segment_offset(segment), bits.data(), bits.size() * 8)};
  co_return from_fabric(co_await channel.remote.batch(op));
}

uint64_t count_bits(const std::vector<uint64_t>& words) {
  uint64_t count = 0;
  for (const uint64_t word : words) count += uint64_t(std::popcount(word));
  return count;
}

// Sets bits in the bitmap that are not set yet; returns how many it set.
Task<Status> set_bits(Channel& channel, uint64_t segment, const std::vector<uint64_t>& wanted,
                      uint64_t& set) {
  const uint64_t at = channel.attachment->geometry.segment_offset(segment);
  for (size_t w = 0; w < wanted.size(); ++w) {
    if (wanted[w] == 0) continue;
    uint64_t word = 0;
    kv_op read[1] = {read_op(at + w * 8, &word, 8)};
    if (const uint32_t s = co_await channel.remote.batch(read); s != KV_FABRIC_OK) {
      co_return from_fabric(s);
    }
    for (unsigned race = 0; race < 256 && (wanted[w] & ~word) != 0; ++race) {
      kv_op op[1] = {cas_op(at + w * 8, word, word | wanted[w])};
      if (const uint32_t s = co_await channel.remote.batch(op); s != KV_FABRIC_OK) {
        co_return from_fabric(s);
      }
      if (op[0].result == word) {
        set += uint64_t(std::popcount(wanted[w] & ~word));
        break;
      }
      word = op[0].result;
    }
  }
  co_return Status::kOk;
}

}  // namespace

Task<Status> Sweep::settle_subtable(Channel& channel, uint64_t segment, SegmentEntry head) {
  Attachment& attachment = *channel.attachment;
  if (const Status s = co_await attachment.directory.refresh(channel.remote); s != Status::kOk) {
    co_return s;
  }
  const uint64_t offset = attachment.geometry.segment_offset(segment);
  for (uint64_t i = 0; i < attachment.directory.size(); ++i) {
    if (attachment.directory.entry_at(i).offset() == offset) co_return Status::kOk;
  }
  co_return co_await attachment.segments.release(channel.remote, segment, head);
}

Task<Status> Sweep::list_extent(Channel& channel, uint64_t segment, SegmentEntry head) {
  const layout::Geometry& geometry = channel.attachment->geometry;
  UnreferencedSearch search{blocks_of(geometry, segment, head), {}, 0};
  if (search.blocks.shape.blocks == 0) co_return Status::kOk;  // damaged: left alone
  if (geometry.shares_extent(head.size_class())) {
    const Status s =
        co_await read_bitmap(channel, segment, search.blocks.shape, search.blocks.skip);
    if (s != Status::kOk) co_return s;
  }
  searches_.push_back(std::move(search));
  heads_.push_back(head);
  co_return Status::kOk;
}

// An extent without an owner becomes the node's own: nobody adopts it meanwhile, so that no block
// of it comes to life between the two looks.
Task<Status> Sweep::take_over(Channel& channel, uint64_t segment, SegmentEntry head) {
  const SegmentEntry taken = head.successor(
      SegmentEntry::kObjects, channel.attachment->registration, head.run(), head.size_class());
  kv_op op[1] = {cas_op(channel.attachment->geometry.entry_offset(segment), head.word, taken.word)};
  if (const uint32_t s = co_await channel.remote.batch(op); s != KV_FABRIC_OK) {
    co_return from_fabric(s);
  }
  if (op[0].result != head.word) co_return Status::kOk;  // adopted
  co_return co_await list_extent(channel, segment, taken);
}

Task<Status> Sweep::settle(Channel& channel, uint64_t segment, SegmentEntry head) {
  if (head.kind() == SegmentEntry::kAdoptable) co_return co_await take_over(channel, segment, head);
  // A sweep whose connection broke may have left what it had taken over.
  const bool own = head.owner() == channel.attachment->registration;
  if (!of_the_dead(head.owner()) && !own) co_return Status::kOk;
  switch (head.kind()) {
    case SegmentEntry::kClaiming:
      co_return co_await channel.attachment->segments.dissolve(channel.remote, segment, head);
    case SegmentEntry::kSubtable:
      co_return co_await settle_subtable(channel, segment, head);
    case SegmentEntry::kObjects:
      co_return co_await list_extent(channel, segment, head);
    case SegmentEntry::kLocks: {
      bool is_table = true;  // and everybody's
      const Status s =
          co_await is_lock_table(channel.remote, channel.attachment->geometry, segment, is_table);
      if (s != Status::kOk || is_table) co_return s;
      co_return co_await channel.attachment->segments.release(channel.remote, segment, head);
    }
    default:
      co_return Status::kOk;
  }
}

bool Sweep::of_the_dead(uint32_t owner) const {
  return std::find(registrations_.begin(), registrations_.end(), owner) != registrations_.end();
}

// Or that of an earlier attempt, which had taken the lock over before its connection broke.
Task<Status> finish_split_of(Channel& channel, uint32_t registration) {
  Attachment& attachment = *channel.attachment;
  const SplitEnvironment environment{attachment.segments, attachment.directory,
                                     attachment.registration, attachment.split_running,
                                     channel.lane().deadline_ns()};
  const Status own = co_await resume_split(channel.remote, environment, attachment.registration);
  if (own != Status::kOk) co_return own;
  co_return co_await resume_split(channel.remote, environment, registration);
}

Task<Status> Sweep::begin(Channel& channel) {
  searches_.clear();
  heads_.clear();
  at_ = 0;
  looked_ = false;
  for (const uint32_t registration : registrations_) {
    const Status s = co_await finish_split_of(channel, registration);
    if (s != Status::kOk) co_return s;
  }
  std::vector<uint64_t> words;
  if (const Status s = co_await read_segment_table(channel, words); s != Status::kOk) co_return s;
  for (uint64_t i = 0; i < words.size(); ++i) {
    const Status s = co_await settle(channel, i, SegmentEntry{words[i]});
    if (s != Status::kOk && s != Status::kAbsent) co_return s;
  }
  co_return Status::kOk;
}

Task<Status> Sweep::look(Channel& channel) {
  const Status s = co_await search_for_a_while(channel, searches_, at_);
  if (s != Status::kOk) co_return s;
  if (!looked_) {
    for (UnreferencedSearch& search : searches_) search.again();
    looked_ = true;
  }
  at_ = 0;
  co_return Status::kOk;
}

Task<Status> Sweep::give_back_extent(Channel& channel, UnreferencedSearch& search,
                                     SegmentEntry head) {
  Attachment& attachment = *channel.attachment;
  const uint64_t segment = search.blocks.extent.segment;
  while (!search.blocks.done()) {
    if (const Status s = co_await search_slice(channel, search); s != Status::kOk) co_return s;
  }
  if (!attachment.geometry.shares_extent(head.size_class()) && search.dead_blocks() > 0) {
    const Status released = co_await attachment.segments.release(channel.remote, segment, head);
    if (released == Status::kOk) ++blocks_freed_;
    co_return released;
  }
  if (attachment.geometry.shares_extent(head.size_class())) {
    const Status set = co_await set_bits(channel, segment, search.dead, blocks_freed_);
    if (set != Status::kOk) co_return set;
  }
  const SegmentEntry adoptable =
      head.successor(SegmentEntry::kAdoptable, 0, head.run(), head.size_class());
  kv_op op[1] = {cas_op(attachment.geometry.entry_offset(segment), head.word, adoptable.word)};
  co_return from_fabric(co_await channel.remote.batch(op));
}

void Sweep::spare_all() {
  for (UnreferencedSearch& search : searches_) search.spare_all();
}

Task<Status> Sweep::give_back(Channel& channel) {
  const uint64_t until_ns = monotonic_ns() + kMillisecond;
  while (at_ < searches_.size()) {
    const Status s = co_await give_back_extent(channel, searches_[at_], heads_[at_]);
    if (s != Status::kOk && s != Status::kAbsent) co_return s;
    ++at_;
    if (monotonic_ns() >= until_ns) co_return Status::kPending;
  }
  co_return co_await release_abandoned(channel);
}

Task<Status> release_abandoned(Channel& channel) {
  Attachment& attachment = *channel.attachment;
  std::vector<uint64_t> words;
  if (const Status s = co_await read_segment_table(channel, words); s != Status::kOk) co_return s;
  for (uint64_t i = 0; i < words.size(); ++i) {
    const SegmentEntry entry{words[i]};
    if (entry.kind() != SegmentEntry::kAdoptable ||
        !attachment.geometry.shares_extent(entry.size_class()))
      continue;
    const ExtentShape shape = attachment.geometry.shape_of(i, entry);
    if (shape.blocks == 0) continue;
    std::vector<uint64_t> bits;
    if (const Status s = co_await read_bitmap(channel, i, shape, bits); s != Status::kOk) {
      co_return s;
    }
    if (count_bits(bits) != shape.blocks) continue;
    const Status s = co_await attachment.segments.release(channel.remote, i, entry);
    if (s != Status::kOk && s != Status::kAbsent) co_return s;
  }
  co_return Status::kOk;
}

}  // namespace kvstore
