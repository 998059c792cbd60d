// An object on its way to the node: what it is to hold, its block, and the WRITEs that bring it
// there.

#pragma once

#include <cstring>
#include <span>

#include "base/crc32c.hpp"
#include "base/variant.hpp"
#include "layout/object.hpp"
#include "store/attachment.hpp"
#include "store/operations.hpp"

namespace kvstore {

// An object up to this size is put together in scratch memory and written by one WRITE.
inline constexpr uint64_t kAssembleBytesMax = 16 << 10;

// What an object is to hold, beside its key.
struct Contents {
  const void* value = nullptr;
  uint64_t value_bytes = 0;
  uint8_t codec = 0;
  uint64_t ttl_ms = 0;
  bool tombstone = false;
  bool fenced = false;
  layout::Fence fence = {};

  unsigned size_class(const Key& key) const {
    return layout::object_class(key.bytes, value_bytes, fenced);
  }
};

// An object on its way: its block, and the WRITEs that bring it there.
class Draft {
 public:
  Draft(const Attachment& attachment, const Key& key, const Contents& contents, Block block,
        uint64_t version)
      : block_(block),
        value_at_(layout::value_offset(block.size_class, key.bytes)),
        assembled_(value_at_ + contents.value_bytes <= kAssembleBytesMax &&
                   (contents.value_bytes == 0 || !KV_BUGGIFY(value_first))),
        head_(assembled_ ? value_at_ + contents.value_bytes : layout::kHeaderBytes + key.bytes),
        contents_(contents),
        fenced_(contents.fenced),
        extension_{contents.fence, layout::fence_checksum(contents.fence)} {
    header_.key_bytes = uint16_t(key.bytes);
    header_.flags = uint8_t((contents.tombstone ? layout::kObjectTombstone : 0) |
                            (contents.fenced ? layout::kObjectFence : 0));
    header_.codec = contents.codec;
    header_.value_bytes = contents.value_bytes;
    header_.key_hash = key.hash;
    header_.version = version;
    header_.address_generation = block.offset / layout::kUnitBytes;
    header_.expiry_ticks = expiry_ticks(attachment, contents.ttl_ms);
    std::memcpy(head_.data() + layout::kHeaderBytes, key.data, key.bytes);
    const uint32_t key_crc = crc32c(0, key.data, key.bytes);
    if (assembled_) {
      std::memset(head_.data() + layout::kHeaderBytes + key.bytes, 0,
                  value_at_ - layout::kHeaderBytes - key.bytes);
      const uint32_t crc = contents.value_bytes == 0
                               ? key_crc
                               : crc32c_copy(key_crc, head_.data() + value_at_, contents.value,
                                             contents.value_bytes);
      seal(crc);
      first_[0] = write_op(block.offset, head_.data(), head_.size());
    } else {
      first_[0] = with_crc(write_op(block.offset + value_at_, contents.value, contents.value_bytes),
                           key_crc);
    }
    const uint64_t extension_at =
        layout::extension_offset(block.size_class, key.bytes, contents.value_bytes);
    first_[1] = write_op(block.offset + extension_at, &extension_, sizeof extension_);
    if (is_whole()) pending_ = first_;
  }
  Draft(const Draft&) = delete;
  Draft& operator=(const Draft&) = delete;

  // Whether one WRITE is all of it.
  bool is_whole() const { return assembled_ && !fenced_ && !KV_VARIANT(publish_before_write); }
  // To be posted before anything else, unless it is whole.
  std::span<kv_op> first() { return {first_, KV_VARIANT(publish_before_write) ? 0 : writes()}; }
  std::span<kv_op> withheld() { return {first_, KV_VARIANT(publish_before_write) ? writes() : 0}; }
  // Call once `first` has completed: its checksum goes into the header.
  void first_completed() {
    pending_ = nullptr;
    if (assembled_ || KV_VARIANT(publish_before_write)) return;
    seal(uint32_t(first_[0].result));
    second_ = write_op(block_.offset, head_.data(), head_.size());
    pending_ = &second_;
  }
  // What must still be written before the object may be published; call `posted` when it is on its
  // way.
  std::span<kv_op> pending() { return {pending_, pending_ != nullptr ? 1u : 0u}; }
  void posted() { pending_ = nullptr; }
  uint64_t version() const { return header_.version; }
  bool buries() const { return contents_.tombstone; }
  Replacement replacement(const Key& key) const {
    const uint64_t address = block_.offset / layout::kUnitBytes;
    return {layout::Slot{}.successor(key.fingerprint(), 0, block_.size_class, address),
            contents_.value_bytes, contents_.ttl_ms == 0 && !contents_.tombstone};
  }
  void finish_copy(ClientCache::Fill& fill, const Attachment& attachment, const Key& key,
                   const SlotRef& ref, uint64_t subtable) const {
    fill.finish(key,
                {.value_bytes = contents_.value_bytes,
                 .version = header_.version,
                 .slot_offset = ref.offset,
                 .subtable = subtable,
                 .record = attachment.geometry.record_of(key.hash),
                 .codec = contents_.codec,
                 .hosted = ref.slot.hosted() && !fenced_ ? ref.slot : layout::Slot{}},
                value(), header_.value_crc);
  }
  // Only of a broken variant.
  void hand_early(ClientCache::Fill& fill, const Key& key) const {
    fill.hand_early(key, {.value_bytes = contents_.value_bytes, .version = header_.version},
                    value(), header_.value_crc);
  }

 private:
  size_t writes() const { return fenced_ ? 2 : 1; }
  const void* value() const { return assembled_ ? head_.data() + value_at_ : contents_.value; }
  void seal(uint32_t value_crc) {
    header_.value_crc = value_crc;
    layout::seal(header_);
    std::memcpy(head_.data(), &header_, sizeof header_);
  }

  const Block block_;
  const uint64_t value_at_;
  const bool assembled_;
  kv_op* pending_ = nullptr;
  const Scratch head_;
  const Contents& contents_;
  const bool fenced_;
  const layout::FenceExtension extension_;
  layout::ObjectHeader header_{};
  kv_op first_[2] = {};
  kv_op second_{};
};

}  // namespace kvstore
