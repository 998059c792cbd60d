#include "sim/memory_node.hpp"

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace kvstore::sim {
namespace {

// Segments beyond the first `left` belong to somebody who never gives them back.
void occupy(uint8_t* region, const layout::Geometry& geometry, uint64_t left) {
  using layout::SegmentEntry;
  for (uint64_t i = left; left > 0 && i < geometry.segment_count; ++i) {
    const SegmentEntry taken = SegmentEntry{}.successor(SegmentEntry::kLocks, 0, 1, 0);
    std::memcpy(region + geometry.entry_offset(i), &taken.word, 8);
  }
}

// Of the heap, which hands the memory of one world on to the next (sim/heap.hpp).
struct Freed {
  void operator()(uint8_t* memory) const { std::free(memory); }
};
using Memory = std::unique_ptr<uint8_t, Freed>;

// `bytes` are whole pages.
Memory zeroed(uint64_t bytes) {
  Memory memory(static_cast<uint8_t*>(std::aligned_alloc(layout::kPageBytes, bytes)));
  KV_ASSERT(memory != nullptr);
  std::memset(memory.get(), 0, bytes);
  return memory;
}

}  // namespace

class MemoryNode::Life {
 public:
  Life(Schedule& schedule, MemoryNode& node)
      : clock_(schedule, node.drift_per_million_, schedule.random().below(3600 * kSecond)) {
    const uint64_t bytes = layout::round_up(node.options_.region_bytes, layout::kPageBytes);
    KV_ASSERT(bytes >= layout::kRegionBytesMin);
    region_ = zeroed(bytes);
    const OnHost scope(clock_);
    const uint64_t incarnation = schedule.random().next() | 1;
    const uint32_t lease_ms = uint32_t(node.options_.lease_ns / kMillisecond);
    geometry_ = format_region(region_.get(), bytes,
                              {node.index_ + 1u, incarnation, node.options_.eviction,
                               node.options_.consistency, lease_ms});
    occupy(region_.get(), geometry_, node.options_.segments_max);
    fabric_ = std::make_unique<SimNode>(schedule, region_.get(), bytes, node.options_.timing);
    fabric_->set_name(node.name_);
    if (node.watched_ != nullptr) {
      watch_ = std::make_unique<BlockWatch>(schedule, region_.get(), geometry_, node.index_,
                                            *node.watched_);
      fabric_->set_watch(watch_.get());
    }
    registry_ = std::make_unique<Registry>(region_.get(), geometry_);
    start_upkeep(schedule, node);
  }

  ~Life() {
    if (!over_) end();
  }

  // From here on nothing of it happens; the region is gone.
  void end() {
    over_ = true;
    fabric_->kill();
    upkeep_driver_->stop();
    sweep_driver_->stop();
    janitor_->crash();
    {
      const OnHost scope(clock_);
      sweeper_->abandon();
      janitor_->client().close();
    }
    region_.reset();
  }

  Grant admit(uint32_t fabric_kind) {
    const OnHost scope(clock_);
    Token token;
    const uint32_t registration = registry_->admit("simulated", fabric_kind, token);
    if (registration == 0) return {};
    registry_->connected(registration, fabric_kind, 0, -1);
    return {registration, fabric_.get()};
  }

  // The token of an admission is good for one life of the node.
  bool has_granted(const Grant& grant) const { return grant.fabric == fabric_.get(); }
  void dismiss(uint32_t registration) {
    const OnHost scope(clock_);
    upkeep_->dismiss(registration);
  }

  bool deserted() { return registry_->clients_live() <= 1 && sweeper_->idle(); }

  SimNode& fabric() { return *fabric_; }
  const SimCounts& fabric_counts() const { return fabric_->counts(); }
  Registry& registry() { return *registry_; }
  uint8_t* region() const { return region_.get(); }
  const layout::Geometry& geometry() const { return geometry_; }
  uint64_t fenced() const { return fenced_; }
  const Sweeper& sweeper() const { return *sweeper_; }

 private:
  class UpkeepDriver final : public Driver {
   public:
    UpkeepDriver(Schedule& schedule, HostClock& clock, Upkeep& upkeep)
        : Driver(schedule, clock, "a node's upkeep"), upkeep_(upkeep) {}

   private:
    uint64_t step() override { return upkeep_.tick() + monotonic_ns(); }
    Upkeep& upkeep_;
  };

  class SweepDriver final : public Driver {
   public:
    SweepDriver(Schedule& schedule, HostClock& clock, Life& life)
        : Driver(schedule, clock, "a node's sweep"), life_(life) {}

   private:
    uint64_t step() override {
      life_.janitor_->notice();
      return life_.sweeper_->step(false);
    }
    Life& life_;
  };

  void start_upkeep(Schedule& schedule, MemoryNode& node) {
    // The node's own client is the same one however often it asks: it can't be lost.
    const auto admit_own = [this, own = Grant{}]() mutable {
      if (own.registration == 0) own = admit(KV_FABRIC_LOCAL);
      return own;
    };
    const std::vector<Home> homes{{node.name_, admit_own}};
    janitor_ = std::make_unique<DrivenClient>(schedule, clock_, homes, 1);
    Status status = Status::kOk;
    Lane* lane = janitor_->client().acquire_lane(0, status);
    KV_ASSERT(lane != nullptr);
    sweeper_ = std::make_unique<Sweeper>(*registry_, region_.get(), *lane);
    const auto cut_off = [this](uint32_t registration) { fabric_->fence(registration); };
    const auto fenced = [this, &schedule, &node](uint32_t registration) {
      ++fenced_;
      schedule.tell(kEveryKey, [&] {
        return node.name_ + " fences the client of line " + std::to_string(registration);
      });
      sweeper_->add(registration);
      sweep_driver_->poke();
    };
    const auto lost = [this] {
      sweeper_->add_ownerless();
      sweep_driver_->poke();
    };
    upkeep_ = std::make_unique<Upkeep>(*registry_, Upkeep::Rules{node.options_.lease_ns, 0},
                                       cut_off, fenced, lost);
    upkeep_driver_ = std::make_unique<UpkeepDriver>(schedule, clock_, *upkeep_);
    sweep_driver_ = std::make_unique<SweepDriver>(schedule, clock_, *this);
    janitor_->set_listener(lane->index(), sweep_driver_.get());
    janitor_->order_ready(*lane);
    upkeep_driver_->poke();
  }

  HostClock clock_;
  Memory region_;
  layout::Geometry geometry_;
  std::unique_ptr<BlockWatch> watch_;
  std::unique_ptr<SimNode> fabric_;
  std::unique_ptr<Registry> registry_;
  std::unique_ptr<DrivenClient> janitor_;
  std::unique_ptr<Sweeper> sweeper_;
  std::unique_ptr<Upkeep> upkeep_;
  std::unique_ptr<UpkeepDriver> upkeep_driver_;
  std::unique_ptr<SweepDriver> sweep_driver_;
  uint64_t fenced_ = 0;
  bool over_ = false;
};

MemoryNode::MemoryNode(Schedule& schedule, uint32_t index, const MemoryNodeOptions& options,
                       int64_t drift_per_million, BlockUsers* watched)
    : schedule_(schedule),
      index_(index),
      name_("node " + std::to_string(index)),
      options_(options),
      drift_per_million_(drift_per_million),
      watched_(watched) {
  restart();
}

MemoryNode::~MemoryNode() = default;

Grant MemoryNode::admit() {
  return up() ? life_->admit(KV_FABRIC_TCP) : Grant{};
}

void MemoryNode::dismiss(const Grant& grant) {
  if (up() && life_->has_granted(grant)) life_->dismiss(grant.registration);
}

void MemoryNode::lose_power() {
  if (!up()) return;
  life_->end();
  past_.push_back(std::move(life_));
}

void MemoryNode::restart() {
  KV_ASSERT(!up());
  life_ = std::make_unique<Life>(schedule_, *this);
}

SimNode& MemoryNode::fabric() {
  return life_->fabric();
}
Registry& MemoryNode::registry() {
  return life_->registry();
}
uint8_t* MemoryNode::region() const {
  return life_->region();
}
const layout::Geometry& MemoryNode::geometry() const {
  return life_->geometry();
}
bool MemoryNode::deserted() {
  return life_->deserted();
}

bool MemoryNode::is_swept() const {
  return up() && life_->sweeper().idle();
}

bool MemoryNode::is_live(uint32_t registration) {
  Registered found;
  return up() && life_->registry().find(registration, found) &&
         found.state == layout::ClientState::kLive;
}

MemoryNode::Counts MemoryNode::counts() const {
  Counts sum;
  const auto add = [&](const Life& life) {
    const SimCounts& fabric = life.fabric_counts();
    sum.fabric.batches += fabric.batches;
    sum.fabric.operations += fabric.operations;
    sum.fabric.torn += fabric.torn;
    sum.fabric.breaks += fabric.breaks;
    sum.fabric.orphans += fabric.orphans;
    sum.fenced += life.fenced();
    sum.swept += life.sweeper().clients_swept();
    sum.blocks_swept += life.sweeper().blocks_freed();
  };
  for (const auto& life : past_) add(*life);
  if (life_) add(*life_);
  sum.restarts = past_.size();
  return sum;
}

}  // namespace kvstore::sim
