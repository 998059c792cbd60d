#include "sim/lock_bench.hpp"

#include <algorithm>
#include <memory>
#include <mutex>
#include <thread>

#include "base/variant.hpp"
#include "lock/baselines/rival.hpp"
#include "lock/space.hpp"
#include "sim/host.hpp"
#include "sim/lock_bench_node.hpp"
#include "sim/lock_waits.hpp"
#include "sim/zipf.hpp"

namespace kvstore::sim {
namespace {

using rivals::Message;
using rivals::Rival;

// The store's own lock: a compute node's clients are one client of the store, or each is one.
constexpr const char* kOwn = "kvstore";
constexpr const char* kOwnFlat = "kvstore-flat";
constexpr uint64_t kLeaseNs = 3600 * kSecond;
constexpr uint64_t kDrainNs = 10 * kSecond;
constexpr uint64_t kTimelineNs = kMillisecond;
// Events of the bench itself, behind all numbers of parcels.
constexpr uint64_t kKillEvent = UINT64_MAX;
constexpr uint64_t kFenceEvent = UINT64_MAX - 1;

const rivals::Kind* kind_of(const std::string& name) {
  for (const rivals::Kind* kind : rivals::kKinds) {
    if (name == kind->name) return kind;
  }
  return nullptr;
}

// What a compute node's clients have in common; with the flat form, what one client has.
class BenchHost;

// ---- the world ------------------------------------------------------------------------------

class BenchSeat;

class LockBench final : public Timed {
 public:
  LockBench(const LockBenchOptions& options, uint64_t seed);
  LockBenchResult run();

  // Messages of the published locks.
  void post(uint32_t to, const Message& message);
  void fire(uint64_t number) override;

  const LockBenchOptions options;
  const rivals::Kind* const kind;
  Schedule schedule;
  HostClock clock;
  SimMail mail;
  Zipf zipf;
  BenchLedger ledger;
  LockWaits waits;
  std::vector<std::unique_ptr<BenchNode>> nodes;
  bool stopping = false;
  uint64_t begin_ns = UINT64_MAX;  // of what is measured
  std::vector<uint64_t> latencies_ns;
  std::vector<uint64_t> releases_ns;
  std::vector<uint64_t> hot_acquires_ns;  // of the lock that is wanted most
  std::vector<double> timeline;           // operations in each kTimelineNs

 private:
  struct Parcel {
    uint32_t to = 0;
    Message message;
  };
  uint64_t verbs() const;
  uint64_t rereads() const;
  uint64_t found_by_look() const;
  void kill_first_node();
  void fence_first_node();
  bool run_until(uint64_t when_ns);
  void finish(LockBenchResult& result);
  void check_counters();

  std::vector<std::unique_ptr<BenchHost>> hosts_;
  std::vector<std::unique_ptr<BenchSeat>> seats_;
  std::vector<Parcel> parcels_;
  std::vector<uint64_t> free_parcels_;
  uint64_t posted_ = 0;
};

// Drives one coroutine over connections to all memory nodes.
class BenchDriver : public Driver {
 public:
  BenchDriver(LockBench& bench, uint32_t registration, uint32_t lane, const char* name)
      : Driver(bench.schedule, bench.clock, name), bench_(bench), remotes_(bench.nodes.size()) {
    for (size_t i = 0; i < remotes_.size(); ++i) {
      kv_connection* connection = bench.nodes[i]->fabric().connect(registration, lane, this);
      KV_ASSERT(connection != nullptr);
      remotes_[i] = std::make_unique<Remote>();
      remotes_[i]->bind(connection, &executor_);
      executor_.add_connection(connection);
    }
  }
  Remote& remote_at(size_t node) { return *remotes_[node]; }
  Executor& own_executor() { return executor_; }

 protected:
  // Whether the task is done.
  bool go_on(Task<Status>& task) {
    const auto done = [&task] { return task.done(); };
    return executor_.run(done, UINT64_MAX, false) == Executor::Outcome::kDone;
  }
  LockBench& bench_;
  Executor executor_;

