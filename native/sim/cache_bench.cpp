#include "sim/cache_bench.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <thread>

#include "base/variant.hpp"
#include "sim/cache_rivals.hpp"
#include "sim/driven_client.hpp"
#include "sim/memory_node.hpp"

namespace kvstore::sim {
namespace {

// Of the memory node, for the values: as they are, new ones, and old ones that are not free yet. At
// 3 million writes a second of 2 KiB those alone are some hundred MiB, and where they find no room
// everybody waits for the epochs.
constexpr uint64_t kRegionBytesMin = uint64_t{384} << 20;
constexpr uint64_t kRegionShare = 8;
constexpr uint64_t kSettleNs = 300 * kMillisecond;  // until all may make copies
constexpr uint64_t kTimeoutNs = 10 * kSecond;
constexpr uint64_t kScanMax = 100;
constexpr uint64_t kNeverEnded = UINT64_MAX;

enum class Policy { kNone, kCentral, kLease, kCoherent, kRegular };

const std::vector<CachePolicy> kPolicies = {
    {"none", "no copies"},
    {"central", "a manager knows who has copies, and ends them before a write"},
    {"lease", "copies are read for a fixed time, whoever writes"},
    {"coherent", "the store's own copies"},
    {"regular", "the same on a node that promises less"},
};

// Numbers from 0, the smaller the likelier, by Zipf's law with any exponent.
class AnyZipf {
 public:
  AnyZipf(uint64_t count, double exponent) : shares_(count) {
    double sum = 0;
    for (uint64_t i = 0; i < count; ++i) shares_[i] = sum += std::pow(double(i + 1), -exponent);
    for (double& share : shares_) share /= sum;
  }
  uint64_t draw(Random& random) const {
    const double share = double(random.next() >> 11) * 0x1p-53;
    const auto at = std::upper_bound(shares_.begin(), shares_.end(), share);
    return std::min<uint64_t>(uint64_t(at - shares_.begin()), shares_.size() - 1);
  }

 private:
  std::vector<double> shares_;
};

// What was written when. A read is stale if its value had been replaced by a write that ended
// before the read began.
class WriteLedger {
 public:
  explicit WriteLedger(uint64_t keys) : latest_begin_ns_(keys, 0) {}

  void add_key() { latest_begin_ns_.push_back(0); }
  uint64_t begin(uint64_t now_ns) {
    writes_.push_back({now_ns, kNeverEnded});
    return writes_.size() - 1;
  }
  void end(uint64_t key, uint64_t number, uint64_t now_ns) {
    writes_[number].end_ns = now_ns;
    latest_begin_ns_[key] = std::max(latest_begin_ns_[key], writes_[number].begin_ns);
  }
  // To be noted as a read begins.
  uint64_t bound(uint64_t key) const { return latest_begin_ns_[key]; }
  bool is_stale(uint64_t number, uint64_t bound) const { return writes_[number].end_ns < bound; }
  bool knows(uint64_t number) const { return number < writes_.size(); }

 private:
  struct Write {
    uint64_t begin_ns;
    uint64_t end_ns;
  };
  std::vector<Write> writes_;
  std::vector<uint64_t> latest_begin_ns_;  // of the writes that have ended
};

class BenchLane;

class BenchNode {
 public:
  BenchNode(Schedule& schedule, const std::vector<Home>& homes, const CacheBenchOptions& options,
            ClientMail& mail, uint64_t cache_bytes)
      : clock(schedule, 0, 0),
        client(schedule, clock, homes, uint32_t(options.lanes), &mail, cache_bytes,
               uint32_t(std::bit_ceil(2 * options.keys))) {}

  uint64_t own_hits() {
    const auto attachment = client.client().attachment(0);
    ClientCache* const cache = attachment ? attachment->coherence.cache() : nullptr;
    return cache != nullptr ? cache->hits() : 0;
  }

