#include "sim/parameters.hpp"

#include <charconv>
#include <iterator>

namespace kvstore::sim {
namespace {

#define KV_FIELD(member)                                                                           \
  [](WorldOptions& options, uint64_t value) { options.member = decltype(options.member)(value); }, \
      [](const WorldOptions& options) { return uint64_t(options.member); }

constexpr uint64_t kMillion = 1'000'000;
constexpr uint64_t kBillion = 1'000'000'000;
constexpr uint64_t kMegabitBytes = 125'000;
constexpr uint64_t kMicrosecond = 1'000;
constexpr uint64_t kMebibyte = 1 << 20;
constexpr const char* kWorkload = "workload";
constexpr const char* kInvariants = "invariants";
constexpr const char* kFaults = "faults";
constexpr const char* kNode = "node";
constexpr const char* kNetwork = "network";

constexpr Parameter kParameters[] = {
    {"nodes", kWorkload, "", 1, 1, 64, "memory nodes", KV_FIELD(nodes)},
    {"clients", kWorkload, "", 1, 1, 1000, "compute nodes, each with one client",
     KV_FIELD(clients)},
    {"lanes", kWorkload, "", 1, 1, 64, "calls under way in each client", KV_FIELD(lanes)},
    {"keys", kWorkload, "", 1, 1, 100 * kMillion, "different keys", KV_FIELD(keys)},
    {"records", kWorkload, "", 1, 0, 512,
     "coherence records that all keys have; 0: as their names fall", KV_FIELD(records)},
    {"operations", kWorkload, "", 1, 1, 1000 * kMillion, "calls of all clients together",
     KV_FIELD(operations)},
    {"value_bytes_min", kWorkload, "bytes", 1, 0, 16 * kMebibyte,
     "at least, beside the 8 of a number", KV_FIELD(value_bytes_min)},
    {"value_bytes_max", kWorkload, "bytes", 1, 0, 16 * kMebibyte,
     "at most, beside the 8 of a number", KV_FIELD(value_bytes_max)},
    {"get_percent", kWorkload, "of a hundred calls", 1, 0, 100, "are gets", KV_FIELD(get_percent)},
    {"contains_percent", kWorkload, "of a hundred calls", 1, 0, 100, "ask if a key is there",
     KV_FIELD(contains_percent)},
    {"put_percent", kWorkload, "of a hundred calls", 1, 0, 100, "are puts; the rest deletes",
     KV_FIELD(put_percent)},
    {"conditions", kWorkload, "", 1, 0, 1, "1: some writes only if absent, or with a version",
     KV_FIELD(conditions)},
    {"fenced_percent", kWorkload, "of a hundred writes", 1, 0, 100,
     "carry the token of a lock's holder, some of a former one", KV_FIELD(fenced_percent)},
    {"preload", kWorkload, "", 1, 0, 1, "1: the first calls put every key once", KV_FIELD(preload)},
    {"think_us", kWorkload, "us", kMicrosecond, 0, 60 * kMillion,
     "between calls of a lane, at most", KV_FIELD(think_ns_max)},
    {"timeout_ms", kWorkload, "ms", kMillisecond, 1, 600'000, "of every call",
     KV_FIELD(timeout_ns)},
    {"mortal_percent", kWorkload, "of a hundred puts", 1, 0, 100, "have a time to live",
     KV_FIELD(mortal_percent)},
    {"lives_ms", kWorkload, "ms", kMillisecond, 1, 600'000, "how long, at most",
     KV_FIELD(lives_ns_max)},
    {"cache_kib", kWorkload, "KiB", 1024, 0, kMebibyte,
     "of each client, for copies of values; 0: none", KV_FIELD(cache_bytes)},
    {"hosts", kWorkload, "", 1, 0, 1000,
     "on which clients end each other's copies without a message; 0: one a client",
     KV_FIELD(hosts)},
    {"rest", kInvariants, "", 1, 0, 1, "1: at the end everything comes to rest and is checked",
     KV_FIELD(rest)},
    {"check_blocks", kInvariants, "", 1, 0, 1, "1: the use of every block is watched",
     KV_FIELD(check_blocks)},
    {"check_cost", kInvariants, "", 1, 0, 1, "1: verbs of calls are held against the table",
     KV_FIELD(check_cost)},
    {"wall_limit_s", kInvariants, "s", kSecond, 1, 86'400, "real time after which a world is stuck",
     KV_FIELD(wall_limit_ns)},
    {"limit_s", kInvariants, "s", kSecond, 1, 86'400, "virtual time after which a world is stuck",
     KV_FIELD(limit_ns)},

    {"region_mib", kNode, "MiB", kMebibyte, layout::kRegionBytesMin / kMebibyte, 1 << 20,
     "memory of each node", KV_FIELD(node.region_bytes)},
    {"eviction", kNode, "", 1, 0, 5, "kv_eviction: by which rule a full node drops entries",
     KV_FIELD(node.eviction)},
    {"consistency", kNode, "", 1, 0, 1, "kv_consistency: 1: reads from copies are only regular",
     KV_FIELD(node.consistency)},
    {"segments", kNode, "", 1, 0, 1 << 20, "left for index and objects, 0: all",
     KV_FIELD(node.segments_max)},
    {"lease_ms", kNode, "ms", kMillisecond, 1, 600'000, "of a client's membership",
     KV_FIELD(node.lease_ns)},

    {"delay_ns", kNetwork, "ns", 1, 1, 1000 * kMillion, "one way, at least",
     KV_FIELD(node.timing.delay_ns_min)},
    {"delay_spread_ns", kNetwork, "ns", 1, 0, 1000 * kMillion, "what chance adds to it, at most",
     KV_FIELD(node.timing.delay_ns_spread)},
    {"late_per_million", kNetwork, "of a million messages", 1, 0, kMillion, "are late",
     KV_FIELD(node.timing.late_per_million)},
    {"late_us", kNetwork, "us", kMicrosecond, 0, 600 * kMillion, "how late, at most",
     KV_FIELD(node.timing.late_ns_max)},
    {"mail_lost_per_million", kNetwork, "of a million", 1, 0, kMillion,
     "messages between clients are lost", KV_FIELD(mail.lost_per_million)},
    {"mail_doubled_per_million", kNetwork, "of a million", 1, 0, kMillion, "come twice",
     KV_FIELD(mail.doubled_per_million)},
    {"mail_late_per_million", kNetwork, "of a million", 1, 0, kMillion, "are late",
     KV_FIELD(mail.late_per_million)},
    {"mail_late_us", kNetwork, "us", kMicrosecond, 0, 600 * kMillion, "how late, at most",
     KV_FIELD(mail.late_ns_max)},
    {"step_ns", kNetwork, "ns", 1, 0, 1000 * kMillion,
     "between two operations of a batch or two pieces of one, at most",
     KV_FIELD(node.timing.step_ns_max)},
    {"stalls_per_million", kNetwork, "of a million steps", 1, 0, kMillion,
     "begin only after a while", KV_FIELD(node.timing.stalls_per_million)},
    {"stall_us", kNetwork, "us", kMicrosecond, 0, 600 * kMillion, "how long, at most",
     KV_FIELD(node.timing.stall_ns_max)},
    {"stall_bytes", kNetwork, "bytes", 1, 0, kMillion,
     "0: any step; else only within transfers of this length", KV_FIELD(node.timing.stall_bytes)},
    {"pieces", kNetwork, "", 1, 1, SimNode::kPiecesLimit, "of one transfer, in any order, at most",
     KV_FIELD(node.timing.pieces_max)},

    {"post_ns", kNetwork, "ns", 1, 0, kMillion, "of a processor, for each verb that it posts",
     KV_FIELD(node.timing.post_ns)},
    {"complete_ns", kNetwork, "ns", 1, 0, kMillion, "of a processor, for each completion",
     KV_FIELD(node.timing.complete_ns)},
    {"reads_per_s", kNetwork, "a second", 1, 0, kBillion, "READs that a node's NIC does; 0: any",
     KV_FIELD(node.timing.nic.reads_per_s)},
    {"writes_per_s", kNetwork, "a second", 1, 0, kBillion, "WRITEs, likewise",
     KV_FIELD(node.timing.nic.writes_per_s)},
    {"atomics_per_s", kNetwork, "a second", 1, 0, kBillion, "CAS and FAA of different addresses",
     KV_FIELD(node.timing.nic.atomics_per_s)},
    {"bandwidth_mbit_per_s", kNetwork, "Mbit/s", kMegabitBytes, 0, 10 * kMillion,
     "of a node's NIC; 0: any", KV_FIELD(node.timing.nic.bytes_per_s)},
    {"atomic_ns", kNetwork, "ns", 1, 0, kMillion, "for which an atomic occupies its address",
     KV_FIELD(node.timing.nic.atomic_ns)},
    {"head_of_line", kNetwork, "", 1, 0, 1, "1: behind an atomic that waits everything waits",
     KV_FIELD(node.timing.nic.head_of_line)},
    {"memory_ns", kNetwork, "ns", 1, 0, kMillion, "from the NIC to memory, in which it goes on",
     KV_FIELD(node.timing.nic.memory_ns)},

    {"batch_breaks_per_million", kFaults, "of a million batches", 1, 0, kMillion,
     "with this one the connection breaks", KV_FIELD(node.timing.breaks_per_million)},
    {"crashes_per_million", kFaults, "of a million calls", 1, 0, kMillion,
     "with this one some client crashes", KV_FIELD(crashes_per_million)},
    {"breaks_per_million", kFaults, "of a million calls", 1, 0, kMillion,
     "with this one some client's connections to a node break", KV_FIELD(breaks_per_million)},
    {"pauses_per_million", kFaults, "of a million calls", 1, 0, kMillion,
     "with this one some client stands still", KV_FIELD(pauses_per_million)},
    {"pause_ms", kFaults, "ms", kMillisecond, 1, 600'000, "how long, at most",
     KV_FIELD(pause_ns_max)},
    {"leaves_per_million", kFaults, "of a million calls", 1, 0, kMillion,
     "with this one some client says farewell", KV_FIELD(leaves_per_million)},
    {"partitions_per_million", kFaults, "of a million calls", 1, 0, kMillion,
     "with this one nothing passes between some client and a node, both ways or one",
     KV_FIELD(partitions_per_million)},
    {"partition_ms", kFaults, "ms", kMillisecond, 1, 600'000, "how long, at most",
     KV_FIELD(partition_ns_max)},
    {"power_losses_per_million", kFaults, "of a million calls", 1, 0, kMillion,
     "with this one some node loses all it holds", KV_FIELD(power_losses_per_million)},
    {"power_loss_ms", kFaults, "ms", kMillisecond, 1, 600'000, "until it is back, at most",
     KV_FIELD(power_loss_ns_max)},
    {"damages_per_million", kFaults, "of a million calls", 1, 0, kMillion,
     "with this one a bit of some object flips", KV_FIELD(damages_per_million)},
    {"faults_max", kFaults, "", 1, 0, UINT64_MAX, "faults together, at most", KV_FIELD(faults_max)},
    {"forced_fault", kFaults, "", 1, 0, 7,
     "one that comes in any case: 1 crash, 2 farewell, 3 break, 4 pause, 5 partition, 6 power "
     "loss, "
     "7 damage",
     KV_FIELD(forced_fault)},
    {"forced_at", kFaults, "", 1, 0, UINT64_MAX, "with which call", KV_FIELD(forced_at)},
    {"rare_per_million", kFaults, "of a million", 1, 0, kMillion,
     "with this chance each rare path of the code is open", KV_FIELD(rare_per_million)},
    {"drift_per_million", kFaults, "of a million", 1, 0, 100'000,
     "of every clock, either way, at most", KV_FIELD(drift_per_million_max)},
};
#undef KV_FIELD

}  // namespace

std::span<const Parameter> parameters() {
  return kParameters;
}

std::string set_parameter(WorldOptions& options, std::string_view name, std::string_view text) {
  for (const Parameter& parameter : kParameters) {
    if (name != parameter.name) continue;
    uint64_t value = 0;
    const char* const end = text.data() + text.size();
    const auto [at, error] = std::from_chars(text.data(), end, value);
    if (error != std::errc() || at != end || value < parameter.least || value > parameter.most) {
      const std::string unit = *parameter.unit != 0 ? std::string(" ") + parameter.unit : "";
      return std::string(name) + " is `" + std::string(text) + "`; it may be a whole number from " +
             std::to_string(parameter.least) + " to " + std::to_string(parameter.most) + unit;
    }
    parameter.set(options, value * parameter.scale);
    return "";
  }
  return "there is no parameter `" + std::string(name) + "`";
}

std::string check_parameters(const WorldOptions& options) {
  if (options.value_bytes_min > options.value_bytes_max) {
    return "value_bytes_min is above value_bytes_max";
  }
  if (options.get_percent + options.contains_percent + options.put_percent > 100) {
    return "get_percent, contains_percent and put_percent are more than 100 together";
  }
  return "";
}

}  // namespace kvstore::sim
