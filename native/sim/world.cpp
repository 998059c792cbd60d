#include "sim/world.hpp"

#include <algorithm>
#include <chrono>
#include <future>
#include <thread>

#include "base/crc32c.hpp"
#include "base/variant.hpp"
#include "sim/faults.hpp"
#include "sim/history_checks.hpp"
#include "sim/memory_check.hpp"

namespace kvstore::sim {
namespace {

using WallClock = std::chrono::steady_clock;

// Virtual time that things take at the end, at most.
constexpr uint64_t kComeBackNs = 30 * kSecond;
constexpr uint64_t kSettleNs = 2 * kSecond;
constexpr uint64_t kLastReadsNs = 30 * kSecond;
constexpr uint64_t kSweepsNs = 120 * kSecond;
// A client sees the node's clock at a heartbeat, and expiry counts in ticks.
constexpr uint64_t kExpirySlackNs = 3 * layout::kExpiryTickMs * kMillisecond;
constexpr uint64_t kLoneKeysMax = 4096;

uint64_t digest_of(const std::vector<Operation>& history) {
  uint32_t digest = 0;
  for (const Operation& operation : history) {
    const uint64_t words[] = {operation.client,
                              operation.key,
                              uint64_t(operation.kind),
                              uint64_t(operation.condition),
                              uint64_t(operation.outcome),
                              operation.called_ns,
                              operation.returned_ns,
                              operation.value,
                              operation.version,
                              operation.if_version};
    digest = crc32c(digest, words, sizeof words);
  }
  return digest;
}

std::vector<bool> lone_keys(const WorldOptions& options) {
  const uint64_t keys = options.keys;
  if (keys > kLoneKeysMax) return {};
  std::vector<unsigned> fingerprints;
  std::vector<unsigned> count(256, 0);
  for (uint64_t key = 0; key < keys; ++key) {
    const std::string name = key_name(options, key);
    fingerprints.push_back(make_key(name.data(), name.size()).fingerprint());
    ++count[fingerprints.back()];
  }
  std::vector<bool> lone;
  for (const unsigned fingerprint : fingerprints) lone.push_back(count[fingerprint] == 1);
  return lone;
}

class World final : private Clients, private BlockUsers {
 public:
  World(const WorldOptions& options, uint64_t seed, Trace trace)
      : options_(options),
        schedule_(seed),
        mail_(schedule_, options.mail),
        workload_(options_),
        faults_(schedule_, all_nodes_, *this, workload_),
        wall_end_(WallClock::now() + std::chrono::nanoseconds(options.wall_limit_ns)) {
    schedule_.set_trace(std::move(trace));
    workload_.mail = &mail_;
    set_switches(seed);
    if (options.check_cost) workload_.lone_keys = lone_keys(options);
    BlockUsers* const watched = options.check_blocks ? this : nullptr;
    for (unsigned i = 0; i < options.nodes; ++i) {
      nodes_.push_back(std::make_unique<MemoryNode>(schedule_, i, options_.node, drift(), watched));
      all_nodes_.push_back(nodes_.back().get());
    }
    for (unsigned i = 0; i < options.clients; ++i) clients_.push_back(new_client());
  }
  ~World() { switches = {}; }

  WorldResult run() {
    const auto begun = [this](uint64_t calls) {
      return [this, calls] { return workload_.begun >= calls || workload_.over(); };
    };
    run_until(begun(options_.preload ? options_.keys : 0), options_.limit_ns);
    const Usage before = usage();
    run_until(begun(options_.operations), options_.limit_ns);
    measured_ = since(before);
    const bool done = run_until([this] { return workload_.over(); }, options_.limit_ns);
    if (!done) report_stuck("the operations did not end");
    if (options_.rest && workload_.violation.empty()) come_to_rest();
    return result();
  }

 private:
  // ---- What there is ----

  // The rare paths come from a stream of their own: whether one is open changes nothing else.
  void set_switches(uint64_t seed) {
    switches = {};
    switches.variants = options_.variants;
    Random random(~seed);
    switches.state = random.next();
    for (unsigned n = 0; n < unsigned(RarePath::kCount); ++n) {
      const bool open = random.below(1'000'000) < options_.rare_per_million;
      if (open) switches.rare.set(n);
    }
    switches.rare |= options_.rare;
  }