  HostClock clock;
  DrivenClient client;
  RivalCopies copies;
};

class CacheBench {
 public:
  CacheBench(const CacheBenchOptions& given, uint64_t seed);
  ~CacheBench();
  CacheBenchResult run();

  // ---- for the lanes ----

  // The keys first, then the rest; nothing while all settle.
  bool may_begin() const { return begun < allowed; }
  bool preloading() const { return begun < options.keys; }
  uint64_t value_bytes(uint64_t key) const { return options.sizes[key % options.sizes.size()]; }
  uint64_t hit_ns(uint64_t bytes) const {
    return options.hit_ns + bytes * 1000 / options.hit_bytes_per_us;
  }
  void note_done(uint64_t took_ns);
  void violate(const std::string& what) {
    if (violation.empty()) violation = what;
  }

  const CacheBenchOptions options;
  const Policy policy;
  Schedule schedule;
  AnyZipf zipf;
  WriteLedger ledger;
  std::unique_ptr<CopyManager> manager;
  std::vector<std::unique_ptr<BenchNode>> nodes;
  uint64_t keys_put;  // and those being put
  uint64_t begun = 0;
  uint64_t allowed = 0;
  uint64_t done = 0;
  bool measuring = false;
  uint64_t values_read = 0;
  uint64_t hits = 0;
  uint64_t stale_reads = 0;
  std::string violation;

 private:
  struct Usage {
    uint64_t at_ns = 0;
    uint64_t verbs = 0;
    uint64_t invalidations = 0;
    uint64_t messages = 0;
    uint64_t nic_ns = 0;
  };
  Usage usage();
  bool run_until_done(uint64_t operations);
  void settle();

  std::unique_ptr<MemoryNode> memory_;
  ClientMail mail_;
  std::vector<std::unique_ptr<BenchLane>> lanes_;
  std::vector<uint64_t> latencies_ns_;
};

// ---- a lane ---------------------------------------------------------------------------------

class BenchLane final : public Driver, private Waker {
 public:
  BenchLane(CacheBench& bench, BenchNode& node, CopyManager::Asker self, Lane& lane)
      : Driver(bench.schedule, node.clock, "a lane"),
        bench_(bench),
        node_(node),
        self_(self),
        lane_(lane) {
    node_.client.set_listener(lane.index(), this);
    node_.client.order_ready(lane);
    lane_.executor().set_waker(this);
  }
  ~BenchLane() {
    stop();
    if (lane_.running()) node_.client.wind_down([this] { return lane_.step() == KV_OK; });
  }
  void release() { lane_.client().release_lane(lane_); }

  void answered(bool granted) {
    granted_ = granted;
    stage_ = Stage::kCall;
    poke();
  }

 private:
  enum class Stage { kIdle, kAsk, kCall, kCalling };
  enum class Kind { kRead, kWrite, kModify };

  void woken() override { poke(); }

  uint64_t step() override {
    const uint64_t next_ns = go_on();
    node_.client.notice();
    return next_ns;
  }

  uint64_t go_on() {
    if (stage_ == Stage::kIdle) {
      if (monotonic_ns() < rest_until_ns_) return rest_until_ns_;
      if (!bench_.may_begin() || !node_.client.begun()) return UINT64_MAX;
      draw();
    }
    if (stage_ == Stage::kAsk) return UINT64_MAX;
    int state = KV_PENDING;
    if (stage_ == Stage::kCall) {
      if (rests()) return rest_until_ns_;
      state = call();
    } else {
      state = lane_.step();
    }
    if (state != KV_OK) return std::min(lane_.executor().next_timer_ns(), lane_.deadline_ns());
    return ended();
  }

  bool rests() const { return monotonic_ns() < rest_until_ns_; }

  // ---- beginning ----

  void draw() {
    Random& random = schedule_.random();
    began_ns_ = schedule_.now_ns();
    keys_.clear();
    kind_ = Kind::kRead;
    const bool preloads = bench_.preloading();
    const uint64_t number = bench_.begun++;
    if (preloads) {
      keys_.push_back(number);
      kind_ = Kind::kWrite;
    } else {
      draw_operation(random);
    }
    if (kind_ == Kind::kWrite) {
      begin_write();
    } else {
      begin_read();
    }
  }

