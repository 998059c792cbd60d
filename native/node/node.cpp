#include "node/node.hpp"

#include <sys/random.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <future>

#include "base/assert.hpp"
#include "base/time_scale.hpp"

namespace kvstore {
namespace {

constexpr uint32_t kLeaseMsDefault = 5000;
constexpr uint64_t kJanitorAttachNs = 10 * kSecond;
constexpr uint64_t kJanitorPauseNs = kSecond;
constexpr char kNotAdmitted[] = "the admission is not valid (any more): attach again";
constexpr char kDraining[] = "the node is draining and takes no new clients";

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

}  // namespace

std::unique_ptr<Node> Node::open(const kv_node_config& config, std::string& error) {
  std::unique_ptr<Node> node(new Node());
  if (!node->start(config, error)) return nullptr;
  return node;
}

bool Node::start(const kv_node_config& config, std::string& error) {
  const bool verbs = config.verbs_device != nullptr;
  if (verbs && (config.shm_name != nullptr || config.tcp_host != nullptr)) {
    error =
        "atomics of an RDMA device and of a processor destroy each other, so a node serves "
        "either verbs or shm and tcp";
    return false;
  }
  region_ = Region::create(config.capacity_bytes, config.hugepages != 0, error);
  if (!region_) return false;
  node_id_ = random_word();
  incarnation_ = random_word();
  eviction_ = config.eviction;
  consistency_ = config.consistency;
  const uint32_t lease_ms =
      config.membership_lease_ms == 0 ? kLeaseMsDefault * time_scale() : config.membership_lease_ms;
  lease_ns_ = lease_ms * kMillisecond;
  cluster_id_ = text(config.cluster_id);
  members_ = text(config.members);
  domain_ = verbs ? layout::Domain::kVerbs : layout::Domain::kCpu;
  geometry_ = format_region(region_->data(), region_->bytes(),
                            {node_id_, incarnation_, eviction_, consistency_, lease_ms, domain_});
  dead_ = std::make_shared<std::atomic<uint32_t>>(0);
  handle_ = std::make_shared<Handle>();
  handle_->node = this;
  registry_ = std::make_unique<Registry>(region_->data(), geometry_);

  janitor_ = std::make_unique<Client>(1, 1, std::vector<std::string>{"self"});
  if (!open_verbs(config, error) || !attach_janitor(kJanitorAttachNs, error)) return false;
  start_upkeep(config.fence_after_ms * kMillisecond);
  if (!open_tcp(config, error)) return false;
  // The liveness mutex is held before anybody can map the region.
  std::promise<void> held;
  maintenance_ = std::thread([this, &held] {
    auto liveness = std::make_unique<Liveness>(region_->data());
    held.set_value();
    maintain(std::move(liveness));
  });
  held.get_future().wait();
  if (!open_shm(config, error)) return false;
  sweeping_ = std::thread([this] { sweep_dead(); });
  if (config.prefault != 0 && !verbs) prefault_ = std::make_unique<Prefault>(region_);
  return true;
}

bool Node::open_verbs(const kv_node_config& config, std::string& error) {
  if (config.verbs_device == nullptr) return true;
  verbs_ = VerbsDoor::open(config.verbs_device, text(config.verbs_address), *region_, error);
  return verbs_ != nullptr;
}

// The node changes words of its region as a client does, with the atomics of the region's domain.
bool Node::attach_janitor(uint64_t timeout_ns, std::string& error) {
  if (successor_.load() == 0) {
    Token token;
    const uint32_t admitted = registry_->admit("this process", KV_FABRIC_LOCAL, token);
    if (admitted == 0) {
      error = "the node has no room for its own client";
      return false;
    }
    registry_->connected(admitted, KV_FABRIC_LOCAL, int(::getpid()), -1);
    ++janitors_;
    successor_.store(admitted);
  }
  const uint32_t registration = successor_.load();
  if (!connect_janitor(registration, timeout_ns, error)) return false;
  const uint32_t before = janitor_registration_.exchange(registration);
  successor_.store(0);
  dismiss(before);
  return true;
}

bool Node::connect_janitor(uint32_t registration, uint64_t timeout_ns, std::string& error) {
  if (!verbs_) {
    const LocalRegion local{region_->data(), region_->bytes(), dead_, region_, {}};
    return attach_local(*janitor_, 0, local, registration, error) == Status::kOk;
  }
  VerbsTarget target;
  target.node = verbs_->addresses();
  target.device = verbs_->devices();
  target.registration = registration;
  target.exchange = [this, registration](uint32_t lane, const kv_verbs_endpoint& mine, uint64_t,
                                         kv_verbs_grant& grant, std::string& line) {
    const bool connected = verbs_->connect(registration, lane, mine, grant, line);
    return connected ? Status::kOk : Status::kRefused;
  };
  return attach_verbs(*janitor_, 0, target, monotonic_ns() + patient(timeout_ns), error) ==
         Status::kOk;
}

bool Node::open_tcp(const kv_node_config& config, std::string& error) {
  if (config.tcp_host == nullptr) return true;
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
  return agent_ != nullptr;
}

bool Node::open_shm(const kv_node_config& config, std::string& error) {
  shm_name_ = text(config.shm_name);
  if (shm_name_.empty()) return true;
  const auto gone = [this](uint32_t r, bool left) {
    const std::lock_guard lock(mutex_);
    hung_up_.push_back({r, left});
    changed_.notify_all();
  };
  door_ =
      ShmDoor::open(shm_name_, text(config.secret), node_id_, *region_, *registry_, gone, error);
  return door_ != nullptr;
}

void Node::start_upkeep(uint64_t fence_after_ns) {
  Status status = Status::kOk;
  // The client's service looks at idle lanes, and holds each for a moment.
  Lane* lane = janitor_->acquire_lane(kJanitorAttachNs, status);
  KV_ASSERT(lane != nullptr);
  sweeper_ = std::make_unique<Sweeper>(*registry_, region_->data(), *lane);
  const auto cut_off = [this](uint32_t registration) {
    if (agent_) agent_->fence(registration);
    if (verbs_) verbs_->fence(registration);
  };
  const auto wake_sweeper = [this] {
    const std::lock_guard lock(mutex_);
    sweep_wanted_ = true;
    changed_.notify_all();
  };
  const auto fenced = [this, wake_sweeper](uint32_t registration) {
    sweeper_->add(registration);
    wake_sweeper();
  };
  const auto lost = [this, wake_sweeper] {
    sweeper_->add_ownerless();
    wake_sweeper();
  };
  const Upkeep::Rules rules{lease_ns_, fence_after_ns};
  upkeep_ = std::make_unique<Upkeep>(*registry_, rules, cut_off, fenced, lost);
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
  if (sweeping_.joinable()) sweeping_.join();
  // Clients of this process hold the region's address: they must see it dead before it goes.
  if (dead_) dead_->store(1, std::memory_order_seq_cst);
  door_.reset();
  agent_.reset();
  sweeper_.reset();
  janitor_.reset();
  verbs_.reset();
}

void Node::describe(kv_node_description& description) {
  description = kv_node_description{};
  description.node_id = node_id_;
  description.incarnation = incarnation_;
  description.region_bytes = region_->bytes();
  description.layout_version = layout::kLayoutVersion;
  description.domain = uint32_t(domain_);
  description.tcp_port = agent_ ? agent_->port() : 0;
  description.eviction = eviction_;
  description.consistency = consistency_;
  description.membership_lease_ms = uint32_t(lease_ns_ / kMillisecond);
  copy_text(description.shm_name, sizeof description.shm_name, shm_name_);
  if (verbs_) {
    copy_text(description.verbs_device, sizeof description.verbs_device, verbs_->devices());
    for (const RdmaAddress& address : verbs_->addresses()) {
      std::copy(address.begin(), address.end(), description.verbs_gids[description.verbs_rails++]);
    }
  }
  const std::lock_guard lock(members_mutex_);
  copy_text(description.cluster_id, sizeof description.cluster_id, cluster_id_);
  copy_text(description.members, sizeof description.members, members_);
}

Status Node::admit(const std::string& peer, kv_admission& admission, std::string& error) {
  if (draining_.load()) {
    error = kDraining;
    return Status::kRefused;
  }
  // It could not connect, and would come for another registration until none is left.
  if (verbs_ && !verbs_->any_up()) {
    error = "no RDMA port of the node is up: it takes new clients when one is again";
    return Status::kRefused;
  }
  Token token;
  admission.registration = registry_->admit(peer, verbs_ ? KV_FABRIC_VERBS : KV_FABRIC_TCP, token);
  if (admission.registration == 0) {
    error = "the node has no room for more clients";
    return Status::kRefused;
  }
  std::copy(token.begin(), token.end(), admission.token);
  if (!draining_.load()) return Status::kOk;
  // It began meanwhile, and may have passed this client by.
  dismiss(admission.registration);
  error = kDraining;
  return Status::kRefused;
}

Status Node::admit_local(uint32_t& registration, LocalRegion& region, std::string& error) {
  if (verbs_) {
    error =
        "the node's region belongs to the atomic domain of its RDMA device: clients of its own "
        "process attach over verbs too";
    return Status::kRefused;
  }
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

Status Node::connect_verbs(const kv_admission& admission, uint32_t lane,
                           const kv_verbs_endpoint& client, kv_verbs_grant& grant,
                           std::string& error) {
  Token token;
  std::copy_n(admission.token, token.size(), token.begin());
  if (!verbs_) {
    error = "the node has no RDMA device";
    return Status::kRefused;
  }
  if (!registry_->authenticate(admission.registration, token)) {
    error = kNotAdmitted;
    return Status::kRefused;
  }
  if (!verbs_->connect(admission.registration, lane, client, grant, error)) return Status::kRefused;
  // Only now: the end of one that was never connected makes nobody look for what it left behind.
  if (registry_->connected(admission.registration, KV_FABRIC_VERBS, 0, -1)) return Status::kOk;
  verbs_->fence(admission.registration);
  grant = {};
  error = kNotAdmitted;
  return Status::kRefused;
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

uint32_t Node::ports(kv_port_record* records, uint32_t capacity) {
  if (!verbs_) return 0;
  const std::vector<kv_port_record> all = verbs_->ports();
  const size_t count = std::min<size_t>(all.size(), capacity);
  std::copy_n(all.begin(), count, records);
  return uint32_t(count);
}

void Node::drain() {
  draining_.store(true);
  if (door_) door_->drain();
}

void Node::revoke() {
  drain();
  // Clients that map the region look at the mutex that the maintenance thread holds.
  revoked_.store(true);
  {
    const std::lock_guard lock(mutex_);
    changed_.notify_all();
  }
  if (door_) door_->turn_out();
  upkeep_->revoke();
  cut_off_.store(true);
}

// ---- Upkeep ---------------------------------------------------------------------------------

Status Node::dismiss(const kv_admission& admission) {
  Token token;
  std::copy_n(admission.token, token.size(), token.begin());
  const bool known = registry_->authenticate(admission.registration, token);
  return known ? dismiss(admission.registration) : Status::kAbsent;
}

Status Node::dismiss(uint32_t registration) {
  return upkeep_ ? upkeep_->dismiss(registration) : Status::kAbsent;
}

void Node::maintain(std::unique_ptr<Liveness> liveness) {
  while (!stopping_.load()) {
    if (revoked_.load()) liveness.reset();
    const uint64_t period_ns = upkeep_->tick();
    if (verbs_) look_after_janitor();
    std::deque<Gone> gone;
    {
      std::unique_lock lock(mutex_);
      const auto woken = [&] {
        return stopping_.load() || !hung_up_.empty() || (revoked_.load() && liveness);
      };
      changed_.wait_for(lock, std::chrono::nanoseconds(period_ns), woken);
      gone.swap(hung_up_);
    }
    for (const Gone& guest : gone) upkeep_->hung_up(guest.registration, guest.left);
  }
}

// Without its own client the node reclaims and sweeps nothing. What that one held when its device
// failed is swept as any client's, by its successor.
void Node::look_after_janitor() {
  const std::shared_ptr<Attachment> current = janitor_->attachment(0);
  if (current->state.load() == Attachment::State::kUp || !verbs_->any_up()) return;
  if (monotonic_ns() - janitor_tried_ns_ < patient(kJanitorPauseNs)) return;
  std::string ignored;
  attach_janitor(kJanitorPauseNs, ignored);
  janitor_tried_ns_ = monotonic_ns();
}

void Node::sweep_dead() {
  while (!stopping_.load()) {
    const uint64_t again_ns = sweeper_->step(true);
    std::unique_lock lock(mutex_);
    const auto woken = [&] { return stopping_.load() || sweep_wanted_; };
    if (again_ns == UINT64_MAX) {
      changed_.wait(lock, woken);
    } else {
      const uint64_t now_ns = monotonic_ns();
      const uint64_t wait_ns = again_ns > now_ns ? again_ns - now_ns : 0;
      changed_.wait_for(lock, std::chrono::nanoseconds(wait_ns), woken);
    }
    sweep_wanted_ = false;
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

void Node::count_ports(kv_node_stats& stats) {
  for (const kv_port_record& port : verbs_->ports()) {
    ++(port.state == KV_PORT_UP ? stats.verbs_ports_up : stats.verbs_ports_down);
    stats.verbs_port_failures += port.failures;
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
  // The janitor, and whoever is to succeed it, are no clients of anybody's.
  stats.clients_live -= std::min<uint64_t>(stats.clients_live, successor_.load() != 0 ? 2 : 1);
  stats.clients_total -= janitors_.load();
  stats.draining = cut_off_.load() ? 2 : draining_.load() ? 1 : 0;
  if (verbs_) count_ports(stats);
  stats.blocks_swept = sweeper_->blocks_freed();
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
