#include "node/registry.hpp"

#include <sys/random.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "base/assert.hpp"
#include "base/variant.hpp"
#include "coro/clock.hpp"

namespace kvstore {

using layout::ClientState;

namespace {

uint64_t load(const uint64_t& word) {
  return __atomic_load_n(&word, __ATOMIC_ACQUIRE);
}
void store(uint64_t& word, uint64_t value) {
  __atomic_store_n(&word, value, __ATOMIC_RELEASE);
}

Token random_token() {
  Token token;
  size_t filled = 0;
  while (filled < token.size()) {
    const ssize_t got = ::getrandom(token.data() + filled, token.size() - filled, 0);
    KV_ASSERT(got > 0);
    filled += size_t(got);
  }
  return token;
}

// Lines that only clients of the node's own process get: its own client, and the successor of that.
constexpr uint32_t kOwnLines = 2;
constexpr uint32_t kRegistrationsMax = (1u << layout::SegmentEntry::kOwnerBits) - 1;

}  // namespace

Registry::Registry(uint8_t* region, const layout::Geometry& geometry)
    : region_(region), geometry_(geometry), began_ns_(boottime_ns()), lines_(layout::kClientsMax) {}

Registry::~Registry() {
  for (const Registered& line : lines_) {
    if (line.process_descriptor >= 0) ::close(line.process_descriptor);
  }
}

layout::NodeLine& Registry::node_line() const {
  return *reinterpret_cast<layout::NodeLine*>(region_ + layout::kNodeLineOffset);
}

layout::ClientLine& Registry::client_line(uint32_t registration) const {
  return reinterpret_cast<layout::ClientLine*>(
      region_ + layout::kClientLinesOffset)[registration % layout::kClientsMax];
}

layout::RegistryLine& Registry::registry_line(uint32_t registration) const {
  return reinterpret_cast<layout::RegistryLine*>(
      region_ + geometry_.registry_offset)[registration % layout::kClientsMax];
}

Registered* Registry::locate(uint32_t registration) {
  Registered& line = lines_[registration % layout::kClientsMax];
  return line.registration == registration && line.state != ClientState::kNone ? &line : nullptr;
}

uint32_t Registry::admit(const std::string& peer, uint32_t fabric, Token& token) {
  const std::lock_guard lock(mutex_);
  const uint32_t kept = fabric == KV_FABRIC_LOCAL ? 0 : kOwnLines;
  if (taken_ + kept >= layout::kClientsMax) return 0;
  for (uint32_t tries = 0; tries < layout::kClientsMax && next_ < kRegistrationsMax; ++tries) {
    const uint32_t registration = next_++;
    Registered& line = lines_[registration % layout::kClientsMax];
    if (line.state != ClientState::kNone) continue;
    line = Registered{};
    line.registration = registration;
    line.token = token = random_token();
    line.fabric = fabric;
    line.peer = peer;
    line.state = ClientState::kLive;
    line.heard_ns = boottime_ns();
    ++admitted_;
    ++taken_;
    ++live_;
    // The client has not begun: until its first heartbeat it counts as of now.
    layout::ClientLine& client = client_line(registration);
    client = layout::ClientLine{};
    store(client.published_epoch, load(node_line().global_epoch));
    store(client.registration, registration);
    layout::RegistryLine& granted = registry_line(registration);
    store(granted.state, uint64_t(ClientState::kLive));
    store(granted.registration, registration);
    // Who sees this number sees the lines.
    store(node_line().admissions, admitted_);
    return registration;
  }
  return 0;
}

bool Registry::authenticate(uint32_t registration, const Token& token) {
  const std::lock_guard lock(mutex_);
  const Registered* line = locate(registration);
  if (line == nullptr || line->state != ClientState::kLive) return false;
  unsigned difference = 0;
  for (size_t i = 0; i < token.size(); ++i) difference |= unsigned(token[i] ^ line->token[i]);
  return difference == 0;
}

bool Registry::connected(uint32_t registration, uint32_t fabric, int process,
                         int process_descriptor) {
  const std::lock_guard lock(mutex_);
  Registered* line = locate(registration);
  if (line == nullptr || line->state != ClientState::kLive) return false;
  line->connected = line->was_connected = true;
  line->fabric = fabric;
  line->process = process;
  if (line->process_descriptor >= 0) ::close(line->process_descriptor);
  line->process_descriptor = process_descriptor;
  line->heard_ns = boottime_ns();
  return true;
}

void Registry::disconnected(uint32_t registration) {
  const std::lock_guard lock(mutex_);
  if (Registered* line = locate(registration)) line->connected = false;
}

void Registry::refresh_safe_epoch_locked() {
  uint64_t safe = load(node_line().global_epoch);
  for (const Registered& line : lines_) {
    if (line.state != ClientState::kLive) continue;
    if (KV_VARIANT(safe_epoch_ignores_one) && line.registration + 1 == next_) continue;
    safe = std::min(safe, load(client_line(line.registration).published_epoch));
  }
  // It never goes back: a client admitted meanwhile has begun at the epoch of its admission.
  if (safe > load(node_line().safe_epoch)) store(node_line().safe_epoch, safe);
}

// What a client writes there is its own affair: at worst the sums are wrong.
void Registry::count_copies_locked(Registered& line, const layout::ClientLine& client) {
  const auto since = [](auto& seen, const auto& word) {
    const auto now = __atomic_load_n(&word, __ATOMIC_RELAXED);
    const auto grown = now - seen;
    seen = now;
    return grown;
  };
  cache_hits_ += since(line.cache_hits, client.cache_hits);
  cache_invalidated_ += since(line.cache_invalidated, client.cache_invalidated);
  cache_bypassed_ += since(line.cache_bypassed, client.cache_bypassed);
}

Registry::Tick Registry::tick(uint64_t lease_ns) {
  const std::lock_guard lock(mutex_);
  Tick result;
  const uint64_t now_ns = boottime_ns();
  store(node_line().clock_ms, (now_ns - began_ns_) / kMillisecond);
  for (Registered& line : lines_) {
    if (line.state != ClientState::kLive) continue;
    const layout::ClientLine& client = client_line(line.registration);
    const uint64_t heartbeat = load(client.heartbeat);
    if (heartbeat != line.heartbeat) {
      line.heartbeat = heartbeat;
      line.heard_ns = now_ns;
      line.stalled = false;
      count_copies_locked(line, client);
    } else if (now_ns - line.heard_ns > lease_ns) {
      result.silent.push_back(line.registration);
    }
    result.pressure = std::max(result.pressure, load(client.wants_memory));
    result.busy |= load(client.limbo_bytes) != 0;
  }
  result.losses = load(node_line().losses);
  refresh_safe_epoch_locked();
  store(node_line().global_epoch, load(node_line().global_epoch) + 1);
  store(node_line().pressure, result.pressure);
  return result;
}

bool Registry::find(uint32_t registration, Registered& found) {
  const std::lock_guard lock(mutex_);
  const Registered* line = locate(registration);
  if (line == nullptr) return false;
  found = *line;
  return true;
}

void Registry::set_stalled(uint32_t registration, bool stalled) {
  const std::lock_guard lock(mutex_);
  if (Registered* line = locate(registration)) line->stalled = stalled;
}

bool Registry::mark_fenced(uint32_t registration, bool left) {
  const std::lock_guard lock(mutex_);
  Registered* line = locate(registration);
  if (line == nullptr || line->state != ClientState::kLive) return false;
  count_copies_locked(*line, client_line(registration));
  line->state = ClientState::kFenced;
  --live_;
  line->connected = false;
  fenced_ += left ? 0 : 1;
  layout::RegistryLine& granted = registry_line(registration);
  store(granted.fenced_epoch, load(node_line().global_epoch));
  store(granted.state, uint64_t(ClientState::kFenced));
  if (!line->was_connected) return true;
  // Who sees the death sees whether it was one without a farewell.
  if (!left) store(node_line().crashes, load(node_line().crashes) + 1);
  store(node_line().deaths, load(node_line().deaths) + 1);
  return true;
}

void Registry::mark_swept(uint32_t registration) {
  const std::lock_guard lock(mutex_);
  Registered* line = locate(registration);
  if (line == nullptr) return;
  KV_ASSERT(line->state == ClientState::kFenced);
  store(registry_line(registration).state, uint64_t(ClientState::kSwept));
  if (line->process_descriptor >= 0) ::close(line->process_descriptor);
  *line = Registered{};
  --taken_;
}

std::vector<uint32_t> Registry::live() {
  const std::lock_guard lock(mutex_);
  std::vector<uint32_t> registrations;
  for (const Registered& line : lines_) {
    if (line.state == ClientState::kLive) registrations.push_back(line.registration);
  }
  return registrations;
}

uint32_t Registry::list(kv_client_record* records, uint32_t capacity,
                        const std::array<uint32_t, 2>& hidden) {
  const std::lock_guard lock(mutex_);
  uint32_t count = 0;
  const uint64_t now_ns = boottime_ns();
  for (const Registered& line : lines_) {
    if (line.state == ClientState::kNone || count == capacity) continue;
    if (std::find(hidden.begin(), hidden.end(), line.registration) != hidden.end()) continue;
    kv_client_record& record = records[count++];
    record = kv_client_record{};
    record.registration = line.registration;
    record.fabric = line.fabric;
    record.process_id = uint32_t(line.process);
    record.state = line.state == ClientState::kFenced ? 3u : line.stalled ? 2u : 1u;
    record.published_epoch = load(client_line(line.registration).published_epoch);
    record.silent_ms = (now_ns - line.heard_ns) / kMillisecond;
    std::strncpy(record.peer, line.peer.c_str(), sizeof record.peer - 1);
  }
  return count;
}

uint32_t Registry::clients_live() {
  const std::lock_guard lock(mutex_);
  return live_;
}

void Registry::read_stats(kv_node_stats& stats) {
  const std::lock_guard lock(mutex_);
  for (const Registered& line : lines_) {
    stats.clients_stalled += line.state == ClientState::kLive && line.stalled;
  }
  stats.clients_live = live_;
  stats.clients_total = admitted_;
  stats.clients_fenced = fenced_;
  stats.cache_hits = cache_hits_;
  stats.cache_invalidated = cache_invalidated_;
  stats.cache_bypassed = cache_bypassed_;
  stats.global_epoch = load(node_line().global_epoch);
  stats.safe_epoch = load(node_line().safe_epoch);
  stats.uptime_ms = (boottime_ns() - began_ns_) / kMillisecond;
}

}  // namespace kvstore
