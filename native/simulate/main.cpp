// kvstore_simulate: reads one job from standard input and runs its worlds, one row for each seed.
//
// A job is lines of `name=value`: parameters of the world (`--parameters` prints them), and
//   scenario=NAME    returned in each row
//   seeds=FIRST-LAST both included
//   variants=A,B     broken variants of the store, rare=A,B rare paths that are open; `--switches`
//                    prints both lists
//   trace=KEY        before each row, lines of text: what concerns the key; `all` for every key
// A row is one line of JSON on standard output, written before the next seed begins: if a seed
// ends the process, by a broken assertion, it is the one after the last row.
//
// Exit status: 0 whatever the worlds did, 2 if the job is wrong, with one line on standard error.

#include <algorithm>
#include <chrono>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <string>
#include <utility>
#include <vector>

#include "sim/heap.hpp"
#include "sim/parameters.hpp"
#include "sim/switch_names.hpp"
#include "simulate/job.hpp"

namespace kvstore::sim {
namespace {

using Clock = std::chrono::steady_clock;

struct Job {
  WorldOptions options;
  std::string scenario;
  bool traced = false;
  uint64_t traced_key = kEveryKey;
  Seeds seeds;
};

bool parse_trace(const std::string& text, Job& job) {
  job.traced = true;
  char rest = 0;
  return text == "all" || std::sscanf(text.c_str(), "%" SCNu64 "%c", &job.traced_key, &rest) == 1;
}

// Returns what is wrong with the line, or an empty string.
std::string take_line(const std::string& name, const std::string& value, Job& job) {
  if (name == "scenario") {
    job.scenario = value;
    return "";
  }
  if (name == "seeds") return parse_seeds(value, job.seeds);
  if (name == "variants") return read_switches(variant_names(), value, job.options.variants);
  if (name == "rare") return read_switches(rare_path_names(), value, job.options.rare);
  if (name == "trace") {
    return parse_trace(value, job) ? "" : "trace is `" + value + "`; it may be a key or `all`";
  }
  return set_parameter(job.options, name, value);
}

std::string take_job(Job& job) {
  const std::string wrong = read_job([&](const std::string& name, const std::string& value) {
    return take_line(name, value, job);
  });
  return wrong.empty() ? check_parameters(job.options) : wrong;
}

std::string violation_of(const WorldResult& result) {
  if (!result.violation.empty()) return result.violation;
  const LinearizabilityResult& history = result.linearizability;
  if (history.verdict == Verdict::kViolation) return "not linearizable: " + history.reason;
  if (history.verdict == Verdict::kUndecided) {
    return "undecided: the history of key " + std::to_string(history.key) + " has too many orders";
  }
  if (!result.finished) return "stuck: not all operations returned in the time allowed";
  return "";
}

void print_measured(const WorldResult& result) {
  const Measured& measured = result.measured;
  std::vector<uint64_t> latencies_ns;
  for (const Operation& operation : result.history) {
    if (operation.called_ns < measured.begin_ns || operation.called_ns > measured.end_ns) continue;
    if (operation.returned_ns == kNeverReturned) continue;
    latencies_ns.push_back(operation.returned_ns - operation.called_ns);
  }
  std::sort(latencies_ns.begin(), latencies_ns.end());
  const auto percentile_us = [&](uint64_t thousandth) {
    const size_t count = latencies_ns.size();
    return count == 0 ? 0.0 : double(latencies_ns[(count - 1) * thousandth / 1000]) / 1e3;
  };
  const double seconds = double(measured.end_ns - measured.begin_ns) / 1e9;
  const double operations = double(std::max<uint64_t>(measured.operations, 1));
  const std::pair<const char*, double> figures[] = {
      {"ops_per_s", seconds > 0 ? double(measured.operations) / seconds : 0},
      {"p50_us", percentile_us(500)},
      {"p99_us", percentile_us(990)},
      {"p999_us", percentile_us(999)},
      {"verbs_per_op", double(measured.verbs) / operations},
      {"nic_busy", measured.nic_busy},
      {"nic_blocked", measured.nic_blocked},
      {"processor_busy", measured.processor_busy},
  };
  for (const auto& [name, figure] : figures) std::printf(", \"%s\": %.6g", name, figure);
}

// Of the wall and of all threads of this process.
struct Spent {
  double wall_s = std::chrono::duration<double>(Clock::now().time_since_epoch()).count();
  double cpu_s = double(std::clock()) / CLOCKS_PER_SEC;
};

void print_row(const Job& job, uint64_t seed, const WorldResult& result, const Spent& begin) {
  const Spent end;
  const std::string violation = violation_of(result);
  std::printf("{\"scenario\": %s, \"seed\": %" PRIu64 ", \"ok\": %s, \"violation\": %s",
              quoted(job.scenario).c_str(), seed, violation.empty() ? "true" : "false",
              violation.empty() ? "null" : quoted(violation).c_str());
  const std::pair<const char*, uint64_t> counts[] = {
      {"operations", result.history.size()},
      {"verbs", result.verbs},
      {"events", result.events},
      {"unknown", result.unknown},
      {"breaks", result.breaks},
      {"crashes", result.crashes},
      {"pauses", result.pauses},
      {"leaves", result.leaves},
      {"partitions", result.partitions},
      {"power_losses", result.power_losses},
      {"damages", result.damages},
      {"attachments", result.attachments},
      {"costed", result.costed},
      {"fenced", result.fenced},
      {"swept", result.swept},
      {"orphans", result.orphans},
      {"torn", result.torn},
      {"cache_hits", result.cache_hits},
      {"cache_fills", result.cache_fills},
      {"cache_revoked", result.cache_revoked},
      {"invalidations", result.invalidations},
      {"invalidations_spared", result.invalidations_spared},
      {"writes_at_once", result.writes_at_once},
      {"cache_handed", result.cache_handed},
      {"leases_waited", result.leases_waited},
  };
  for (const auto& [name, count] : counts) std::printf(", \"%s\": %" PRIu64, name, count);
  print_measured(result);
  std::printf(", \"virtual_s\": %.9f, \"wall_s\": %.6f, \"cpu_s\": %.6f, \"digest\": \"%08" PRIx64
              "\"}\n",
              double(result.virtual_ns) / 1e9, end.wall_s - begin.wall_s, end.cpu_s - begin.cpu_s,
              result.digest);
  std::fflush(stdout);
}

Trace trace_of(const Job& job) {
  if (!job.traced) return {};
  return [key = job.traced_key](uint64_t now_ns, uint64_t of_key, const std::string& line) {
    // What no key explains is shown if it is a fault, not if it is a verb of the upkeep.
    const bool upkeep = line.starts_with("upkeep");
    if (key != kEveryKey && of_key != key && (of_key != kEveryKey || upkeep)) return;
    std::printf("%" PRIu64 " ns  %s\n", now_ns, line.c_str());
  };
}

void run(const Job& job) {
  for (uint64_t seed = job.seeds.first;; ++seed) {
    const Spent begin;
    const WorldResult result = run_world(job.options, seed, trace_of(job));
    print_row(job, seed, result, begin);
    if (seed == job.seeds.last) return;
  }
}

void print_parameters() {
  const WorldOptions defaults;
  std::printf("[");
  const char* separator = "";
  for (const Parameter& parameter : parameters()) {
    std::printf("%s\n{\"name\": %s, \"group\": %s, \"unit\": %s, \"least\": %" PRIu64
                ", \"most\": %" PRIu64 ", \"default\": %" PRIu64 ", \"help\": %s}",
                separator, quoted(parameter.name).c_str(), quoted(parameter.group).c_str(),
                quoted(parameter.unit).c_str(), parameter.least, parameter.most,
                parameter.get(defaults) / parameter.scale, quoted(parameter.help).c_str());
    separator = ",";
  }
  std::printf("\n]\n");
}

void print_switches() {
  for (const bool broken : {true, false}) {
    for (const SwitchName& one : broken ? variant_names() : rare_path_names()) {
      std::printf("{\"kind\": \"%s\", \"name\": %s, \"description\": %s}\n",
                  broken ? "variant" : "rare", quoted(one.name).c_str(),
                  quoted(one.description).c_str());
    }
  }
}

}  // namespace
}  // namespace kvstore::sim

int main(int count, char** arguments) {
  using namespace kvstore::sim;
  keep_memory();
  if (count == 2 && std::strcmp(arguments[1], "--parameters") == 0) {
    print_parameters();
    return 0;
  }
  if (count == 2 && std::strcmp(arguments[1], "--switches") == 0) {
    print_switches();
    return 0;
  }
  Job job;
  const std::string wrong =
      count == 1 ? take_job(job) : "it takes no arguments but --parameters; a job comes on stdin";
  if (!wrong.empty()) {
    std::fprintf(stderr, "kvstore_simulate: %s\n", wrong.c_str());
    return 2;
  }
  run(job);
  // A world that was given up may still be running, on what a return from here would take away.
  std::fflush(stdout);
  std::_Exit(0);
}
