#include "node/node.hpp"

#include <poll.h>
#include <signal.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <future>

#include "base/assert.hpp"
#include "node/liveness.hpp"
#include "node/sweep.hpp"

namespace kvstore {
namespace {

constexpr uint32_t kLeaseMsDefault = 5000;
constexpr uint64_t kIdleTickNs = 20 * kMillisecond;
constexpr uint64_t kBusyTickNs = 5 * kMillisecond;
constexpr uint64_t kPressedTickNs = kMillisecond;
constexpr uint64_t kSweepNs = 60 * kSecond;
constexpr unsigned kSweepTries = 8;

uint64_t random_word() {
  uint64_t word = 0;
  KV_ASSERT(::getrandom(&word, sizeof word, 0) == sizeof word);
  return word | 1;
}

std::string text(const char* given) {
  return given == nullptr ? "" : given;
}

void copy_text(char* destination, size_t bytes, const std::string& source) {
  std::strncpy(destination, source.c_str(), bytes - 1);
  destination[bytes - 1] = '\0';
}

bool exited(int process_descriptor) {
  pollfd descriptor{process_descriptor, POLLIN, 0};
  return ::poll(&descriptor, 1, 0) > 0;
}

// Of a process that has begun to: its sockets hang up a moment before it is gone.
bool exits(int process_descriptor) {
  constexpr int kExitMs = 200;
  pollfd descriptor{process_descriptor, POLLIN, 0};
  return ::poll(&descriptor, 1, kExitMs) > 0;
}

}  // namespace

std::unique_ptr<Node> Node::open(const kv_node_config& config, std::string& error) {
  std::unique_ptr<Node> node(new Node());
  if (!node->start(config, error)) return nullptr;
  return node;
}

bool Node::start(const kv_node_config& config, std::string& error) {
  region_ = Region::create(config.capacity_bytes, config.hugepages != 0, error);
  if (!region_) return false;
  node_id_ = random_word();
  incarnation_ = random_word();
  eviction_ = config.eviction;
  consistency_ = config.consistency;
  const uint32_t lease_ms =
      config.membership_lease_ms == 0 ? kLeaseMsDefault : config.membership_lease_ms;
  lease_ns_ = lease_ms * kMillisecond;
  fence_after_ns_ = config.fence_after_ms * kMillisecond;
  cluster_id_ = text(config.cluster_id);
  members_ = text(config.members);
  geometry_ = format_region(region_->data(), region_->bytes(),
                            {node_id_, incarnation_, eviction_, consistency_, lease_ms});
  dead_ = std::make_shared<std::atomic<uint32_t>>(0);
  handle_ = std::make_shared<Handle>();
  handle_->node = this;
  registry_ = std::make_unique<Registry>(region_->data(), geometry_);

  janitor_ = std::make_unique<Client>(1, 1, std::vector<std::string>{"self"});
  LocalRegion local;
  if (admit_local(janitor_registration_, local, error) != Status::kOk ||
      attach_local(*janitor_, 0, local, janitor_registration_, error) != Status::kOk) {
    return false;
  }
  if (config.tcp_host != nullptr) {
    TcpAgentConfig agent;
    agent.listen_host = config.tcp_host;
    agent.listen_port = uint16_t(config.tcp_port);
    agent.region = region_->data();
    agent.region_bytes = region_->bytes();
    agent.incarnation = incarnation_;
    agent.threads = std::max(config.tcp_threads, 1u);
    agent.authenticate = [this](uint32_t r, const std::array<uint8_t, 16>& token) {
      return registry_->authenticate(r, token) && registry_->connected(r, KV_FABRIC_TCP, 0, -1);
    };
    agent.last_connection_closed = [this](uint32_t r) { registry_->disconnected(r); };
    agent_ = TcpAgent::start(std::move(agent), error);
    if (!agent_) return false;
  }
  // The liveness mutex is held before anybody can map the region.
  std::promise<void> held;
  maintenance_ = std::thread([this, &held] {
    const Liveness liveness(region_->data());
    held.set_value();
    maintain();
  });
  held.get_future().wait();
  shm_name_ = text(config.shm_name);
  if (!shm_name_.empty()) {
    const auto gone = [this](uint32_t r, bool left) {
      const std::lock_guard lock(mutex_);
      to_fence_.push_back({r, left});
      changed_.notify_all();
    };
    door_ =
        ShmDoor::open(shm_name_, text(config.secret), node_id_, *region_, *registry_, gone, error);
    if (!door_) return false;
  }
  sweeper_ = std::thread([this] { sweep_dead(); });
  return true;
}

Node::~Node() {
  if (handle_) {
    const std::lock_guard lock(handle_->mutex);
    handle_->node = nullptr;
  }
  stopping_.store(true);
  {
    const std::lock_guard lock(mutex_);
    changed_.notify_all();
  }
  if (maintenance_.joinable()) maintenance_.join();
  if (sweeper_.joinable()) sweeper_.join();
  // Clients of this process hold the region's address: they must see it dead before it goes.
  if (dead_) dead_->store(1, std::memory_order_seq_cst);
  door_.reset();
  agent_.reset();
  janitor_.reset();
}

void Node::describe(kv_node_description& description) {
  description = kv_node_description{};
  description.node_id = node_id_;
  description.incarnation = incarnation_;
  description.region_bytes = region_->bytes();
  description.layout_version = layout::kLayoutVersion;
  description.domain = uint32_t(layout::Domain::kCpu);
  description.tcp_port = agent_ ? agent_->port() : 0;
  description.eviction = eviction_;
  description.consistency = consistency_;
  description.membership_lease_ms = uint32_t(lease_ns_ / kMillisecond);
  copy_text(description.shm_name, sizeof description.shm_name, shm_name_);
  const std::lock_guard lock(members_mutex_);
  copy_text(description.cluster_id, sizeof description.cluster_id, cluster_id_);
  copy_text(description.members, sizeof description.members, members_);
}

Status Node::admit(const std::string& peer, kv_admission& admission, std::string& error) {
  if (draining_.load()) {
    error = "the node is draining and takes no new clients";
    return Status::kRefused;
  }
  Token token;
  admission.registration = registry_->admit(peer, KV_FABRIC_TCP, token);
  if (admission.registration == 0) {
    error = "the node has no room for more clients";
    return Status::kRefused;
  }
  std::copy(token.begin(), token.end(), admission.token);
  return Status::kOk;
}

Status Node::admit_local(uint32_t& registration, LocalRegion& region, std::string& error) {
  Token token;
  registration = registry_->admit("this process", KV_FABRIC_LOCAL, token);
  if (registration == 0) {
    error = "the node has no room for more clients";
    return Status::kRefused;
  }
  registry_->connected(registration, KV_FABRIC_LOCAL, int(::getpid()), -1);
  const auto detached = [handle = handle_, granted = registration] {
    const std::lock_guard lock(handle->mutex);
    if (handle->node != nullptr) handle->node->dismiss(granted);
  };
  region = LocalRegion{region_->data(), region_->bytes(), dead_, region_, detached};
  return Status::kOk;
}

Status Node::set_members(const std::string& cluster_id, const std::string& members,
                         std::string& error) {
  const std::lock_guard lock(members_mutex_);
  if (cluster_id_.empty()) cluster_id_ = cluster_id;
  if (members_.empty()) members_ = members;
  if ((cluster_id.empty() || cluster_id == cluster_id_) &&
      (members.empty() || members == members_)) {
    return Status::kOk;
  }
  error = "the node belongs to cluster '" + cluster_id_ + "' with other members";
  return Status::kRefused;
}

void Node::drain() {
  draining_.store(true);
  if (door_) door_->drain();
}

// ---- Upkeep ---------------------------------------------------------------------------------

void Node::fence(uint32_t registration, bool over_tcp, bool left) {
  if (over_tcp && agent_) agent_->fence(registration);
  if (!registry_->mark_fenced(registration, left)) return;
  const std::lock_guard lock(mutex_);
  to_sweep_.push_back(registration);
  changed_.notify_all();
}

Status Node::dismiss(uint32_t registration) {
  Registered found;
  if (!registry_->find(registration, found) || found.state != layout::ClientState::kLive) {
    return Status::kAbsent;
  }
  // A client with a mapping can't be cut off from outside: it is gone when its socket hangs up.
  if (found.fabric == KV_FABRIC_SHM && found.connected) return Status::kOk;
  fence(registration, true, true);
  return Status::kOk;
}

// A socket may be closed by mistake while the process goes on writing through its mapping: without
// a farewell only the end of the process counts, which its silence makes us look for again.
void Node::part_with(const Gone& guest) {
  Registered found;
  if (!registry_->find(guest.registration, found)) return;
  const bool over = guest.left || found.process_descriptor < 0 || exits(found.process_descriptor);
  if (over) {
    fence(guest.registration, false, guest.left);
  } else {
    registry_->set_stalled(guest.registration, true);
  }
}

void Node::judge_silent(uint32_t registration) {
  Registered found;
  if (!registry_->find(registration, found)) return;
  const bool maps = found.fabric == KV_FABRIC_SHM && found.process_descriptor >= 0;
  if (found.fabric == KV_FABRIC_TCP || (!found.connected && !maps)) {
    fence(registration, true, false);
    return;
  }
  if (found.fabric == KV_FABRIC_LOCAL) return;  // a thread of this process, only slow
  if (found.process_descriptor >= 0 && exited(found.process_descriptor)) {
    fence(registration, false, false);
    return;
  }
  // A stopped process still maps the region: nothing of it may be reused until it is dead.
  registry_->set_stalled(registration, true);
  const uint64_t silent_ns = boottime_ns() - found.heard_ns;
  if (fence_after_ns_ > 0 && silent_ns > fence_after_ns_ && found.process_descriptor >= 0) {
    ::syscall(SYS_pidfd_send_signal, found.process_descriptor, SIGKILL, nullptr, 0);
  }
}

void Node::maintain() {
  while (!stopping_.load()) {
    const Registry::Tick tick = registry_->tick(lease_ns_);
    for (const uint32_t registration : tick.silent) judge_silent(registration);
    const uint64_t period_ns = tick.pressure != 0 ? kPressedTickNs
                               : tick.busy        ? kBusyTickNs
                                                  : kIdleTickNs;
    std::deque<Gone> gone;
    {
      std::unique_lock lock(mutex_);
      const auto woken = [&] { return stopping_.load() || !to_fence_.empty(); };
      changed_.wait_for(lock, std::chrono::nanoseconds(period_ns), woken);
      gone.swap(to_fence_);
    }
    for (const Gone& guest : gone) part_with(guest);
  }
}

void Node::finish_splits(Lane& lane) {
  std::deque<uint32_t> waiting;
  {
    const std::lock_guard lock(mutex_);
    waiting = to_sweep_;
  }
  for (const uint32_t registration : waiting) {
    lane.run_task([&] { return finish_split_of(lane.channel(0), registration); },
                  monotonic_ns() + kSweepNs);
  }
}

bool Node::wait_rounds(Lane& lane, unsigned rounds) {
  const layout::NodeLine& line =
      *reinterpret_cast<layout::NodeLine*>(region_->data() + layout::kNodeLineOffset);
  for (unsigned round = 0; round < rounds; ++round) {
    const uint64_t until = __atomic_load_n(&line.global_epoch, __ATOMIC_ACQUIRE) + 1;
    while (__atomic_load_n(&line.safe_epoch, __ATOMIC_ACQUIRE) <= until) {
      if (stopping_.load()) return false;
      finish_splits(lane);
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
  }
  return true;
}

bool Node::try_sweep(Lane& lane, Sweep& sweep) {
  Channel& channel = lane.channel(0);
  if (channel.ready(monotonic_ns() + kSecond) != Status::kOk) return false;
  // In slices: a long activity of the janitor's would hold back the epoch of the whole node.
  const auto run = [&](Task<Status> (Sweep::*step)(Channel&)) {
    Status status = Status::kPending;
    while (status == Status::kPending && !stopping_.load()) {
      status = lane.run_task([&] { return (sweep.*step)(channel); }, monotonic_ns() + kSweepNs);
    }
    return status == Status::kOk;
  };
  return run(&Sweep::begin) && run(&Sweep::look) && wait_rounds(lane, 4) && run(&Sweep::give_back);
}

void Node::sweep(const std::vector<uint32_t>& registrations) {
  Status status = Status::kOk;
  Lane* lane = janitor_->acquire_lane(kSecond, status);
  if (lane == nullptr) return;
  Sweep sweep(registrations);
  bool swept = false;
  for (unsigned attempt = 0; attempt < kSweepTries && !swept && !stopping_.load(); ++attempt) {
    swept = try_sweep(*lane, sweep);
  }
  blocks_swept_.fetch_add(sweep.blocks_freed());
  janitor_->release_lane(*lane);
  if (!swept) return;
  for (const uint32_t registration : registrations) registry_->mark_swept(registration);
}

void Node::sweep_dead() {
  while (!stopping_.load()) {
    std::vector<uint32_t> registrations;
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return stopping_.load() || !to_sweep_.empty(); });
      if (stopping_.load()) return;
      registrations.assign(to_sweep_.begin(), to_sweep_.end());
      to_sweep_.clear();
    }
    sweep(registrations);
  }
}