 private:
  std::vector<std::unique_ptr<Remote>> remotes_;
};

// ---- the store's own lock -------------------------------------------------------------------

// A client of the store as far as locks need one: a lock space for each memory node, and the
// service that receives messages and does the upkeep.
class BenchClient final : public BenchDriver {
 public:
  BenchClient(LockBench& bench, const std::vector<uint32_t>& registrations)
      : BenchDriver(bench, registrations[0], 1000, "the locks of a client") {
    for (size_t i = 0; i < bench.nodes.size(); ++i) {
      BenchNode& node = *bench.nodes[i];
      const auto open_port = [this](std::string&) { return bench_.mail.open(this); };
      spaces_.push_back(
          std::make_unique<LockSpace>(open_port, registrations[i], 7, node.geometry(), kLeaseNs));
      spaces_[i]->set_alarm([this](uint64_t) { poke(); });
      spaces_[i]->table().want(node.shape());
      segments_.push_back(std::make_unique<SegmentTable>(node.geometry(), registrations[i]));
    }
  }
  void begin() {
    allowed_ = true;
    poke();
  }
  LockSpace& space(size_t node) { return *spaces_[node]; }
  uint64_t rereads() const {
    uint64_t sum = 0;
    for (const auto& space : spaces_) sum += space->counts().ring_looks.load();
    return sum;
  }
  uint64_t found_by_look() const {
    uint64_t sum = 0;
    for (const auto& space : spaces_) sum += space->counts().found_by_look.load();
    return sum;
  }
  bool is_open() const {
    return std::all_of(spaces_.begin(), spaces_.end(),
                       [](const auto& space) { return space->is_open(); });
  }
  bool is_idle() const { return !running_ || stopped(); }
  // A client of the same nodes has died.
  void note_death() {
    for (const auto& space : spaces_) space->note_deaths(1);
    poke();
  }

 private:
  uint64_t step() override {
    if (!allowed_) return UINT64_MAX;
    if (!begun_) {
      begun_ = running_ = true;
      const Executor::Scope scope(executor_);
      task_ = open_all();
    }
    for (const auto& space : spaces_) {
      space->renewed(monotonic_ns());
      space->receive();
    }
    for (;;) {
      if (running_) {
        if (!go_on(task_)) return executor_.next_timer_ns();
        KV_ASSERT(task_.take() == Status::kOk);
        task_ = Task<Status>();
        running_ = false;
      }
      uint64_t due_ns = UINT64_MAX;
      for (const auto& space : spaces_) due_ns = std::min(due_ns, space->due_ns());
      if (due_ns > monotonic_ns()) return due_ns;
      running_ = true;
      const Executor::Scope scope(executor_);
      task_ = tend_all();
    }
  }

  Task<Status> open_all() {
    for (size_t i = 0; i < spaces_.size(); ++i) {
      const Status s = co_await spaces_[i]->open(remote_at(i), *segments_[i]);
      if (s != Status::kOk) co_return s;
    }
    co_return Status::kOk;
  }
  Task<Status> tend_all() {
    for (size_t i = 0; i < spaces_.size(); ++i) {
      if (spaces_[i]->due_ns() > monotonic_ns()) continue;
      const Status s = co_await spaces_[i]->upkeep(remote_at(i), true);
      if (s != Status::kOk) co_return s;
    }
    co_return Status::kOk;
  }

  std::vector<std::unique_ptr<LockSpace>> spaces_;
  std::vector<std::unique_ptr<SegmentTable>> segments_;
  Task<Status> task_;
  bool allowed_ = false;
  bool begun_ = false;
  bool running_ = false;
};

class OwnLock final : public Rival, public LockWaiter {
 public:
  OwnLock(rivals::Seat& seat, BenchClient& client, uint64_t nodes)
      : seat_(seat), client_(client), nodes_(nodes) {}

