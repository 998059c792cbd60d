#include "sim/world.hpp"

#include <thread>

#include "base/crc32c.hpp"
#include "sim/compute_node.hpp"

namespace kvstore::sim {
namespace {

uint64_t digest_of(const std::vector<Operation>& history) {
  uint32_t digest = 0;
  for (const Operation& operation : history) {
    const std::string line = describe(operation);
    digest = crc32c(digest, line.data(), line.size());
  }
  return digest;
}

class World {
 public:
  World(const WorldOptions& options, uint64_t seed, Trace trace)
      : options_(options), schedule_(seed), workload_{options_, {}, 0, 0, 1, {}, {}, false} {
    schedule_.set_trace(std::move(trace));
    workload_.last_version.assign(options.keys, 0);
    for (unsigned i = 0; i < options.nodes; ++i) {
      nodes_.push_back(std::make_unique<MemoryNode>(schedule_, "node " + std::to_string(i),
                                                    options.node, drift()));
      all_nodes_.push_back(nodes_.back().get());
    }
    for (unsigned i = 0; i < options.clients; ++i) clients_.push_back(new_client());
  }

  WorldResult run() {
    const uint64_t end_ns = schedule_.now_ns() + options_.limit_ns;
    while (!workload_.over() && schedule_.now_ns() < end_ns && schedule_.run_next()) {
      while (begun_seen_ < workload_.begun) {
        ++begun_seen_;
        draw_faults();
      }
      if (schedule_.now_ns() >= crash_at_ns_) {
        crash_at_ns_ = UINT64_MAX;
        ++crashes_;
        replace(any_client());
      }
      if (workload_.cut_off) replace_cut_off();
    }
    return result();
  }

 private:
  void tell(const std::string& line) {
    schedule_.tell(kEveryKey, [&] { return line; });
  }

  int64_t drift() {
    const uint64_t width = uint64_t(2 * options_.drift_per_million_max + 1);
    return int64_t(schedule_.random().below(width)) - options_.drift_per_million_max;
  }

  std::unique_ptr<ComputeNode> new_client() {
    auto client =
        std::make_unique<ComputeNode>(schedule_, all_nodes_, workload_, next_client_++, drift());
    schedule_.tell(kEveryKey, [&] {
      std::string line = "client " + std::to_string(client->number()) + " begins, with line";
      for (uint32_t member = 0; member < nodes_.size(); ++member) {
        line.append(member > 0 ? ", " : " ").append(std::to_string(client->registration(member)));
        line.append(" on ").append(nodes_[member]->name());
      }
      return line;
    });
    return client;
  }

  size_t any_client() { return size_t(schedule_.random().below(clients_.size())); }

  void draw_faults() {
    Random& random = schedule_.random();
    constexpr uint64_t kSoonNs = 20'000;
    if (random.chance(options_.crashes_per_million) && crash_at_ns_ == UINT64_MAX) {
      crash_at_ns_ = schedule_.now_ns() + random.below(kSoonNs);
    }
    if (random.chance(options_.breaks_per_million)) {
      const uint32_t member = uint32_t(random.below(nodes_.size()));
      ComputeNode& client = *clients_[any_client()];
      tell("connections of client " + std::to_string(client.number()) + " to node " +
           std::to_string(member) + " break");
      nodes_[member]->fabric().break_connections(client.registration(member));
    }
    if (random.chance(options_.pauses_per_million)) {
      ComputeNode& client = *clients_[any_client()];
      const uint64_t until_ns = schedule_.now_ns() + random.below(options_.pause_ns_max + 1);
      tell("client " + std::to_string(client.number()) + " stands still until " +
           std::to_string(until_ns) + " ns");
      client.pause_until(until_ns);
      ++pauses_;
    }
  }

  // The dead stay: events that name them may still come.
  void replace(size_t victim) {
    tell("client " + std::to_string(clients_[victim]->number()) + " dies; another one begins");
    clients_[victim]->crash();
    dead_.push_back(std::move(clients_[victim]));
    clients_[victim] = new_client();
  }
  void replace_cut_off() {
    workload_.cut_off = false;
    for (size_t i = 0; i < clients_.size(); ++i) {
      if (clients_[i]->cut_off()) replace(i);
    }
  }

  WorldResult result() {
    WorldResult result;
    result.finished = workload_.over();
    LinearizabilityOptions checked;
    checked.may_vanish = options_.node.eviction != KV_EVICTION_NONE;
    result.linearizability = check_history(workload_.history, checked);
    result.violation = workload_.violation;
    result.digest = digest_of(workload_.history);
    result.virtual_ns = schedule_.now_ns() - Schedule::kBeginNs;
    result.events = schedule_.events();
    for (const auto& node : nodes_) {
      const SimCounts& counts = node->fabric().counts();
      result.verbs += counts.operations;
      result.torn += counts.torn;
      result.breaks += counts.breaks;
      result.orphans += counts.orphans;
      result.fenced += node->clients_fenced();
      result.swept += node->clients_swept();
    }
    result.crashes = crashes_;
    result.pauses = pauses_;
    for (const Operation& operation : workload_.history) {
      result.unknown += operation.outcome == OperationOutcome::kUnknown;
    }
    result.history = workload_.history;
    return result;
  }

  const WorldOptions options_;
  Schedule schedule_;
  Workload workload_;
  std::vector<std::unique_ptr<MemoryNode>> nodes_;
  std::vector<MemoryNode*> all_nodes_;
  std::vector<std::unique_ptr<ComputeNode>> clients_;
  std::vector<std::unique_ptr<ComputeNode>> dead_;
  uint32_t next_client_ = 0;
  uint64_t begun_seen_ = 0;
  uint64_t crash_at_ns_ = UINT64_MAX;
  uint64_t crashes_ = 0;
  uint64_t pauses_ = 0;
};

}  // namespace

WorldResult run_world(const WorldOptions& options, uint64_t seed, Trace trace) {
  WorldResult result;
  std::thread thread([&] { result = World(options, seed, std::move(trace)).run(); });
  thread.join();
  return result;
}

}  // namespace kvstore::sim
