// kvstore_simulate_locks: reads one job from standard input and measures a lock in a simulated
// cluster, one row of JSON for each seed.
//
// A job is lines of `name=value`: those that --help prints, the network's parameters as
// `kvstore_simulate --parameters` prints them, and seeds=FIRST-LAST. --locks prints which locks
// there are.
//
// Exit status: 0 whatever was measured, 2 if the job is wrong, with one line on standard error.

#include <charconv>
#include <chrono>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "sim/lock_bench.hpp"
#include "sim/parameters.hpp"

namespace kvstore::sim {
namespace {

struct Job {
  LockBenchOptions options;
  WorldOptions world;  // for its network only
  uint64_t first = 1;
  uint64_t last = 1;
};

struct Setting {
  const char* name;
  const char* help;
  uint64_t least;
  uint64_t most;
  uint64_t scale;
  uint64_t LockBenchOptions::* place;
};
constexpr Setting kSettings[] = {
    {"compute_nodes", "compute nodes", 1, 512, 1, &LockBenchOptions::compute_nodes},
    {"clients", "clients of each", 1, 1024, 1, &LockBenchOptions::clients},
    {"memory_nodes", "memory nodes", 1, 64, 1, &LockBenchOptions::memory_nodes},
    {"locks", "locks", 1, 10'000'000, 1, &LockBenchOptions::locks},
    {"read_percent", "readers of a hundred", 0, 100, 1, &LockBenchOptions::read_percent},
    {"accesses", "of 8 bytes while a lock is held", 0, 1000, 1, &LockBenchOptions::accesses},
    {"locality_percent", "of the compute node's own locks", 0, 100, 1,
     &LockBenchOptions::locality_percent},
    {"warmup_us", "before it is measured", 0, 60'000'000, 1000, &LockBenchOptions::warmup_ns},
    {"measure_us", "for so long", 1, 60'000'000, 1000, &LockBenchOptions::measure_ns},
};

bool parse(const std::string& text, uint64_t least, uint64_t most, uint64_t& value) {
  const auto [at, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && at == text.data() + text.size() && value >= least && value <= most;
}

std::string take_line(const std::string& line, Job& job) {
  const size_t equals = line.find('=');
  if (equals == std::string::npos) return "`" + line + "` is not name=value";
  const std::string name = line.substr(0, equals);
  const std::string value = line.substr(equals + 1);
  if (name == "lock") {
    job.options.lock = value;
    return "";
  }
  if (name == "scenario") return "";  // the runner's, for its own use
  if (name == "zipf") {
    char* end = nullptr;
    job.options.zipf = std::strtod(value.c_str(), &end);
    return *end == 0 && !value.empty() ? "" : "zipf is `" + value + "`, which is no number";
  }
  if (name == "message_ns") {
    const bool good = parse(value, 1, 1'000'000'000, job.options.mail.delay_ns_min);
    return good ? "" : "message_ns is `" + value + "`; it is at least 1";
  }
  if (name == "seeds") {
    const size_t dash = value.find('-');
    const bool good = dash != std::string::npos &&
                      parse(value.substr(0, dash), 0, UINT64_MAX - 1, job.first) &&
                      parse(value.substr(dash + 1), job.first, UINT64_MAX - 1, job.last);
    return good ? "" : "seeds is `" + value + "`; it may be FIRST-LAST";
  }
  for (const Setting& setting : kSettings) {
    if (name != setting.name) continue;
    uint64_t number = 0;
    if (!parse(value, setting.least, setting.most, number)) {
      return name + " is `" + value + "`; it may be " + std::to_string(setting.least) + " to " +
             std::to_string(setting.most);
    }
    job.options.*setting.place = number * setting.scale;
    return "";
  }
  return set_parameter(job.world, name, value);
}

std::string read_job(Job& job) {
  job.options.mail = {1'600, 200, 0, 0, 0, 0};
  job.world.node.timing.late_per_million = 0;
  char line[4096];
  while (std::fgets(line, sizeof line, stdin) != nullptr) {
    line[std::strcspn(line, "\r\n")] = 0;
    if (line[0] == 0) continue;
    const std::string wrong = take_line(line, job);
    if (!wrong.empty()) return wrong;
  }
  job.options.timing = job.world.node.timing;
  return check_options(job.options);
}

void run(const Job& job) {
  using Clock = std::chrono::steady_clock;
  for (uint64_t seed = job.first; seed <= job.last; ++seed) {
    const Clock::time_point begin = Clock::now();
    const LockBenchResult result = run_lock_bench(job.options, seed);
    const double wall_s = std::chrono::duration<double>(Clock::now() - begin).count();
    std::printf("{\"seed\": %" PRIu64
                ", \"ok\": %s, \"violation\": \"%s\", \"operations\": %" PRIu64
                ", \"events\": %" PRIu64,
                seed, result.good() ? "true" : "false", result.violation.c_str(), result.operations,
                result.events);
    const std::pair<const char*, double> figures[] = {
        {"ops_per_s", result.ops_per_s},
        {"p50_us", result.p50_us},
        {"p99_us", result.p99_us},
        {"p999_us", result.p999_us},
        {"jain", result.jain},
        {"verbs_per_op", result.verbs_per_op},
        {"messages_per_op", result.messages_per_op},
        {"nic_busy", result.nic_busy},
        {"hot_share", result.hot_share},
        {"wait_ratio", result.wait_ratio},
        {"wait_position", double(result.wait_position)},
        {"wait_us", result.wait_us},
        {"handover_us", result.handover_us},
        {"wall_s", wall_s},
    };
    for (const auto& [name, figure] : figures) std::printf(", \"%s\": %.6g", name, figure);
    std::printf("}\n");
    std::fflush(stdout);
  }
}

void print_locks() {
  for (const BenchLock& lock : bench_locks()) {
    std::printf("{\"name\": \"%s\", \"description\": \"%s\", \"masked\": %s}\n", lock.name.c_str(),
                lock.description.c_str(), lock.masked ? "true" : "false");
  }
}

void print_help() {
  for (const Setting& setting : kSettings) std::printf("%s  %s\n", setting.name, setting.help);
  std::printf("lock  one that --locks prints\nzipf  exponent\nmessage_ns  one way, at least\n");
}

}  // namespace
}  // namespace kvstore::sim

int main(int count, char** arguments) {
  using namespace kvstore::sim;
  if (count == 2 && std::strcmp(arguments[1], "--locks") == 0) {
    print_locks();
    return 0;
  }
  if (count == 2 && std::strcmp(arguments[1], "--help") == 0) {
    print_help();
    return 0;
  }
  Job job;
  const std::string wrong = count == 1 ? read_job(job) : "a job comes on standard input";
  if (!wrong.empty()) {
    std::fprintf(stderr, "kvstore_simulate_locks: %s\n", wrong.c_str());
    return 2;
  }
  run(job);
  std::fflush(stdout);
  std::_Exit(0);
}
