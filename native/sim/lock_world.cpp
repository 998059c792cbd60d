#include "sim/lock_world.hpp"

#include <cstring>
#include <map>
#include <memory>
#include <thread>
#include <vector>

#include "base/variant.hpp"
#include "node/region.hpp"
#include "sim/lock_host.hpp"

namespace kvstore::sim {
namespace {

constexpr uint64_t kTickNs = 5 * kMillisecond;
constexpr uint64_t kSoonNs = 20'000;

class LockWorld {
 public:
  LockWorld(const LockWorldOptions& options, uint64_t seed)
      : options_(options),
        schedule_(seed),
        clock_(schedule_, 0, 0),
        at_the_node_(clock_),
        mail_(schedule_, options.mail),
        region_(make_region()),
        geometry_(format_region(region_->data(), region_->bytes(), {1, seed | 1, 0, 0, 200})),
        node_(schedule_, region_->data(), region_->bytes(), options.timing),
        registry_(region_->data(), geometry_),
        workload_{options_, LockLedger(options.locks), {}, node_, mail_, clock_, registry_},
        upkeep_(*this) {
    choose_names();
    upkeep_.poke();
    for (unsigned i = 0; i < options.clients; ++i) hosts_.push_back(new_host());
  }

  LockWorldResult run() {
    const uint64_t end_ns = schedule_.now_ns() + options_.limit_ns;
    while (!workload_.over() && schedule_.now_ns() < end_ns &&
           schedule_.events() < options_.events_max && workload_.ledger.violation().empty() &&
           schedule_.run_next()) {
      check_headers();
      if (schedule_.now_ns() >= doomed_at_ns_) {
        doomed_at_ns_ = UINT64_MAX;
        ++crashed_resetting_;
        replace(doomed_resetter_);
      }
      while (begun_seen_ < workload_.begun) {
        ++begun_seen_;
        draw_faults();
      }
      if (schedule_.now_ns() >= crash_at_ns_) {
        crash_at_ns_ = UINT64_MAX;
        ++crashes_;
        LockHost& victim = any_host();
        if (workload_.ledger.holds(victim.number())) ++crashed_holding_;
        replace(victim.number());
      }
      replace_cut_off();
    }
    return result();
  }

 private:
  // The node's epochs and leases.
  class Upkeep final : public Driver {
   public:
    explicit Upkeep(LockWorld& world)
        : Driver(world.schedule_, world.clock_, "the upkeep of a node with locks"), world_(world) {}

   private:
    uint64_t step() override {
      const Registry::Tick tick = world_.registry_.tick(world_.options_.lease_ns);
      for (const uint32_t registration : tick.silent) world_.fence(registration);
      return monotonic_ns() + kTickNs;
    }
    LockWorld& world_;
  };

  static std::unique_ptr<Region> make_region() {
    std::string error;
    auto region = Region::create(layout::kRegionBytesMin, false, error);
    KV_ASSERT(region != nullptr);
    return region;
  }

  // Names that do not share a lock.
  void choose_names() {
    std::vector<bool> taken(options_.shape.lock_count, false);
    for (unsigned i = 0; workload_.names.size() < options_.locks; ++i) {
      const std::string text = "lock " + std::to_string(i);
      const LockName name = make_lock_name(text.data(), text.size());
      const uint64_t number = name.number(options_.shape.lock_count);
      if (taken[number]) continue;
      taken[number] = true;
      workload_.names.push_back(name);
      epochs_seen_.push_back(0);
    }
  }

  int64_t drift() {
    const uint64_t width = uint64_t(2 * options_.drift_per_million_max + 1);
    return int64_t(schedule_.random().below(width)) - options_.drift_per_million_max;
  }
  std::unique_ptr<LockHost> new_host() {
    auto host = std::make_unique<LockHost>(schedule_, workload_, next_host_++, drift());
    host_of_[host->registration()] = host->number();
    return host;
  }
  LockHost& any_host() { return *hosts_[schedule_.random().below(hosts_.size())]; }

  void fence(uint32_t registration) {
    node_.fence(registration);
    if (!registry_.mark_fenced(registration, false)) return;
    ++fenced_;
    workload_.ledger.fenced(host_of_[registration]);
  }

  void draw_faults() {
    Random& random = schedule_.random();
    if (random.chance(options_.crashes_per_million) && crash_at_ns_ == UINT64_MAX) {
      crash_at_ns_ = schedule_.now_ns() + random.below(kSoonNs);
    }
    if (random.chance(options_.breaks_per_million)) {
      node_.break_connections(any_host().registration());
    }
    if (random.chance(options_.pauses_per_million)) {
      any_host().pause_until(schedule_.now_ns() + random.below(options_.pause_ns_max + 1));
      ++pauses_;
    }
  }

  // The dead stay: events that name them may still come.
  void replace(uint32_t number) {
    for (std::unique_ptr<LockHost>& host : hosts_) {
      if (host->number() != number) continue;
      host->crash();
      dead_.push_back(std::move(host));
      host = new_host();
      return;
    }
  }
  void replace_cut_off() {
    for (size_t i = 0; i < hosts_.size(); ++i) {
      if (!hosts_[i]->cut_off()) continue;
      // A paused host does not know yet that its locks are lost; only others' knowledge counts.
      replace(hosts_[i]->number());
    }
  }

