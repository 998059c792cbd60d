// kvstore_simulate_caches: measures a way to keep copies of values in a simulated cluster; see
// simulate/comparison.hpp.

#include <algorithm>

#include "sim/cache_bench.hpp"
#include "simulate/comparison.hpp"

namespace kvstore::sim {
namespace {

constexpr uint64_t kBillion = 1'000'000'000;
constexpr Setting<CacheBenchOptions> kSettings[] = {
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

// Bytes with commas between them.
std::string parse_sizes(const std::string& text, std::vector<uint64_t>& sizes) {
  constexpr uint64_t kBytesMost = 4 << 20;
  sizes.clear();
  for (size_t at = 0; at <= text.size();) {
    const size_t comma = std::min(text.find(',', at), text.size());
    uint64_t bytes = 0;
    const std::string wrong =
        parse_number("sizes", text.substr(at, comma - at), 8, kBytesMost, bytes);
    if (!wrong.empty()) return wrong;
    sizes.push_back(bytes);
    at = comma + 1;
  }
  return "";
}

bool take_sizes(const std::string& name, const std::string& value, CacheBenchOptions& options,
                std::string& wrong) {
  if (name != "sizes") return false;
  wrong = parse_sizes(value, options.sizes);
  return true;
}

ComparisonRow measure(const CacheBenchOptions& options, uint64_t seed) {
  const CacheBenchResult result = run_cache_bench(options, seed);
  return {result.violation,
          result.operations,
          result.events,
          {
              {"stale_reads", double(result.stale_reads)},
              {"ops_per_s", result.ops_per_s},
              {"p50_us", result.p50_us},
              {"p99_us", result.p99_us},
              {"verbs_per_op", result.verbs_per_op},
              {"hit_ratio", result.hit_ratio},
              {"invalidations_per_op", result.invalidations_per_op},
              {"messages_per_op", result.messages_per_op},
              {"nic_busy", result.nic_busy},
          }};
}

void print_policies() {
  for (const CachePolicy& policy : cache_policies()) {
    std::printf("{\"name\": \"%s\", \"description\": \"%s\"}\n", policy.name.c_str(),
                policy.description.c_str());
  }
}

constexpr Comparison<CacheBenchOptions> kComparison = {
    .program = "kvstore_simulate_caches",
    .subject = "policy",
    .chosen = &CacheBenchOptions::policy,
    .list_flag = "--policies",
    .print_list = print_policies,
    .settings = kSettings,
    .more_help = "sizes  bytes of values, with commas between them\n",
    .take_other = take_sizes,
    .measure = measure,
};

}  // namespace
}  // namespace kvstore::sim

int main(int count, char** arguments) {
  return kvstore::sim::compare(kvstore::sim::kComparison, count, arguments);
}