  void draw_operation(Random& random) {
    const CacheBenchOptions& options = bench_.options;
    uint64_t dice = random.below(1000);
    const auto falls_to = [&dice](uint64_t permille) {
      const bool falls = dice < permille;
      dice -= falls ? 0 : permille;
      return falls;
    };
    const bool reads = falls_to(options.read_permille);
    const bool scans = !reads && falls_to(options.scan_permille);
    const bool modifies = !reads && !scans && falls_to(options.modify_permille);
    const bool inserts = !reads && !scans && !modifies && falls_to(options.insert_permille);
    if (inserts) {
      keys_.push_back(bench_.keys_put++);
      bench_.ledger.add_key();
      kind_ = Kind::kWrite;
      return;
    }
    const uint64_t rank = bench_.zipf.draw(random);
    const uint64_t first = options.latest != 0 ? bench_.keys_put - 1 - rank : rank;
    const uint64_t count = scans ? 1 + random.below(kScanMax) : 1;
    for (uint64_t i = 0; i < count; ++i) keys_.push_back((first + i) % bench_.keys_put);
    kind_ = reads || scans ? Kind::kRead : modifies ? Kind::kModify : Kind::kWrite;
  }

  void begin_read() {
    bounds_.clear();
    for (const uint64_t key : keys_) bounds_.push_back(bench_.ledger.bound(key));
    writes_ = false;
    granted_ = false;
    stage_ = Stage::kCall;
    if (bench_.measuring) bench_.values_read += keys_.size();
    if (bench_.policy != Policy::kCentral && bench_.policy != Policy::kLease) return;
    serve_from_copies();
    missed_ = keys_;
    if (keys_.empty()) return;
    std::erase_if(missed_, [this](uint64_t key) { return !node_.copies.begin(key); });
    eras_.clear();
    for (const uint64_t key : missed_) eras_.push_back(node_.copies.era(key));
    granted_ = bench_.policy == Policy::kLease;
    if (bench_.policy != Policy::kCentral || missed_.empty()) return;
    stage_ = Stage::kAsk;
    bench_.manager->ask_to_copy(self_, missed_);
  }

  // What a rival has a copy of needs no call.
  void serve_from_copies() {
    size_t left = 0;
    uint64_t hit_ns = 0;
    for (size_t i = 0; i < keys_.size(); ++i) {
      uint64_t number = 0;
      if (node_.copies.find(keys_[i], schedule_.now_ns(), number)) {
        judge(number, bounds_[i]);
        hit_ns += bench_.hit_ns(bench_.value_bytes(keys_[i]));
        if (bench_.measuring) ++bench_.hits;
        last_read_ = keys_[i];
        continue;
      }
      keys_[left] = keys_[i];
      bounds_[left++] = bounds_[i];
    }
    keys_.resize(left);
    bounds_.resize(left);
    rest_until_ns_ = monotonic_ns() + hit_ns;
  }

  void begin_write() {
    writes_ = true;
    number_ = bench_.ledger.begin(schedule_.now_ns());
    stage_ = Stage::kCall;
    if (bench_.policy != Policy::kCentral) return;
    stage_ = Stage::kAsk;
    bench_.manager->ask_to_write(self_, keys_[0]);
  }

  // ---- calling ----