  uint64_t word_of(const LockName& name, uint64_t offset) const {
    uint64_t table = 0;
    std::memcpy(&table, region_->data() + layout::kRootsOffset, 8);
    if (table == 0) return 0;
    const uint64_t at = table + layout::kLineBytes +
                        name.number(options_.shape.lock_count) * options_.shape.record_bytes();
    uint64_t word = 0;
    std::memcpy(&word, region_->data() + at + offset, 8);
    return word;
  }
  layout::LockHeader header(const LockName& name) const {
    return layout::LockHeader{word_of(name, 0)};
  }

  // Somebody has begun to reset a lock, or taken it up: it may crash at any step of that.
  void draw_crash_of_resetter(size_t lock) {
    const layout::LockReset now{word_of(workload_.names[lock], layout::kLockResetOffset)};
    if (now.epoch() == epochs_seen_[lock]) return;
    epochs_seen_[lock] = now.epoch();
    if (schedule_.random().below(100) >= options_.resetter_crashes_percent) return;
    constexpr uint64_t kWithinNs = 3 * kMillisecond;
    doomed_resetter_ = host_of_[now.owner()];
    doomed_at_ns_ = schedule_.now_ns() + schedule_.random().below(kWithinNs);
  }

  void check_headers() {
    // A place of each client that ever was, and what each of them may have lost on the way.
    const uint64_t places_max = next_host_ + breaks_max_;
    for (size_t lock = 0; lock < workload_.names.size(); ++lock) {
      const layout::LockHeader now = header(workload_.names[lock]);
      draw_crash_of_resetter(lock);
      if (now.exclusive() > now.size() || now.size() > places_max) {
        workload_.ledger.violate("a header counts " + std::to_string(now.exclusive()) +
                                 " writers among " + std::to_string(now.size()) + " requests");
      }
    }
  }

  bool is_faultless() const {
    return options_.crashes_per_million == 0 && options_.breaks_per_million == 0 &&
           options_.pauses_per_million == 0 && options_.timing.breaks_per_million == 0;
  }

  // Lets go of what nobody wants any more.
  void come_to_rest() {
    const uint64_t end_ns = schedule_.now_ns() + 2 * kSecond;
    while (schedule_.now_ns() < end_ns && schedule_.run_next()) {
    }
    for (const LockName& name : workload_.names) {
      const layout::LockHeader now = header(name);
      if (now.size() == 0 && now.exclusive() == 0 && !now.resetting()) continue;
      workload_.ledger.violate("a queue of " + std::to_string(now.size()) + " is left");
    }
  }

  std::string stuck() const {
    std::string text = "nothing happens;";
    for (const LockName& name : workload_.names) {
      const layout::LockHeader now = header(name);
      text += " head " + std::to_string(now.head()) + " size " + std::to_string(now.size()) +
              " writers " + std::to_string(now.exclusive()) + (now.resetting() ? " reset" : "");
    }
    for (const std::unique_ptr<LockHost>& host : hosts_) text += "; " + host->describe();
    return text;
  }

  LockWorldResult result() {
    LockWorldResult result;
    result.finished = workload_.over();
    result.virtual_ns = schedule_.now_ns();
    result.events = schedule_.events();
    if (result.finished && is_faultless()) come_to_rest();
    if (!result.finished && workload_.ledger.violation().empty()) workload_.ledger.violate(stuck());
    result.violation = workload_.ledger.violation();
    result.granted = workload_.granted;
    result.gave_up = workload_.gave_up;
    result.cancelled = workload_.cancelled;
    result.cancelled_too_late = workload_.cancelled_too_late;
    result.expired = workload_.expired;
    result.crashes = crashes_;
    result.crashed_holding = crashed_holding_;
    result.crashed_resetting = crashed_resetting_;
    result.pauses = pauses_;
    result.fenced = fenced_;
    result.longest_wait_ns = workload_.longest_wait_ns;
    result.digest = workload_.digest;
    result.verbs = node_.counts().operations;
    for (const auto* group : {&hosts_, &dead_}) {
      for (const std::unique_ptr<LockHost>& host : *group) {
        result.resets += host->counts().resets;
        result.looks += host->counts().looks;
        result.found_by_look += host->counts().found_by_look;
        result.grants_sent += host->counts().grants_sent;
      }
    }
    return result;
  }

  const LockWorldOptions options_;
  Schedule schedule_;
  HostClock clock_;
  const OnHost at_the_node_;  // wherever no other clock is
  SimMail mail_;
  std::unique_ptr<Region> region_;
  layout::Geometry geometry_;
  SimNode node_;
  Registry registry_;
  LockWorkload workload_;
  Upkeep upkeep_;
  std::map<uint32_t, uint32_t> host_of_;  // by registration
  uint32_t next_host_ = 0;
  std::vector<std::unique_ptr<LockHost>> hosts_;
  std::vector<std::unique_ptr<LockHost>> dead_;
  const uint64_t breaks_max_ = 1000;
  uint64_t begun_seen_ = 0;
  uint64_t crash_at_ns_ = UINT64_MAX;
  std::vector<uint64_t> epochs_seen_;
  uint32_t doomed_resetter_ = 0;
  uint64_t doomed_at_ns_ = UINT64_MAX;
  uint64_t crashed_resetting_ = 0;
  uint64_t crashes_ = 0;
  uint64_t crashed_holding_ = 0;
  uint64_t pauses_ = 0;
  uint64_t fenced_ = 0;
};

}  // namespace

LockWorldResult run_lock_world(const LockWorldOptions& options, uint64_t seed) {
  LockWorldResult result;
  std::thread thread([&] {
#ifdef KVSTORE_SIMULATION
    switches.variants = options.variants;
#endif
    result = LockWorld(options, seed).run();
  });
  thread.join();
  return result;
}

}  // namespace kvstore::sim
