#include "sim/faults.hpp"

#include <cstdlib>
#include <cstring>

#include "sim/memory_check.hpp"

namespace kvstore::sim {
namespace {

// Events: a node to be restarted, or this.
constexpr uint64_t kCrashNow = UINT64_MAX;
constexpr uint64_t kSoonNs = 20'000;

std::string name_of(const ComputeNode& client) {
  return "client " + std::to_string(client.number());
}

}  // namespace

size_t Faults::any_client() {
  return size_t(schedule_.random().below(clients_.present().size()));
}

void Faults::draw(uint64_t number) {
  const WorldOptions& options = workload_.options;
  const uint64_t chances[] = {options.crashes_per_million,    options.leaves_per_million,
                              options.breaks_per_million,     options.pauses_per_million,
                              options.partitions_per_million, options.power_losses_per_million,
                              options.damages_per_million};
  static_assert(std::size(chances) == size_t(Fault::kCount));
  for (size_t fault = 0; fault < std::size(chances); ++fault) {
    const bool forced = options.forced_fault == fault + 1 && options.forced_at == number;
    const bool drawn = schedule_.random().chance(chances[fault]);
    if (forced || (drawn && workload_.faults < options.faults_max)) begin(Fault(fault));
  }
}

void Faults::begin(Fault fault) {
  ++workload_.faults;
  ++counts_[size_t(fault)];
  switch (fault) {
    case Fault::kCrash:
      return schedule_.after(schedule_.random().below(kSoonNs), *this, kCrashNow);
    case Fault::kLeave:
      return leave();
    case Fault::kBreak:
      return break_connections();
    case Fault::kPause:
      return pause();
    case Fault::kPartition:
      return part();
    case Fault::kPowerLoss:
      return lose_power();
    default:
      return damage();
  }
}

void Faults::fire(uint64_t event) {
  if (event == kCrashNow) {
    if (!workload_.resting) crash();
    return;
  }
  MemoryNode& node = *nodes_[event];
  if (node.up()) return;
  tell([&] { return node.name() + " is back"; });
  node.restart();
}

void Faults::crash() {
  const size_t victim = any_client();
  ComputeNode& client = *clients_.present()[victim];
  tell([&] { return name_of(client) + " dies; another one begins"; });
  client.crash();
  clients_.replace(victim);
}

void Faults::leave() {
  const size_t index = any_client();
  ComputeNode& client = *clients_.present()[index];
  tell([&] { return name_of(client) + " leaves; another one begins"; });
  client.leave();
  clients_.replace(index);
}

void Faults::break_connections() {
  const uint32_t member = any_node();
  DrivenClient& client = clients_.present()[any_client()]->client();
  SimNode* const fabric = client.fabric(member);
  if (fabric == nullptr) return;
  tell([&] {
    return "connections of line " + std::to_string(client.registration(member)) + " to node " +
           std::to_string(member) + " break";
  });
  fabric->break_connections(client.registration(member));
}

void Faults::pause() {
  ComputeNode& client = *clients_.present()[any_client()];
  const uint64_t pause_ns = schedule_.random().below(workload_.options.pause_ns_max + 1);
  tell([&] { return name_of(client) + " stands still for " + std::to_string(pause_ns) + " ns"; });
  client.pause_until(schedule_.now_ns() + pause_ns);
}

void Faults::part() {
  Random& random = schedule_.random();
  const uint32_t member = any_node();
  ComputeNode& client = *clients_.present()[any_client()];
  const uint64_t until_ns =
      schedule_.now_ns() + random.below(workload_.options.partition_ns_max + 1);
  const uint64_t ways = 1 + random.below(3);
  Reach& reach = client.client().reach(member);
  if ((ways & 1) != 0) reach.requests_from_ns = until_ns;
  if ((ways & 2) != 0) reach.answers_from_ns = until_ns;
  tell([&] {
    static constexpr const char* kWays[] = {"to", "from", "to or from"};
    return "until " + std::to_string(until_ns) + " ns nothing gets " + kWays[ways - 1] + " node " +
           std::to_string(member) + " for " + name_of(client);
  });
}

void Faults::lose_power() {
  const uint32_t index = any_node();
  MemoryNode& node = *nodes_[index];
  if (!node.up()) return;
  tell([&] { return node.name() + " loses its power"; });
  uint64_t down_ns = schedule_.random().below(workload_.options.power_loss_ns_max + 1);
  // A node does not begin anew before copies of what it held have ended; until then they count.
  constexpr uint64_t kCopiesEndNs = 300 * kMillisecond;
  const bool copies = workload_.options.cache_bytes > 0;
  if (copies) down_ns = std::max(down_ns, kCopiesEndNs);
  node.lose_power();
  wipe(index, schedule_.now_ns() + (copies ? down_ns : 0));
  schedule_.after(down_ns, *this, index);
}

void Faults::wipe(uint32_t node, uint64_t at_latest_ns) {
  const Client& client = clients_.present().front()->client().client();
  for (uint64_t key = 0; key < workload_.options.keys; ++key) {
    const std::string name = key_name(workload_.options, key);
    if (client.member_of(make_key(name.data(), name.size()).hash) != node) continue;
    Operation gone;
    gone.client = UINT32_MAX;
    gone.key = key;
    gone.kind = OperationKind::kWipe;
    gone.outcome = OperationOutcome::kOk;
    gone.called_ns = schedule_.now_ns();
    gone.returned_ns = at_latest_ns;
    workload_.history.push_back(gone);
  }
}

// One bit of the header, the key or the value of some object that the index leads to. From then on
// the key may be found gone at any time.
void Faults::damage() {
  MemoryNode& node = *nodes_[any_node()];
  if (!node.up()) return;
  const IndexView index(node.region(), node.geometry());
  if (index.slots().empty()) return;
  Random& random = schedule_.random();
  const uint64_t at = index.slots()[random.below(index.slots().size())].offset();
  layout::ObjectHeader header;
  std::memcpy(&header, node.region() + at, sizeof header);
  constexpr uint64_t kObjectBytesMax = 1 << 20;
  if (header.key_bytes > layout::kKeyBytesMax || header.value_bytes > kObjectBytesMax) return;
  const std::string key(reinterpret_cast<const char*>(node.region()) + at + sizeof header,
                        header.key_bytes);
  constexpr size_t kPrefix = sizeof "key " - 1;
  if (key.compare(0, kPrefix, "key ") != 0) return;
  const uint64_t bytes = sizeof header + header.key_bytes + header.value_bytes;
  const uint64_t place = random.below(bytes);
  node.region()[at + place] ^= uint8_t(1u << random.below(8));
  Operation lost;
  lost.client = UINT32_MAX;
  lost.key = std::strtoull(key.c_str() + kPrefix, nullptr, 10);
  if (lost.key >= workload_.options.keys) return;
  lost.kind = OperationKind::kDelete;
  lost.called_ns = schedule_.now_ns();
  workload_.history.push_back(lost);
  tell([&] { return "byte " + std::to_string(place) + " of the object of " + key + " changes"; });
}

void Faults::heal() {
  for (const auto& client : clients_.present()) {
    for (uint32_t member = 0; member < nodes_.size(); ++member) {
      client->client().reach(member) = {};
    }
  }
  for (MemoryNode* node : nodes_) {
    if (!node->up()) node->restart();
    node->fabric().timing().breaks_per_million = 0;
    node->fabric().timing().late_per_million = 0;
  }
}

}  // namespace kvstore::sim
