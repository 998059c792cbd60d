// One client's attachment to one incarnation of one node: what its lanes share.
//
// It never changes nodes. A node that restarted is attached anew, and lanes that still hold the old
// attachment drop it at their next call.

#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "alloc/allocator.hpp"
#include "alloc/limbo.hpp"
#include "alloc/segments.hpp"
#include "base/variant.hpp"
#include "cache/coherence.hpp"
#include "fabric/port.hpp"
#include "index/directory.hpp"
#include "layout/layout.hpp"
#include "lock/space.hpp"
#include "store/address_cache.hpp"
#include "store/node_clock.hpp"
#include "store/reuse_model.hpp"

namespace kvstore {

// How lanes get connections. One implementation a fabric.
class Transport {
 public:
  virtual ~Transport() = default;
  // A new connection of a lane, or nullptr and one line in `error`. Blocks at most until the
  // deadline.
  virtual kv_connection* connect(uint32_t lane, uint64_t deadline_ns, std::string& error) = 0;
  virtual uint32_t fabric() const = 0;  // kv_fabric_kind
  // Whose atomics it uses: the region must belong to the same domain.
  virtual layout::Domain domain() const { return layout::Domain::kCpu; }
  // Lets transfers to and from this memory go without a copy, where that needs to be said. Nothing
  // may be under way there when it is taken back.
  virtual bool register_memory(void*, uint64_t, std::string&) { return true; }
  virtual void unregister_memory(void*) {}
  // The client's end of messages with the node's other clients, or nullptr and one line in `error`.
  virtual PortPtr open_port(std::string& error) {
    error = "this transport carries no messages";
    return nullptr;
  }
  // A descriptor that hangs up when the node has died, or -1.
  virtual int hangup_descriptor() const { return -1; }
  // Called when it did.
  virtual void node_died() {}
};

class Attachment {
 public:
  enum class State : uint32_t { kUp = 1, kDown = 2, kFenced = 3 };

  Attachment(std::unique_ptr<Transport> given, const layout::Superblock& block,
             const layout::Geometry& shape, uint32_t granted, uint32_t address_entries)
      : superblock(block),
        geometry(shape),
        registration(granted),
        transport(std::move(given)),
        directory(shape),
        segments(shape, granted),
        allocator(segments),
        addresses(address_entries),
        locks([this](std::string& error) { return transport->open_port(error); }, granted,
              block.incarnation, shape, block.membership_lease_ms * kMillisecond),
        coherence(granted, shape, block.cache_lease_ms * kMillisecond,
                  block.consistency == KV_REGULAR) {
    locks.set_handler(MessageKind::kCache, [this](const Message& message) {
      coherence.handle(message, [this](uint32_t to, const CacheMessage& answer) {
        locks.reply(to, MessageKind::kCache, answer.bytes());
      });
      expect_successor(message);
    });
  }

  const layout::Superblock superblock;
  const layout::Geometry geometry;
  const uint32_t registration;
  const std::unique_ptr<Transport> transport;

  Directory directory;
  SegmentTable segments;
  BlockAllocator allocator;
  Limbo limbo;
  AddressCache addresses;
  LockSpace locks;
  Coherence coherence;
  ReuseModel reuse;  // used and taught by the service thread
  std::atomic<bool> split_running{false};
  // A connection broke during a split: the directory lock may be ours while nobody is at it.
  std::atomic<bool> split_left{false};
  std::atomic<State> state{State::kUp};
  // Blocks of ours may have been left behind, by a client that died or by a lost connection.
  std::atomic<bool> scrub_wanted{false};
  // The size class that an operation waits for, 0: none does. The next heartbeat tells the node.
  std::atomic<unsigned> class_wanted{0};
  // Until then no lane evicts another whole extent: what the last one gave is still on its way.
  std::atomic<uint64_t> extent_eviction_pause_ns{0};
  // When memory was last refused for good.
  std::atomic<uint64_t> refused_ns{0};
  // No segment was free at the last attempt: puts evict ahead of need.
  std::atomic<bool> full{false};

  bool evicts() const { return superblock.eviction != KV_EVICTION_NONE; }
  uint64_t next_version() {
    return layout::make_version(registration, sequence_.fetch_add(1, std::memory_order_relaxed));
  }
  uint64_t client_line_offset() const {
    return superblock.client_lines_offset +
           registration % superblock.client_count_max * layout::kLineBytes;
  }
  uint64_t registry_line_offset() const {
    return superblock.registry_offset +
           registration % superblock.client_count_max * layout::kLineBytes;
  }

