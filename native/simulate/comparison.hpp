// A program that measures one of several subjects, as a lock or a policy, in a simulated cluster:
// its job from standard input, one row of JSON for each seed.
//
// A job is lines of `name=value`: those that --help prints, the network's parameters as
// `kvstore_simulate --parameters` prints them, and seeds=FIRST-LAST.
//
// Exit status: 0 whatever was measured, 2 if the job is wrong, with one line on standard error.
#pragma once

#include <chrono>
#include <cinttypes>
#include <cstdlib>
#include <span>
#include <utility>
#include <vector>

#include "sim/heap.hpp"
#include "sim/parameters.hpp"
#include "simulate/job.hpp"

namespace kvstore::sim {

template <typename Options>
struct Setting {
  const char* name;
  const char* help;
  uint64_t least;
  uint64_t most;
  uint64_t scale;
  uint64_t Options::* place;
};

struct ComparisonRow {
  std::string violation;
  uint64_t operations;
  uint64_t events;
  std::vector<std::pair<const char*, double>> figures;
};

// What differs between these programs. Options have `mail` and `timing`, and check_options().
template <typename Options>
struct Comparison {
  const char* program;
  const char* subject;  // the name of the line that chooses it
  std::string Options::* chosen;
  const char* list_flag;  // prints the subjects
  void (*print_list)();
  std::span<const Setting<Options>> settings;
  const char* more_help;  // lines that `settings` does not have
  bool (*take_other)(const std::string& name, const std::string& value, Options& options,
                     std::string& wrong);
  ComparisonRow (*measure)(const Options& options, uint64_t seed);
};

template <typename Options>
std::string take_line(const Comparison<Options>& comparison, const std::string& name,
                      const std::string& value, Options& options, WorldOptions& world,
                      Seeds& seeds) {
  if (name == "scenario") return "";  // the runner's, for its own use
  if (name == "seeds") return parse_seeds(value, seeds);
  if (name == comparison.subject) {
    options.*comparison.chosen = value;
    return "";
  }
  if (name == "zipf") {
    char* end = nullptr;
    options.zipf = std::strtod(value.c_str(), &end);
    return *end == 0 && !value.empty() ? "" : "zipf is `" + value + "`, which is no number";
  }
  if (name == "message_ns") {
    return parse_number(name, value, 1, 1'000'000'000, options.mail.delay_ns_min);
  }
  for (const Setting<Options>& setting : comparison.settings) {
    if (name != setting.name) continue;
    uint64_t number = 0;
    std::string wrong = parse_number(name, value, setting.least, setting.most, number);
    if (wrong.empty()) options.*setting.place = number * setting.scale;
    return wrong;
  }
  std::string wrong;
  if (comparison.take_other != nullptr && comparison.take_other(name, value, options, wrong)) {
    return wrong;
  }
  return set_parameter(world, name, value);
}

template <typename Options>
void run(const Comparison<Options>& comparison, const Options& options, const Seeds& seeds) {
  using Clock = std::chrono::steady_clock;
  for (uint64_t seed = seeds.first;; ++seed) {
    const Clock::time_point begin = Clock::now();
    const ComparisonRow row = comparison.measure(options, seed);
    const double wall_s = std::chrono::duration<double>(Clock::now() - begin).count();
    std::printf("{\"seed\": %" PRIu64 ", \"ok\": %s, \"violation\": %s, \"operations\": %" PRIu64
                ", \"events\": %" PRIu64,
                seed, row.violation.empty() ? "true" : "false", quoted(row.violation).c_str(),
                row.operations, row.events);
    for (const auto& [name, figure] : row.figures) std::printf(", \"%s\": %.9g", name, figure);
    std::printf(", \"wall_s\": %.6g}\n", wall_s);
    std::fflush(stdout);
    if (seed == seeds.last) return;
  }
}

template <typename Options>
void print_help(const Comparison<Options>& comparison) {
  for (const Setting<Options>& setting : comparison.settings) {
    std::printf("%s  %s\n", setting.name, setting.help);
  }
  std::printf("%s  one that %s prints\nzipf  exponent\nmessage_ns  one way, at least\n%s",
              comparison.subject, comparison.list_flag, comparison.more_help);
}

template <typename Options>
int compare(const Comparison<Options>& comparison, int count, char** arguments) {
  keep_memory();
  const std::string flag = count == 2 ? arguments[1] : "";
  if (flag == comparison.list_flag) {
    comparison.print_list();
    return 0;
  }
  if (flag == "--help") {
    print_help(comparison);
    return 0;
  }
  Options options;
  WorldOptions world;  // for its network only
  Seeds seeds;
  options.mail = {1'600, 200, 0, 0, 0, 0};
  world.node.timing.late_per_million = 0;
  std::string wrong = count == 1 ? "" : "a job comes on standard input";
  if (wrong.empty()) {
    wrong = read_job([&](const std::string& name, const std::string& value) {
      return take_line(comparison, name, value, options, world, seeds);
    });
  }
  options.timing = world.node.timing;
  if (wrong.empty()) wrong = check_options(options);
  if (!wrong.empty()) {
    std::fprintf(stderr, "%s: %s\n", comparison.program, wrong.c_str());
    return 2;
  }
  run(comparison, options, seeds);
  // A world that was given up may still be running, on what a return from here would take away.
  std::fflush(stdout);
  std::_Exit(0);
}

}  // namespace kvstore::sim
