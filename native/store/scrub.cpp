#include "store/scrub.hpp"

#include <algorithm>

#include "base/variant.hpp"
namespace kvstore {

using layout::SegmentEntry;

namespace {

constexpr unsigned kRounds = 4;

}  // namespace

// The own extents: those of many blocks as the allocator knows them, those of one block as the
// segment table says.
Task<Status> Scrub::begin(Channel& channel) {
  const layout::Geometry& geometry = channel.attachment->geometry;
  const uint32_t own = channel.attachment->registration;
  searches_.clear();
  at_ = 0;
  for (BlockAllocator::ExtentView& view : channel.attachment->allocator.begin_scrub()) {
    searches_.push_back({{view.extent, view.size_class, view.shape, std::move(view.free_bits), 0},
                         {},
                         view.number});
  }
  std::vector<uint64_t> words;
  if (const Status s = co_await read_segment_table(channel, words); s != Status::kOk) co_return s;
  for (uint64_t segment = 0; segment < words.size(); ++segment) {
    const SegmentEntry head{words[segment]};
    if (head.kind() != SegmentEntry::kObjects || head.owner() != own) continue;
    if (geometry.shares_extent(head.size_class())) {
      continue;
    }
    searches_.push_back({blocks_of(geometry, segment, head), {}, 0});
  }
  stage_ = KV_VARIANT(search_meets_drafts) ? Stage::kLooking : Stage::kSettling;
  until_ = 0;
  co_return Status::kOk;
}

Task<Status> Scrub::look(Channel& channel) {
  const Status s = co_await search_for_a_while(channel, searches_, at_);
  if (s != Status::kOk) co_return s == Status::kPending ? Status::kOk : s;
  std::erase_if(searches_, [](const auto& search) { return search.dead_blocks() == 0; });
  for (UnreferencedSearch& search : searches_) search.again();
  stage_ = searches_.empty() ? Stage::kIdle : Stage::kWaiting;
  rounds_ = 0;
  until_ = 0;
  at_ = 0;
  co_return Status::kOk;
}

// Whatever was under way when a round began has ended when it has passed.
bool Scrub::round_passes(uint64_t global_epoch, uint64_t safe_epoch) {
  if (until_ == 0) {
    until_ = global_epoch + 1;
    return false;
  }
  if (safe_epoch <= until_) return false;
  until_ = 0;
  return true;
}

Task<Status> Scrub::finish_one(Channel& channel, UnreferencedSearch& search) {
  Attachment& attachment = *channel.attachment;
  const uint64_t segment = search.blocks.extent.segment;
  // What others gave back in the meantime is free, not dead; all of it, or it would be freed twice.
  if (const Status s = co_await attachment.allocator.harvest_extent(channel.remote, segment);
      s != Status::kOk) {
    co_return s;
  }
  while (!search.blocks.done()) {
    if (const Status s = co_await search_slice(channel, search); s != Status::kOk) co_return s;
  }
  if (attachment.geometry.shares_extent(search.blocks.size_class)) {
    freed_ += attachment.allocator.end_scrub(segment, search.ownership, search.dead);
    co_return Status::kOk;
  }
  if (search.dead_blocks() == 0 || attachment.allocator.took_run(segment)) co_return Status::kOk;
  SegmentEntry head;
  if (const Status s = co_await attachment.segments.read_entry(channel.remote, segment, head);
      s != Status::kOk) {
    co_return s;
  }
  if (head.kind() != SegmentEntry::kObjects || head.owner() != attachment.registration ||
      head.size_class() != search.blocks.size_class) {
    co_return Status::kOk;
  }
  const Status released = co_await attachment.segments.release(channel.remote, segment, head);
  if (released == Status::kOk) ++freed_;
  co_return released == Status::kAbsent ? Status::kOk : released;
}

Task<Status> Scrub::finish(Channel& channel) {
  const uint64_t until_ns = monotonic_ns() + kMillisecond;
  while (at_ < searches_.size()) {
    if (const Status s = co_await finish_one(channel, searches_[at_]); s != Status::kOk) {
      co_return s;
    }
    ++at_;
    if (monotonic_ns() >= until_ns) co_return Status::kOk;
  }
  searches_.clear();
  stage_ = Stage::kIdle;
  co_return Status::kOk;
}

Task<Status> Scrub::advance(Channel& channel, uint64_t global_epoch, uint64_t safe_epoch) {
  switch (stage_) {
    case Stage::kIdle: {
      if (!requested_) co_return Status::kOk;
      requested_ = false;
      const Status begun = co_await begin(channel);
      if (begun != Status::kOk) requested_ = true;
      co_return begun;
    }
    case Stage::kSettling:
      if (round_passes(global_epoch, safe_epoch)) stage_ = Stage::kLooking;
      co_return Status::kOk;
    case Stage::kLooking:
      co_return co_await look(channel);
    case Stage::kWaiting:
      if (round_passes(global_epoch, safe_epoch)) ++rounds_;
      if (rounds_ == kRounds || KV_VARIANT(scrub_without_rounds)) stage_ = Stage::kFinishing;
      co_return Status::kOk;
    default:
      co_return co_await finish(channel);
  }
}

}  // namespace kvstore