  int call() {
    stage_ = Stage::kCalling;
    if (keys_.empty()) return KV_OK;
    names_.clear();
    calls_.assign(keys_.size(), kv_call{});
    for (const uint64_t key : keys_) names_.push_back("key " + std::to_string(key));
    for (size_t i = 0; i < keys_.size(); ++i) {
      calls_[i].kind = writes_ ? KV_PUT : KV_GET;
      calls_[i].key = names_[i].data();
      calls_[i].key_bytes = names_[i].size();
    }
    if (writes_) {
      value_.assign(std::max<uint64_t>(bench_.value_bytes(keys_[0]), 8), 0);
      std::memcpy(value_.data(), &number_, 8);
      calls_[0].value = value_.data();
      calls_[0].value_bytes = value_.size();
    }
    // Between calls the lane is nobody's, as in a real client.
    KV_ASSERT(!lane_.taken.exchange(true));
    const uint64_t before = node_.own_hits();
    const int state = lane_.run(calls_.data(), uint32_t(calls_.size()), kTimeoutNs, true);
    hits_now_ = node_.own_hits() - before;
    return state;
  }

  // ---- ending ----

  uint64_t ended() {
    if (!keys_.empty()) {
      note_outcomes();
      release();
    }
    stage_ = Stage::kIdle;
    const uint64_t bytes = keys_.empty() ? 0 : bench_.value_bytes(keys_[0]);
    const uint64_t copying_ns = hits_now_ * bench_.hit_ns(bytes);
    if (bench_.measuring) bench_.hits += hits_now_;
    hits_now_ = 0;
    rest_until_ns_ = std::max(rest_until_ns_, monotonic_ns() + copying_ns);
    if (kind_ == Kind::kModify && !writes_) {
      if (keys_.empty()) keys_.push_back(last_read_);
      begin_write();
      return stage_ == Stage::kAsk ? UINT64_MAX : std::max(rest_until_ns_, monotonic_ns() + 1);
    }
    const uint64_t rest_ns = rest_until_ns_ - std::min(rest_until_ns_, monotonic_ns());
    bench_.note_done(schedule_.now_ns() - began_ns_ + rest_ns);
    return rest_until_ns_;
  }

  void note_outcomes() {
    for (size_t i = 0; i < calls_.size(); ++i) {
      const kv_call& call = calls_[i];
      // What is being put for the first time may not be there yet.
      if (call.status == KV_ABSENT && !writes_ && keys_[i] >= bench_.options.keys) {
        if (granted_) abandon_copy(keys_[i]);
        continue;
      }
      if (call.status != KV_OK) {
        bench_.violate("a call ended with status " + std::to_string(call.status));
      } else if (!writes_) {
        note_read(i);
      }
    }
    if (!writes_) {
      if (granted_) return;
      for (const uint64_t key : missed_) node_.copies.abandon(key);
      return;
    }
    bench_.ledger.end(keys_[0], number_, schedule_.now_ns());
    if (bench_.policy == Policy::kCentral) bench_.manager->written(self_, keys_[0]);
    // A writer reads its own writes.
    if (bench_.policy == Policy::kLease) node_.copies.drop(keys_[0]);
  }

  void note_read(size_t i) {
    uint64_t number = 0;
    std::memcpy(&number, calls_[i].data, 8);
    judge(number, bounds_[i]);
    if (bench_.policy == Policy::kCentral || bench_.policy == Policy::kLease) {
      node_.copies.seen(keys_[i], number);
    }
    if (!granted_) return;
    const auto missed = std::find(missed_.begin(), missed_.end(), keys_[i]);
    if (missed == missed_.end()) return;
    const bool leased = bench_.policy == Policy::kLease;
    const uint64_t until_ns = leased ? schedule_.now_ns() + bench_.options.lease_ns : UINT64_MAX;
    node_.copies.put(keys_[i], eras_[size_t(missed - missed_.begin())], number, until_ns);
  }

  void abandon_copy(uint64_t key) {
    if (std::find(missed_.begin(), missed_.end(), key) != missed_.end()) node_.copies.abandon(key);
  }

  void judge(uint64_t number, uint64_t bound) {
    if (!bench_.ledger.knows(number)) {
      bench_.violate("a value that nobody has written");
    } else if (bench_.ledger.is_stale(number, bound)) {
      if (bench_.policy != Policy::kLease) bench_.violate("a stale read");
      if (bench_.measuring) ++bench_.stale_reads;
    }
  }