  Task<Status> acquire(uint32_t lock, bool exclusive) override {
    LockSpace& space = client_.space(lock % nodes_);
    LocalLock& local = space.lock_at(uint32_t(lock / nodes_));
    request_.name = {0, lock};
    request_.exclusive = exclusive;
    request_.waiter = this;
    seat_.gate.close();
    LocalLock::Turn turn = local.request(request_);
    while (turn != LocalLock::Turn::kGranted) {
      if (turn == LocalLock::Turn::kFailed) co_return request_.failure;
      if (turn == LocalLock::Turn::kEnter) {
        const Status s = co_await space.enter(seat_.remote(lock), local, exclusive);
        if (s != Status::kOk) co_return s;
      } else {
        co_await seat_.gate;
        seat_.gate.close();
      }
      turn = local.look(request_);
    }
    co_return Status::kOk;
  }

  Task<Status> release(uint32_t lock, bool) override {
    LockSpace& space = client_.space(lock % nodes_);
    LocalLock& local = space.lock_at(uint32_t(lock / nodes_));
    if (local.release(request_) != LocalLock::Turn::kLeave) co_return Status::kOk;
    co_return co_await space.leave(seat_.remote(lock), local, request_.place_exclusive);
  }

  void woken() override {
    seat_.gate.open(seat_.executor());
    seat_.wake();
  }