// ---- Statistics -----------------------------------------------------------------------------

void Node::count_memory(kv_node_stats& stats) {
  using layout::SegmentEntry;
  const uint8_t* region = region_->data();
  const uint64_t* entries =
      reinterpret_cast<const uint64_t*>(region + geometry_.segment_table_offset);
  for (uint64_t i = 0; i < geometry_.segment_count; ++i) {
    const SegmentEntry entry{__atomic_load_n(&entries[i], __ATOMIC_RELAXED)};
    switch (entry.kind()) {
      case SegmentEntry::kFree:
        ++stats.segments_free;
        break;
      case SegmentEntry::kObjects:
      case SegmentEntry::kAdoptable:
        stats.object_bytes += entry.run() * geometry_.segment_bytes;
        break;
      case SegmentEntry::kSubtable: {
        ++stats.subtables;
        stats.index_bytes += entry.run() * geometry_.segment_bytes;
        const uint8_t* subtable = region + geometry_.segment_offset(i);
        const unsigned buckets = layout::kGroupsPerSubtable * layout::kBucketsPerGroup;
        for (unsigned b = 0; b < buckets; ++b) {
          const uint64_t* words =
              reinterpret_cast<const uint64_t*>(subtable + b * layout::kBucketBytes);
          for (unsigned s = 1; s <= layout::kSlotsPerBucket; ++s) {
            const layout::Slot slot{__atomic_load_n(&words[s], __ATOMIC_RELAXED)};
            stats.keys += slot.readable();
          }
        }
        break;
      }
      default:
        break;
    }
  }
}