  CacheBench& bench_;
  BenchNode& node_;
  const CopyManager::Asker self_;
  Lane& lane_;
  Stage stage_ = Stage::kIdle;
  Kind kind_ = Kind::kRead;
  bool writes_ = false;   // now
  bool granted_ = false;  // what is read now may be copied, as a rival has it
  uint64_t began_ns_ = 0;
  uint64_t rest_until_ns_ = 0;
  uint64_t number_ = 0;
  uint64_t last_read_ = 0;
  uint64_t hits_now_ = 0;
  std::vector<uint64_t> keys_;
  std::vector<uint64_t> bounds_;
  std::vector<uint64_t> missed_;  // of the keys, those to be copied
  std::vector<uint64_t> eras_;    // of these
  std::vector<std::string> names_;
  std::vector<kv_call> calls_;
  std::vector<uint8_t> value_;
};

// ---- running --------------------------------------------------------------------------------

Policy policy_of(const std::string& name) {
  for (size_t i = 0; i < kPolicies.size(); ++i) {
    if (kPolicies[i].name == name) return Policy(i);
  }
  return Policy::kNone;
}

MemoryNodeOptions node_options(const CacheBenchOptions& options) {
  MemoryNodeOptions node;
  uint64_t bytes = 0;
  for (const uint64_t size : options.sizes) bytes += size;
  const uint64_t operations = options.warmup_operations + options.measure_operations;
  const uint64_t keys = options.keys + operations * options.insert_permille / 1000;
  node.region_bytes = layout::round_up(
      kRegionBytesMin + kRegionShare * keys * bytes / options.sizes.size(), layout::kPageBytes);
  node.timing = options.timing;
  if (policy_of(options.policy) == Policy::kRegular) node.consistency = KV_REGULAR;
  return node;
}

CacheBench::CacheBench(const CacheBenchOptions& given, uint64_t seed)
    : options(given),
      policy(policy_of(given.policy)),
      schedule(seed),
      zipf(given.keys, given.zipf),
      ledger(given.keys),
      keys_put(given.keys),
      memory_(std::make_unique<MemoryNode>(schedule, 0, node_options(given), 0, nullptr)),
      mail_(schedule, given.mail) {
  const std::vector<Home> homes{{memory_->name(), [this] { return memory_->admit(); }}};
  const bool copies = policy == Policy::kCoherent || policy == Policy::kRegular;
  const uint64_t cache_bytes = copies ? options.cache_bytes : 0;
  for (uint32_t n = 0; n < options.compute_nodes; ++n) {
    nodes.push_back(std::make_unique<BenchNode>(schedule, homes, options, mail_, cache_bytes));
    for (uint32_t i = 0; i < options.lanes; ++i) {
      Status status = Status::kOk;
      Lane* lane = nodes[n]->client.client().acquire_lane(0, status);
      KV_ASSERT(lane != nullptr);
      lanes_.push_back(
          std::make_unique<BenchLane>(*this, *nodes[n], CopyManager::Asker{n, i}, *lane));
    }
    for (uint32_t i = 0; i < options.lanes; ++i) lanes_[n * options.lanes + i]->release();
  }
  manager = std::make_unique<CopyManager>(
      schedule, options.mail, options.manager_messages_per_s,
      [this](CopyManager::Asker asker, bool granted) {
        lanes_[asker.compute_node * options.lanes + asker.lane]->answered(granted);
      },
      [this](uint32_t node, uint64_t key) { nodes[node]->copies.drop(key); });
}

CacheBench::~CacheBench() {
  for (const auto& node : nodes) node->client.crash();
  lanes_.clear();
  for (const auto& node : nodes) {
    const OnHost scope(node->clock);
    node->client.client().close();
  }
  // Before the memory node, to which they are connected.
  nodes.clear();
}

void CacheBench::note_done(uint64_t took_ns) {
  ++done;
  if (measuring) latencies_ns_.push_back(took_ns);
}

CacheBench::Usage CacheBench::usage() {
  Usage now;
  now.at_ns = schedule.now_ns();
  now.verbs = memory_->fabric().counts().operations;
  now.nic_ns = memory_->fabric().nic().busy_ns();
  now.invalidations = manager->invalidations();
  now.messages = manager->messages();
  for (const auto& node : nodes) {
    kv_client_stats stats{};
    node->client.client().read_stats(stats);
    now.invalidations += stats.invalidations_sent;
    now.messages += stats.invalidations_sent + stats.invalidations_received;
  }
  return now;
}

bool CacheBench::run_until_done(uint64_t operations) {
  allowed = options.keys + operations;
  for (const auto& lane : lanes_) lane->poke();
  // The last ones may wait for long; the next stretch begins beside them.
  const uint64_t enough = allowed - std::min<uint64_t>(lanes_.size(), operations);
  while (done < enough && violation.empty()) {
    if (schedule.events() > options.events_max) violate("more events than are allowed");
    if (!schedule.run_next()) violate("nothing goes on");
  }
  return violation.empty();
}

// Until everybody is attached and may make copies.
void CacheBench::settle() {
  const uint64_t until_ns = schedule.now_ns() + kSettleNs;
  while (schedule.next_ns() < until_ns && schedule.run_next()) {
  }
}

CacheBenchResult CacheBench::run() {
  CacheBenchResult result;
  settle();
  if (run_until_done(0)) settle();
  if (run_until_done(options.warmup_operations)) {
    const Usage before = usage();
    const uint64_t done_before = done;
    measuring = true;
    latencies_ns_.reserve(options.measure_operations + lanes_.size());
    run_until_done(options.warmup_operations + options.measure_operations);
    const Usage after = usage();
    const double span_ns = double(std::max<uint64_t>(after.at_ns - before.at_ns, 1));
    result.operations = done - done_before;
    const double operations = double(std::max<uint64_t>(result.operations, 1));
    result.ops_per_s = double(result.operations) * 1e9 / span_ns;
    result.verbs_per_op = double(after.verbs - before.verbs) / operations;
    result.invalidations_per_op = double(after.invalidations - before.invalidations) / operations;
    result.messages_per_op = double(after.messages - before.messages) / operations;
    result.nic_busy = double(after.nic_ns - before.nic_ns) / span_ns;
    result.hit_ratio = values_read == 0 ? 0 : double(hits) / double(values_read);
  }
  result.stale_reads = stale_reads;
  result.violation = violation;
  result.events = schedule.events();
  if (latencies_ns_.empty()) return result;
  std::sort(latencies_ns_.begin(), latencies_ns_.end());
  const auto percentile_us = [this](uint64_t hundredth) {
    return double(latencies_ns_[(latencies_ns_.size() - 1) * hundredth / 100]) / 1e3;
  };
  result.p50_us = percentile_us(50);
  result.p99_us = percentile_us(99);
  return result;
}

}  // namespace

std::vector<CachePolicy> cache_policies() {
  return kPolicies;
}

std::string check_options(const CacheBenchOptions& options) {
  const bool exists =
      std::any_of(kPolicies.begin(), kPolicies.end(),
                  [&](const CachePolicy& policy) { return policy.name == options.policy; });
  if (!exists) return "there is no policy `" + options.policy + "`";
  if (options.compute_nodes > 64) return "the manager of `central` knows 64 compute nodes at most";
  if (options.zipf < 0 || options.zipf > 10) return "zipf is at least 0 and at most 10";
  if (options.sizes.empty()) return "sizes is empty";
  const uint64_t sum = options.read_permille + options.scan_permille + options.modify_permille +
                       options.insert_permille;
  if (sum > 1000) return "the operations are more than a thousand of a thousand";
  return "";
}

CacheBenchResult run_cache_bench(const CacheBenchOptions& options, uint64_t seed) {
  CacheBenchResult result;
  std::thread thread([&] {
    CacheBench bench(options, seed);
    result = bench.run();
  });
  thread.join();
  return result;
}

}  // namespace kvstore::sim