  // The node's clock as last seen, carried on by our own.
  void saw_clock(uint64_t node_ms, uint64_t now_ns) {
    clock_difference_ms_.store(int64_t(node_ms) - int64_t(now_ns / kMillisecond),
                               std::memory_order_relaxed);
    recency_clock_.saw(node_ms, monotonic_ns() / kMillisecond);
  }
  // Never less than what it said before: what has expired stays expired, although each heartbeat
  // estimates the difference of the clocks anew.
  uint64_t node_clock_ms() const {
    const uint64_t now_ms = uint64_t(int64_t(boottime_ns() / kMillisecond) +
                                     clock_difference_ms_.load(std::memory_order_relaxed));
    if (KV_VARIANT(clock_goes_back)) return now_ms;
    uint64_t told_ms = clock_told_ms_.load(std::memory_order_relaxed);
    while (told_ms < now_ms &&
           !clock_told_ms_.compare_exchange_weak(told_ms, now_ms, std::memory_order_relaxed)) {
    }
    return std::max(told_ms, now_ms);
  }

  // When the heartbeat was answered last.
  void heard(uint64_t now_ns) { heard_ns_.store(now_ns, std::memory_order_release); }
  uint64_t silent_ns() const {
    // Read before the clock, which never goes back.
    const uint64_t heard_ns = heard_ns_.load(std::memory_order_acquire);
    return monotonic_ns() - heard_ns;
  }

  // A writer of this host may have ended the copy of the key that is here.
  void drop_ended(const Key& key) {
    ClientCache* const cache = coherence.cache();
    Successor successor;
    if (cache != nullptr && cache->drop_ended(key, successor)) expect(key.hash, successor);
  }
  // The slot, if it is remembered as this word, is `shared` by now.
  void expect_shared(uint64_t hash, layout::Slot slot) {
    KnownAddress known;
    if (!addresses.find(hash, known) || !known.slot.leads_where(slot)) return;
    known.slot = slot.with_shared();
    addresses.remember(hash, known);
  }
  // And another client of this host may have handed over what came after it: then there is a copy
  // of that now.
  bool take_handed(const Key& key) {
    ClientCache* const cache = coherence.cache();
    Successor successor;
    if (cache == nullptr || !cache->take_handed(key, successor)) return false;
    // What there are copies of is guarded.
    if (successor.slot != 0) {
      const layout::Slot slot{successor.slot};
      if (!slot.guarded()) successor.slot = slot.with_shared().word;
      expect(key.hash, successor);
    }
    return true;
  }

  // Good enough for recency.
  uint64_t node_clock_at_ms(uint64_t monotonic_ns) const {
    return recency_clock_.at_ms(monotonic_ns / kMillisecond);
  }

 private:
  // Who ends the copies of a key says what its slot will hold: where the next read looks.
  void expect_successor(const Message& message) {
    CacheMessage told;
    if (!CacheMessage::read(message.content, told)) return;
    if (told.kind == CacheMessage::kInvalidate) expect(told.hash, {told.slot, told.value_bytes});
  }
  void expect(uint64_t hash, const Successor& successor) {
    KnownAddress known;
    if (!addresses.find(hash, known)) return;
    known.slot.word = successor.slot;
    known.value_bytes = successor.value_bytes;
    if (successor.slot == 0) {
      addresses.forget(hash);
    } else {
      addresses.remember(hash, known);
    }
  }

  std::atomic<uint64_t> sequence_{1};
  std::atomic<uint64_t> heard_ns_{monotonic_ns()};
  std::atomic<int64_t> clock_difference_ms_{0};
  NodeClock recency_clock_;
  mutable std::atomic<uint64_t> clock_told_ms_{0};
};

// The geometry that the superblock describes, if this client knows how to use it; otherwise the
// line that says why not.
bool read_superblock(const layout::Superblock& superblock, layout::Geometry& geometry,
                     std::string& error);

// Whether a transport of this domain may touch the region; otherwise why not.
bool same_domain(const layout::Superblock& superblock, layout::Domain domain, std::string& error);

// The lane number of the connection over which an attachment begins.
inline constexpr uint32_t kSetupLane = UINT32_MAX;

// Reads the superblock and the directory, and makes the attachment of `registration`. If that can't
// be, `error` says why not.
Task<Status> read_attachment(Remote& remote, std::unique_ptr<Transport> transport,
                             uint32_t registration, uint32_t address_entries,
                             std::shared_ptr<Attachment>& attachment, std::string& error);

}  // namespace kvstore
