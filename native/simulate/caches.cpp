// kvstore_simulate_caches: reads one job from standard input and measures a way to keep copies of
// values in a simulated cluster, one row of JSON for each seed.
//
// A job is lines of `name=value`: those that --help prints, the network's parameters as
// `kvstore_simulate --parameters` prints them, and seeds=FIRST-LAST. --policies prints which ways
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

#include "sim/cache_bench.hpp"
#include "sim/parameters.hpp"

namespace kvstore::sim {
namespace {

struct Job {
  CacheBenchOptions options;
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
  uint64_t CacheBenchOptions::* place;
};
constexpr uint64_t kBillion = 1'000'000'000;
constexpr Setting kSettings[] = {
    {"compute_nodes", "compute nodes", 1, 64, 1, &CacheBenchOptions::compute_nodes},
    {"lanes", "operations under way in each", 1, 64, 1, &CacheBenchOptions::lanes},
    {"keys", "different keys", 1, 10'000'000, 1, &CacheBenchOptions::keys},
    {"read_permille", "of a thousand operations: read", 0, 1000, 1,
     &CacheBenchOptions::read_permille},
    {"scan_permille", "read 1 to 100 neighbours in one batch", 0, 1000, 1,
     &CacheBenchOptions::scan_permille},
    {"modify_permille", "read a value, then replace it", 0, 1000, 1,
     &CacheBenchOptions::modify_permille},
    {"insert_permille", "put a new key; what is left replaces values", 0, 1000, 1,
     &CacheBenchOptions::insert_permille},
    {"latest", "1: what was put last is read most", 0, 1, 1, &CacheBenchOptions::latest},
    {"cache_mib", "MiB of each compute node, for copies", 1, 1 << 16, uint64_t{1} << 20,
     &CacheBenchOptions::cache_bytes},
    {"manager_messages_per_s", "of `central`", 1, kBillion, 1,
     &CacheBenchOptions::manager_messages_per_s},
    {"lease_us", "of `lease`", 1, kBillion, 1000, &CacheBenchOptions::lease_ns},
    {"hit_ns", "of a lane, for each read from a copy, beside its bytes", 1, kBillion, 1,
     &CacheBenchOptions::hit_ns},
    {"hit_bytes_per_us", "that a lane copies", 1, kBillion, 1,
     &CacheBenchOptions::hit_bytes_per_us},
    {"warmup_operations", "before it is measured", 0, kBillion, 1,
     &CacheBenchOptions::warmup_operations},
    {"measure_operations", "that are measured", 1, kBillion, 1,
     &CacheBenchOptions::measure_operations},
};

bool parse(const std::string& text, uint64_t least, uint64_t most, uint64_t& value) {
  const auto [at, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && at == text.data() + text.size() && value >= least && value <= most;
}

// Bytes with commas between them.
bool parse_sizes(const std::string& text, std::vector<uint64_t>& sizes) {
  constexpr uint64_t kBytesMost = 4 << 20;
  sizes.clear();
  for (size_t at = 0; at <= text.size();) {
    const size_t comma = std::min(text.find(',', at), text.size());
    uint64_t bytes = 0;
    if (!parse(text.substr(at, comma - at), 8, kBytesMost, bytes)) return false;
    sizes.push_back(bytes);
    at = comma + 1;
  }
  return true;
}

std::string take_line(const std::string& line, Job& job) {
  const size_t equals = line.find('=');
  if (equals == std::string::npos) return "`" + line + "` is not name=value";
  const std::string name = line.substr(0, equals);
  const std::string value = line.substr(equals + 1);
  if (name == "policy") {
    job.options.policy = value;
    return "";
  }
  if (name == "scenario") return "";  // the runner's, for its own use
  if (name == "zipf") {
    char* end = nullptr;
    job.options.zipf = std::strtod(value.c_str(), &end);
    return *end == 0 && !value.empty() ? "" : "zipf is `" + value + "`, which is no number";
  }
  if (name == "sizes") {
    const bool good = parse_sizes(value, job.options.sizes);
    return good ? "" : "sizes is `" + value + "`; it may be numbers from 8 to 4194304";
  }
  if (name == "message_ns") {
    const bool good = parse(value, 1, kBillion, job.options.mail.delay_ns_min);
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
    const CacheBenchResult result = run_cache_bench(job.options, seed);
    const double wall_s = std::chrono::duration<double>(Clock::now() - begin).count();
    std::printf("{\"seed\": %" PRIu64
                ", \"ok\": %s, \"violation\": \"%s\", \"operations\": %" PRIu64
                ", \"events\": %" PRIu64 ", \"stale_reads\": %" PRIu64,
                seed, result.good() ? "true" : "false", result.violation.c_str(), result.operations,
                result.events, result.stale_reads);
    const std::pair<const char*, double> figures[] = {
        {"ops_per_s", result.ops_per_s},
        {"p50_us", result.p50_us},
        {"p99_us", result.p99_us},
        {"verbs_per_op", result.verbs_per_op},
        {"hit_ratio", result.hit_ratio},
        {"invalidations_per_op", result.invalidations_per_op},
        {"messages_per_op", result.messages_per_op},
        {"nic_busy", result.nic_busy},
        {"wall_s", wall_s},
    };
    for (const auto& [name, figure] : figures) std::printf(", \"%s\": %.6g", name, figure);
    std::printf("}\n");
    std::fflush(stdout);
  }
}

void print_policies() {
  for (const CachePolicy& policy : cache_policies()) {
    std::printf("{\"name\": \"%s\", \"description\": \"%s\"}\n", policy.name.c_str(),
                policy.description.c_str());
  }
}

void print_help() {
  for (const Setting& setting : kSettings) std::printf("%s  %s\n", setting.name, setting.help);
  std::printf(
      "policy  one that --policies prints\nzipf  exponent\n"
      "sizes  bytes of values, with commas between them\nmessage_ns  one way, at least\n");
}

}  // namespace
}  // namespace kvstore::sim

int main(int count, char** arguments) {
  using namespace kvstore::sim;
  if (count == 2 && std::strcmp(arguments[1], "--policies") == 0) {
    print_policies();
    return 0;
  }
  if (count == 2 && std::strcmp(arguments[1], "--help") == 0) {
    print_help();
    return 0;
  }
  Job job;
  const std::string wrong = count == 1 ? read_job(job) : "a job comes on standard input";
  if (!wrong.empty()) {
    std::fprintf(stderr, "kvstore_simulate_caches: %s\n", wrong.c_str());
    return 2;
  }
  run(job);
  std::fflush(stdout);
  std::_Exit(0);
}