  int64_t drift() {
    const uint64_t width = uint64_t(2 * options_.drift_per_million_max + 1);
    return int64_t(schedule_.random().below(width)) - options_.drift_per_million_max;
  }

  std::unique_ptr<ComputeNode> new_client() {
    return std::make_unique<ComputeNode>(schedule_, all_nodes_, workload_, next_client_++, drift());
  }

  std::vector<std::unique_ptr<ComputeNode>>& present() override { return clients_; }
  void replace(size_t index) override {
    former_.push_back(std::move(clients_[index]));
    clients_[index] = new_client();
  }

  template <class Visit>
  void each_client(Visit&& visit) {
    for (const auto& client : clients_) visit(*client);
    for (const auto& client : former_) visit(*client);
  }

  // ---- Blocks ----

  bool uses(ComputeNode& client, uint32_t node) {
    return !client.gone() && client.client().fabric(node) == &nodes_[node]->fabric();
  }

  uint64_t operation_of(uint32_t node, uint32_t registration, uint32_t lane) override {
    uint64_t operation = 0;
    if (!nodes_[node]->is_live(registration)) return operation;
    each_client([&](ComputeNode& client) {
      if (!uses(client, node) || client.client().registration(node) != registration) return;
      operation = client.operation_of(lane);
    });
    return operation;
  }

  std::string holder_since(uint32_t node, uint64_t instant_ns) override {
    std::string holder;
    each_client([&](ComputeNode& client) {
      if (!holder.empty() || !uses(client, node)) return;
      const std::string found = client.holder_since(node, instant_ns);
      if (found.empty() || !nodes_[node]->is_live(client.client().registration(node))) return;
      holder = found;
    });
    return holder;
  }

  void block_misused(const std::string& violation) override { workload_.report(violation); }

  // ---- Figures ----

  struct Usage {
    uint64_t at_ns = 0;
    uint64_t begun = 0;
    uint64_t verbs = 0;
    uint64_t processor_ns = 0;
    std::vector<uint64_t> nic_ns;
    std::vector<uint64_t> blocked_ns;
  };

  Usage usage() {
    Usage now{schedule_.now_ns(), workload_.begun, 0, 0, {}, {}};
    for (const auto& node : nodes_) {
      now.verbs += node->counts().fabric.operations;
      now.nic_ns.push_back(node->up() ? node->fabric().nic().busy_ns() : 0);
      now.blocked_ns.push_back(node->up() ? node->fabric().nic().blocked_ns() : 0);
    }
    for (const auto& client : clients_) now.processor_ns += client->processor_ns();
    return now;
  }

  Measured since(const Usage& before) {
    const Usage now = usage();
    Measured sum{
        before.at_ns, now.at_ns, now.begun - before.begun, now.verbs - before.verbs, 0, 0, 0};
    const double span_ns = double(std::max<uint64_t>(now.at_ns - before.at_ns, 1));
    // What began anew meanwhile counts from there.
    const auto share = [&](uint64_t later, uint64_t earlier) {
      return double(later >= earlier ? later - earlier : later) / span_ns;
    };
    for (size_t i = 0; i < now.nic_ns.size(); ++i) {
      const double busy = share(now.nic_ns[i], before.nic_ns[i]);
      if (busy < sum.nic_busy) continue;
      sum.nic_busy = busy;
      sum.nic_blocked = share(now.blocked_ns[i], before.blocked_ns[i]);
    }
    sum.processor_busy =
        share(now.processor_ns, before.processor_ns) / double(options_.clients * options_.lanes);
    return sum;
  }

  // ---- Going on ----

  // Until `over` or a violation; false if that is not so after `limit_ns`, or too much real time.
  template <class Over>
  bool run_until(Over&& over, uint64_t limit_ns) {
    const uint64_t end_ns = schedule_.now_ns() + limit_ns;
    constexpr uint64_t kWallEvery = 256;
    while (workload_.violation.empty() && !over()) {
      if (schedule_.now_ns() >= end_ns || !schedule_.run_next()) return false;
      if (schedule_.events() % kWallEvery == 0 && WallClock::now() > wall_end_) return false;
      for (; drawn_ < workload_.begun; ++drawn_) faults_.draw(drawn_);
    }
    return true;
  }