void Node::read_stats(kv_node_stats& stats) {
  stats = kv_node_stats{};
  stats.capacity_bytes = region_->bytes();
  stats.segment_bytes = geometry_.segment_bytes;
  stats.segments_total = geometry_.segment_count;
  count_memory(stats);
  stats.global_depth = __atomic_load_n(
      reinterpret_cast<const uint64_t*>(region_->data() + layout::kGlobalDepthOffset),
      __ATOMIC_RELAXED);
  registry_->read_stats(stats);
  stats.clients_live -= stats.clients_live > 0 ? 1 : 0;  // the janitor is no client of anybody's
  stats.clients_total -= 1;
  stats.blocks_swept = blocks_swept_.load();
  if (door_) stats.shm_refused = door_->refused();
  if (!agent_) return;
  const TcpAgentStats tcp = agent_->stats();
  stats.tcp_connections_open = tcp.connections_open;
  stats.tcp_batches = tcp.batches;
  stats.tcp_reads = tcp.reads;
  stats.tcp_writes = tcp.writes;
  stats.tcp_atomics = tcp.atomics;
  stats.tcp_bytes_in = tcp.bytes_in;
  stats.tcp_bytes_out = tcp.bytes_out;
  stats.tcp_refused_frames = tcp.refused_frames;
  stats.tcp_refused_bounds = tcp.refused_bounds;
  stats.tcp_refused_tokens = tcp.refused_tokens;
}

}  // namespace kvstore