 private:
  rivals::Seat& seat_;
  BenchClient& client_;
  const uint64_t nodes_;
  LockRequest request_;
};

// ---- hosts and seats ------------------------------------------------------------------------

class BenchHost {
 public:
  explicit BenchHost(LockBench& bench) {
    if (bench.kind != nullptr) {
      if (bench.kind->share != nullptr) shared = bench.kind->share();
      return;
    }
    for (const auto& node : bench.nodes) {
      Token token;
      registrations.push_back(node->registry().admit("simulated", KV_FABRIC_TCP, token));
      KV_ASSERT(registrations.back() != 0);
      node->registry().connected(registrations.back(), KV_FABRIC_TCP, 0, -1);
    }
    client = std::make_unique<BenchClient>(bench, registrations);
  }
  std::unique_ptr<rivals::Shared> shared;
  std::vector<uint32_t> registrations;  // at each node
  std::unique_ptr<BenchClient> client;
};

class BenchSeat final : public BenchDriver, public rivals::Seat {
 public:
  BenchSeat(LockBench& bench, BenchHost& host, uint32_t number)
      : BenchDriver(bench, number + 1, 0, "a client that uses locks"),
        number_(number),
        compute_node_(uint32_t(number / bench.options.clients)) {
    if (bench.kind != nullptr) {
      lock_ = bench.kind->make(*this, host.shared.get());
    } else {
      lock_ = std::make_unique<OwnLock>(*this, *host.client, bench.nodes.size());
    }
    // Clients do not begin in step.
    schedule_.after(schedule_.random().below(20'000), *this, 0);
  }

  uint32_t number() const override { return number_; }
  uint32_t compute_node() const override { return compute_node_; }
  Remote& remote(uint32_t lock) override { return remote_at(lock % bench_.nodes.size()); }
  uint64_t offset(uint32_t lock) const override {
    return bench_.nodes[lock % bench_.nodes.size()]->offset(lock / bench_.nodes.size());
  }
  Executor& executor() override { return executor_; }
  uint64_t random_below(uint64_t bound) override { return schedule_.random().below(bound); }
  void send(uint32_t to, const Message& message) override { bench_.post(to, message); }
  void wake() override { poke(); }
  void receive(const Message& message) {
    lock_->receive(message);
    poke();
  }

  void begin() {
    allowed_ = true;
    poke();
  }
  bool is_done() const { return (begun_ && !running_) || stopped(); }
  uint64_t operations() const { return operations_; }
  uint64_t rereads() const { return lock_->rereads(); }
  // It has been given up: what it held, and what it waited for, is no longer its own.
  void bury() {
    if (wants_) bench_.waits.withdrew(wanted_, number_);
    if (holds_) bench_.waits.released(wanted_, number_);
    if (holds_) bench_.ledger.died(wanted_, exclusive_, counter());
  }

 private:
  uint64_t step() override {
    if (!allowed_ || is_done()) return UINT64_MAX;
    if (!begun_) {
      begun_ = running_ = true;
      const Executor::Scope scope(executor_);
      task_ = work();
    }
    if (!go_on(task_)) return executor_.next_timer_ns();
    const Status status = task_.take();
    if (status != Status::kOk)
      bench_.ledger.violate("a lock failed: " + std::to_string(int(status)));
    task_ = Task<Status>();
    running_ = false;
    return UINT64_MAX;
  }

  uint64_t draw_lock() {
    const LockBenchOptions& options = bench_.options;
    const uint64_t lock = bench_.zipf.draw(schedule_.random());
    if (options.locality_percent == 0) return lock;
    if (schedule_.random().below(100) >= options.locality_percent) return lock;
    const uint64_t own = lock - lock % options.compute_nodes + compute_node_;
    return own < options.locks ? own : compute_node_;
  }

  Task<Status> work() {
    const bool only_writers = bench_.kind != nullptr && bench_.kind->exclusive_only;
    while (!bench_.stopping) {
      const uint32_t lock = uint32_t(draw_lock());
      const bool exclusive =
          only_writers || schedule_.random().below(100) >= bench_.options.read_percent;
      const uint64_t asked_ns = schedule_.now_ns();
      bench_.waits.asked(lock, number_, exclusive, asked_ns);
      wanted_ = lock;
      exclusive_ = exclusive;
      wants_ = true;
      if (const Status s = co_await lock_->acquire(lock, exclusive); s != Status::kOk) co_return s;
      wants_ = false;
      holds_ = true;
      const uint64_t granted_ns = schedule_.now_ns();
      bench_.ledger.granted(lock, exclusive);
      bench_.waits.granted(lock, number_, granted_ns);
      for (uint64_t i = 0; i < bench_.options.accesses; ++i) {
        if (const Status s = co_await access(lock, exclusive); s != Status::kOk) co_return s;
      }
      holds_ = false;
      bench_.ledger.released(lock, exclusive);
      bench_.waits.released(lock, number_);
      const uint64_t released_ns = schedule_.now_ns();
      if (const Status s = co_await lock_->release(lock, exclusive); s != Status::kOk) co_return s;
      note(lock, asked_ns, granted_ns, released_ns);
    }
    co_return Status::kOk;
  }

  Task<Status> access(uint32_t lock, bool exclusive) {
    const BenchNode& node = *bench_.nodes[lock % bench_.nodes.size()];
    const uint64_t at = node.counter_offset(lock / bench_.nodes.size());
    const uint64_t writers = bench_.ledger.count(lock);
    uint64_t word = writers;
    kv_op op[1] = {exclusive ? write_op(at, &word, 8) : read_op(at, &word, 8)};
    const uint32_t posted = co_await remote(lock).batch(op);
    if (word != writers) {
      bench_.ledger.violate("lock " + std::to_string(lock) +
                            ": a reader found the write of number " + std::to_string(word) +
                            " of " + std::to_string(writers) + " writers");
    }
    co_return from_fabric(posted);
  }

  uint64_t counter() const {
    return bench_.nodes[wanted_ % bench_.nodes.size()]->counter(wanted_ / bench_.nodes.size());
  }

  void note(uint64_t lock, uint64_t asked_ns, uint64_t granted_ns, uint64_t released_ns) {
    const uint64_t now_ns = schedule_.now_ns();
    if (now_ns < bench_.begin_ns || bench_.stopping) return;
    ++operations_;
    if (lock == 0) bench_.hot_acquires_ns.push_back(granted_ns - asked_ns);
    bench_.latencies_ns.push_back(now_ns - asked_ns);
    bench_.releases_ns.push_back(now_ns - released_ns);
    const uint64_t slot = (now_ns - bench_.begin_ns) / kTimelineNs;
    if (slot < bench_.timeline.size()) ++bench_.timeline[slot];
  }

  const uint32_t number_;
  const uint32_t compute_node_;
  std::unique_ptr<Rival> lock_;
  Task<Status> task_;
  bool allowed_ = false;
  bool begun_ = false;
  bool running_ = false;
  uint64_t operations_ = 0;
  // The lock that it has asked for, or holds.
  uint64_t wanted_ = 0;
  bool exclusive_ = false;
  bool wants_ = false;
  bool holds_ = false;
};

// ---- running --------------------------------------------------------------------------------

LockBench::LockBench(const LockBenchOptions& given, uint64_t seed)
    : options(given),
      kind(kind_of(given.lock)),
      schedule(seed),
      clock(schedule, 0, 0),
      mail(schedule, given.mail),
      zipf(given.locks, given.zipf),
      ledger(given.locks),
      waits(given.locks) {
  const OnHost scope(clock);
  const bool flat = given.lock == kOwnFlat;
  const uint64_t places = flat ? given.compute_nodes * given.clients : given.compute_nodes;
  // A client has a place for its writers and one for its readers.
  const uint64_t places_a_lock = flat ? places : 2 * places;
  const uint64_t fitting = std::max(layout::kLockRingDefault, std::bit_ceil(places_a_lock));
  const uint64_t ring = given.ring != 0 ? given.ring : fitting;
  for (uint64_t i = 0; i < given.memory_nodes; ++i) {
    nodes.push_back(std::make_unique<BenchNode>(schedule, given, kind, ring));
  }
  const uint64_t clients = given.compute_nodes * given.clients;
  for (uint64_t i = 0; i < places; ++i) hosts_.push_back(std::make_unique<BenchHost>(*this));
  for (uint32_t i = 0; i < clients; ++i) {
    BenchHost& host = *hosts_[flat ? i : i / given.clients];
    seats_.push_back(std::make_unique<BenchSeat>(*this, host, i));
  }
}

void LockBench::post(uint32_t to, const Message& message) {
  ++posted_;
  uint64_t number = parcels_.size();
  if (free_parcels_.empty()) {
    parcels_.push_back({});
  } else {
    number = free_parcels_.back();
    free_parcels_.pop_back();
  }
  parcels_[number] = {to, message};
  Random& random = schedule.random();
  schedule.after(options.mail.delay_ns_min + random.below(options.mail.delay_ns_spread + 1), *this,
                 number);
}

void LockBench::fire(uint64_t number) {
  if (number == kKillEvent) return kill_first_node();
  if (number == kFenceEvent) return fence_first_node();
  const Parcel parcel = parcels_[number];
  free_parcels_.push_back(number);
  const OnHost scope(clock);
  seats_[parcel.to]->receive(parcel.message);
}

uint64_t LockBench::verbs() const {
  uint64_t sum = 0;
  for (const auto& node : nodes) sum += node->fabric().counts().operations;
  return sum;
}

uint64_t LockBench::rereads() const {
  uint64_t sum = 0;
  for (const auto& seat : seats_) sum += seat->rereads();
  for (const auto& host : hosts_) sum += host->client ? host->client->rereads() : 0;
  return sum;
}

uint64_t LockBench::found_by_look() const {
  uint64_t sum = 0;
  for (const auto& host : hosts_) sum += host->client ? host->client->found_by_look() : 0;
  return sum;
}

// The first compute node dies where it stands, and keeps all that it holds and waits for.
void LockBench::kill_first_node() {
  hosts_[0]->client->stop();
  for (uint64_t i = 0; i < options.clients; ++i) seats_[i]->stop();
  schedule.after(options.lease_ns, *this, kFenceEvent);
}

// Its lease has ended: the nodes give it up, and the others hear of it. A lease is longer than any
// verb of it can have been under way.
void LockBench::fence_first_node() {
  const OnHost scope(clock);
  for (size_t i = 0; i < nodes.size(); ++i) {
    nodes[i]->registry().mark_fenced(hosts_[0]->registrations[i], false);
  }
  for (uint64_t i = 0; i < options.clients; ++i) seats_[i]->bury();
  for (size_t i = 1; i < hosts_.size(); ++i) hosts_[i]->client->note_death();
}

// False if something is wrong.
bool LockBench::run_until(uint64_t when_ns) {
  while (schedule.next_ns() < when_ns) {
    if (!ledger.violation().empty()) return false;
    if (schedule.events() > options.events_max) {
      ledger.violate("more events than are allowed");
      return false;
    }
    schedule.run_next();
  }
  return true;
}

void LockBench::check_counters() {
  if (options.accesses == 0) return;
  for (uint64_t lock = 0; lock < options.locks; ++lock) {
    const uint64_t counted = nodes[lock % nodes.size()]->counter(lock / nodes.size());
    if (counted == ledger.count(lock)) continue;
    ledger.violate("the counter of lock " + std::to_string(lock) + " says " +
                   std::to_string(counted) + " after " + std::to_string(ledger.count(lock)) +
                   " writers");
  }
}

LockBenchResult LockBench::run() {
  LockBenchResult result;
  // One after the other: the first one makes the tables.
  for (const auto& host : hosts_) {
    if (!host->client) continue;
    host->client->begin();
    while (!host->client->is_open() && schedule.run_next()) {
    }
  }
  for (const auto& seat : seats_) seat->begin();
  const uint64_t start_ns = schedule.now_ns() + options.warmup_ns;
  const uint64_t end_ns = start_ns + options.measure_ns;
  if (run_until(start_ns)) {
    begin_ns = start_ns;
    waits.begin(start_ns);
    timeline.assign(options.measure_ns / kTimelineNs, 0);
    if (options.kill_ns > 0) schedule.after(options.kill_ns, *this, kKillEvent);
    const uint64_t rereads_before = rereads();
    const uint64_t found_before = found_by_look();
    const uint64_t verbs_before = verbs();
    const uint64_t messages_before = posted_ + mail.counts().sent;
    const uint64_t busy_before_ns = nodes[0]->fabric().nic().busy_ns();
    if (run_until(end_ns)) {
      const double operations = double(std::max<size_t>(latencies_ns.size(), 1));
      result.verbs_per_op = double(verbs() - verbs_before) / operations;
      result.messages_per_op = double(posted_ + mail.counts().sent - messages_before) / operations;
      result.rereads_per_op = double(rereads() - rereads_before) / operations;
      result.found_by_look_per_op = double(found_by_look() - found_before) / operations;
      result.nic_busy =
          double(nodes[0]->fabric().nic().busy_ns() - busy_before_ns) / double(options.measure_ns);
    }
  }
  stopping = true;
  finish(result);
  return result;
}

void LockBench::finish(LockBenchResult& result) {
  const auto all_done = [this] {
    return std::all_of(seats_.begin(), seats_.end(), [](const auto& s) { return s->is_done(); }) &&
           std::all_of(hosts_.begin(), hosts_.end(),
                       [](const auto& h) { return !h->client || h->client->is_idle(); });
  };
  const uint64_t limit_ns = schedule.now_ns() + kDrainNs;
  bool moves = true;
  while (moves && ledger.violation().empty() && !all_done() && schedule.now_ns() < limit_ns) {
    for (unsigned i = 0; i < 1000 && moves; ++i) moves = schedule.run_next();
  }
  if (ledger.violation().empty() && !all_done()) ledger.violate("a client waits for ever");
  if (ledger.violation().empty()) check_counters();
  result.violation = ledger.violation();
  result.operations = latencies_ns.size();
  result.events = schedule.events();
  result.ops_per_s = double(latencies_ns.size()) * 1e9 / double(options.measure_ns);
  if (latencies_ns.empty()) return;
  result.timeline = timeline;
  for (std::vector<uint64_t>* times : {&latencies_ns, &releases_ns, &hot_acquires_ns}) {
    std::sort(times->begin(), times->end());
  }
  const auto quantile_us = [](const std::vector<uint64_t>& times, uint64_t thousandth) {
    return double(times[(times.size() - 1) * thousandth / 1000]) / 1e3;
  };
  result.p50_us = quantile_us(latencies_ns, 500);
  result.p99_us = quantile_us(latencies_ns, 990);
  result.p999_us = quantile_us(latencies_ns, 999);
  result.release_p50_us = quantile_us(releases_ns, 500);
  result.hot_share = double(hot_acquires_ns.size()) / double(latencies_ns.size());
  for (uint64_t i = 0; i < kHotQuantiles.size() && !hot_acquires_ns.empty(); ++i) {
    result.hot_acquire_us.push_back(quantile_us(hot_acquires_ns, kHotQuantiles[i]));
  }
  const LockWaits::Worst worst = waits.worst();
  result.wait_ratio = worst.ratio;
  result.wait_position = worst.position;
  result.wait_us = double(worst.wait_ns) / 1e3;
  result.handover_us = double(worst.handover_ns) / 1e3;
  double sum = 0, squares = 0;
  for (const auto& seat : seats_) {
    sum += double(seat->operations());
    squares += double(seat->operations()) * double(seat->operations());
  }
  result.jain = sum * sum / (double(seats_.size()) * squares);
}

}  // namespace

std::vector<BenchLock> bench_locks() {
  std::vector<BenchLock> locks = {{kOwn, "the store's lock, two places a compute node", false},
                                  {kOwnFlat, "the same, one place a client", false}};
  for (const rivals::Kind* kind : rivals::kKinds) {
    locks.push_back({kind->name, kind->description, kind->masked});
  }
  return locks;
}

std::string check_options(const LockBenchOptions& options) {
  const std::vector<BenchLock> known = bench_locks();
  const bool exists = std::any_of(known.begin(), known.end(),
                                  [&](const BenchLock& lock) { return lock.name == options.lock; });
  if (!exists) return "there is no lock `" + options.lock + "`";
  const uint64_t clients = options.compute_nodes * options.clients;
  if (options.lock == kOwnFlat && clients > layout::kLockRingMax) {
    return "the flat form has at most " + std::to_string(layout::kLockRingMax) + " clients";
  }
  if (options.lock == "declock" && options.compute_nodes > 32) {
    return "a queue of declock holds at most 32 compute nodes";
  }
  if (options.zipf < 0 || options.zipf >= 1) return "zipf is at least 0 and below 1";
  if (options.ring != 0 && (!std::has_single_bit(options.ring) || options.ring < 8)) {
    return "ring is a power of two and at least 8";
  }
  if (options.kill_ns > 0 && (options.lock != kOwn || options.compute_nodes < 2)) {
    return std::string("only ") + kOwn + ", on 2 compute nodes and more, survives one of them";
  }
  return "";
}

// Of a world that stands still, tasks are left over that nobody can end.
static void keep_for_ever(std::unique_ptr<LockBench> bench) {
  static std::mutex mutex;
  static auto* const kept = new std::vector<LockBench*>;
  const std::lock_guard lock(mutex);
  kept->push_back(bench.release());
}

LockBenchResult run_lock_bench(const LockBenchOptions& options, uint64_t seed) {
  LockBenchResult result;
  std::thread thread([&] {
#ifdef KVSTORE_SIMULATION
    switches.variants = options.variants;
#endif
    auto bench = std::make_unique<LockBench>(options, seed);
    result = bench->run();
    if (!result.good() || options.kill_ns > 0) keep_for_ever(std::move(bench));
  });
  thread.join();
  return result;
}

}  // namespace kvstore::sim