  void report_stuck(const std::string& what) {
    const bool slow = WallClock::now() > wall_end_;
    std::string line = "stuck: " + what + (slow ? " in the real time allowed" : "");
    line += ", at " + std::to_string(schedule_.now_ns()) + " ns";
    for (const Operation& operation : workload_.history) {
      const bool open = operation.returned_ns == kNeverReturned;
      if (!open || operation.outcome != OperationOutcome::kUnknown) continue;
      each_client([&](ComputeNode& client) {
        if (client.gone() || client.idle() || client.number() != operation.client) return;
        if (line.size() < 600) line += "; " + describe(operation);
      });
    }
    workload_.report(line);
  }

  void expect(bool reached, const char* what) {
    if (!reached) report_stuck(what);
  }
  void note(const std::string& wrong, const MemoryNode& node) {
    if (!wrong.empty()) workload_.report(node.name() + ": " + wrong);
  }

  // ---- The end ----

  // Whether `holds` for each of `things`. Asked after every event, so it looks first at the one for
  // which it did not hold the last time.
  template <class Things, class Holds>
  static auto for_all(const Things& things, Holds holds) {
    return [&things, holds, last = size_t{0}]() mutable {
      if (last < things.size() && !holds(*things[last])) return false;
      for (last = 0; last < things.size(); ++last) {
        if (!holds(*things[last])) return false;
      }
      return true;
    };
  }

  bool has_limbo(ComputeNode& client) {
    for (uint32_t member = 0; member < nodes_.size(); ++member) {
      const auto attachment = client.client().client().attachment(member);
      if (attachment && attachment->limbo.bytes() > 0) return true;
    }
    return false;
  }

  void check_alive() {
    // Damaged blocks are given up until their owner goes.
    if (options_.damages_per_million > 0 || options_.forced_fault != 0) return;
    for (uint32_t member = 0; member < nodes_.size(); ++member) {
      const IndexView index(nodes_[member]->region(), nodes_[member]->geometry());
      note(index.check(true), *nodes_[member]);
      for (const auto& client : clients_) {
        const auto attachment = client->client().client().attachment(member);
        const auto extents = attachment->allocator.begin_scrub();
        note(check_extents(index, attachment->registration, extents), *nodes_[member]);
      }
    }
  }

  void read_every_key() {
    const size_t before = workload_.history.size();
    // With copies, each client reads most keys from its own and from the node.
    const bool copies = options_.cache_bytes > 0;
    workload_.last_reads = options_.keys * (copies ? 2 * options_.clients : 1);
    for (const auto& client : clients_) client->go_on();
    expect(run_until([this] { return workload_.over(); }, kLastReadsNs), "the last reads");
    const std::span<const Operation> all(workload_.history);
    const std::string lost = check_acknowledged(all.first(before), all.subspan(before),
                                                options_.node.eviction != KV_EVICTION_NONE);
    if (!lost.empty()) workload_.report(lost);
    if (options_.mortal_percent > 0 || options_.node.eviction != KV_EVICTION_NONE) return;
    const std::string differing = check_agreement(all.subspan(before));
    if (!differing.empty()) workload_.report(differing);
  }

  void all_go() {
    for (const auto& client : clients_) {
      if (schedule_.random().below(2) == 0) {
        client->leave();
      } else {
        client->crash();
      }
    }
    auto deserted = for_all(nodes_, [](MemoryNode& node) { return node.deserted(); });
    expect(run_until(deserted, kSweepsNs), "the sweep after the last client");
    if (!workload_.violation.empty()) return;
    for (const auto& node : nodes_) {
      const IndexView index(node->region(), node->geometry());
      // A sweep frees a damaged block, for it can't know its key, though a slot may lead to it.
      if (options_.damages_per_million > 0) continue;
      note(index.check(true), *node);
      note(check_deserted(index), *node);
    }
  }

  void come_to_rest() {
    workload_.resting = true;
    faults_.heal();
    mail_.heal();
    auto back = for_all(clients_, [](ComputeNode& client) {
      return !client.paused() && client.client().attached();
    });
    auto gone = for_all(former_, [](const ComputeNode& client) { return client.gone(); });
    expect(run_until([&] { return back() && gone(); }, kComeBackNs), "a client did not come back");
    auto empty = for_all(clients_, [this](ComputeNode& client) { return !has_limbo(client); });
    expect(run_until(empty, kComeBackNs), "blocks stay in limbo");
    auto swept = for_all(nodes_, [](const MemoryNode& node) { return node.is_swept(); });
    expect(run_until(swept, kSweepsNs), "a sweep");
    const uint64_t settled_ns = schedule_.now_ns() + kSettleNs;
    run_until([&] { return schedule_.now_ns() >= settled_ns; }, kSettleNs);
    if (workload_.violation.empty()) check_alive();
    if (workload_.violation.empty()) read_every_key();
    if (workload_.violation.empty()) all_go();
  }

  WorldResult result() {
    WorldResult result;
    result.finished = workload_.over();
    LinearizabilityOptions checked;
    checked.may_vanish = options_.node.eviction != KV_EVICTION_NONE;
    checked.regular_copies = options_.node.consistency == KV_REGULAR;
    result.linearizability = check_history(workload_.history, checked);
    const std::string expired = check_expiry(workload_.history, kExpirySlackNs);
    if (!expired.empty()) workload_.report(expired);
    result.violation = workload_.violation;
    result.digest = digest_of(workload_.history);
    result.virtual_ns = schedule_.now_ns() - Schedule::kBeginNs;
    result.events = schedule_.events();
    result.costed = workload_.costed;
    result.measured = measured_;
    count(result);
    result.history = std::move(workload_.history);
    return result;
  }

  void count(WorldResult& result) {
    for (const auto& node : nodes_) {
      const MemoryNode::Counts counts = node->counts();
      result.verbs += counts.fabric.operations;
      result.torn += counts.fabric.torn;
      result.breaks += counts.fabric.breaks;
      result.orphans += counts.fabric.orphans;
      result.fenced += counts.fenced;
      result.swept += counts.swept;
    }
    result.crashes = faults_.count(Fault::kCrash);
    result.leaves = faults_.count(Fault::kLeave);
    result.pauses = faults_.count(Fault::kPause);
    result.partitions = faults_.count(Fault::kPartition);
    result.power_losses = faults_.count(Fault::kPowerLoss);
    result.damages = faults_.count(Fault::kDamage);
    each_client([&](ComputeNode& client) {
      const uint64_t attachments = client.client().attachments();
      result.attachments += attachments - std::min<uint64_t>(attachments, nodes_.size());
    });
    for (const auto& client : clients_) {
      kv_client_stats stats{};
      client->client().client().read_stats(stats);
      result.cache_hits += stats.cache_hits;
      result.cache_fills += stats.cache_fills;
      result.cache_revoked += stats.cache_revoked;
      result.invalidations += stats.invalidations_sent;
      result.invalidations_spared += stats.invalidations_spared;
      result.writes_at_once += stats.writes_at_once;
      result.cache_handed += stats.cache_handed;
      result.leases_waited += stats.leases_waited;
    }
    for (const auto& [host, stamps] : workload_.stamps) result.stamps_open += stamps->count_open();
    for (const Operation& operation : workload_.history) {
      result.unknown += operation.outcome == OperationOutcome::kUnknown;
    }
  }

  const WorldOptions options_;
  Schedule schedule_;
  ClientMail mail_;
  Workload workload_;
  std::vector<std::unique_ptr<MemoryNode>> nodes_;
  std::vector<MemoryNode*> all_nodes_;
  Faults faults_;
  std::vector<std::unique_ptr<ComputeNode>> clients_;
  std::vector<std::unique_ptr<ComputeNode>> former_;
  const WallClock::time_point wall_end_;
  Measured measured_;
  uint32_t next_client_ = 0;
  uint64_t drawn_ = 0;
};

}  // namespace

WorldResult run_world(const WorldOptions& options, uint64_t seed, Trace trace) {
  const auto watched = std::make_shared<Progress>();
  std::packaged_task<WorldResult()> task([=] {
    progress = watched.get();
    return World(options, seed, trace).run();
  });
  std::future<WorldResult> future = task.get_future();
  std::thread thread(std::move(task));
  // A world looks at the time itself, between its steps: only one that does not end a step is late.
  constexpr std::chrono::nanoseconds kLate = std::chrono::seconds(10);
  if (future.wait_for(std::chrono::nanoseconds(options.wall_limit_ns) + kLate) ==
      std::future_status::ready) {
    thread.join();
    return future.get();
  }
  watched->given_up.store(true);
  thread.detach();
  WorldResult result;
  result.violation = std::string("stuck: a step of ") + watched->stepping.load() +
                     " does not end, at " + std::to_string(watched->now_ns.load()) + " ns";
  return result;
}

}  // namespace kvstore::sim
