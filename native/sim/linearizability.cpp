#include "sim/linearizability.hpp"

#include <algorithm>
#include <map>
#include <tuple>
#include <unordered_set>

#include "base/assert.hpp"
#include "sim/register_model.hpp"

namespace kvstore::sim {
namespace {

constexpr size_t kNone = SIZE_MAX;

// A set of operations, numbered in the order of their calls. At any moment of a search nearly all
// numbers below some point are in it and none far above, so a copy of what is between identifies
// it.
class PlacedSet {
 public:
  explicit PlacedSet(size_t count) : words_(count / 64 + 1, 0) {}

  void flip(size_t number) {
    const size_t word = number / 64;
    words_[word] ^= uint64_t{1} << number % 64;
    first_ = std::min(first_, word);
    end_ = std::max(end_, word + 1);
    while (first_ < end_ && words_[first_] == UINT64_MAX) ++first_;
    while (end_ > first_ && words_[end_ - 1] == 0) --end_;
  }
  size_t first() const { return first_; }
  std::span<const uint64_t> window() const { return {&words_[first_], end_ - first_}; }
  std::span<const uint64_t> all() const { return words_; }

 private:
  std::vector<uint64_t> words_;
  size_t first_ = 0;
  size_t end_ = 0;
};

// A call or a return, in a list in the order of time from which placed operations are taken out.
struct Entry {
  size_t operation;
  size_t match;  // of a call: its return, kNone if the outcome is unknown; of a return: kNone
  bool is_call;
  size_t before;
  size_t after;
};

// Which operations have been placed, and what they left.
struct Configuration {
  size_t first = 0;              // all words of the returned operations before it are full
  std::vector<uint64_t> placed;  // from there on; then the words of those without an outcome
  RegisterState state;
  bool operator==(const Configuration&) const = default;
};

struct ConfigurationHash {
  size_t operator()(const Configuration& configuration) const {
    uint64_t hash = configuration.state.value * 0x9e3779b97f4a7c15ull + configuration.state.version;
    hash += configuration.first << 32;
    for (const uint64_t word : configuration.placed) {
      hash = (hash ^ word) * 0xff51afd7ed558ccdull;
      hash ^= hash >> 32;
    }
    return size_t(hash);
  }
};

bool constrains(const Operation& operation) {
  if (operation.outcome == OperationOutcome::kNoEffect) return false;
  const bool reads =
      operation.kind == OperationKind::kGet || operation.kind == OperationKind::kContains;
  return !reads || operation.outcome != OperationOutcome::kUnknown;
}

class Search {
 public:
  Search(std::span<const Operation> history, const LinearizabilityOptions& options)
      : history_(history),
        options_(options),
        model_(options.may_vanish),
        numbers_(history.size(), 0),
        returned_(history.size()),
        unknown_(history.size()) {
    link();
  }

  LinearizabilityResult run() {
    size_t at = first();
    while (open_ > 0) {
      // An operation that has returned stands in the list with its return, so the list ends only
      // when nothing is open.
      KV_ASSERT(at != kEnd);
      const Entry& entry = entries_[at];
      if (entry.is_call) {
        at = try_to_place(at) ? first() : entries_[at].after;
      } else if (!take_back(at)) {
        return violation();
      }
      if (tried_.size() > options_.configurations_max) return undecided();
    }
    return finish(Verdict::kLinearizable);
  }

 private:
  static constexpr size_t kHead = 0;
  static constexpr size_t kEnd = 1;

  struct Step {
    size_t call;
    RegisterState before;
  };

  size_t first() const { return entries_[kHead].after; }

  // Of two events at the same instant the call comes first: operations that touch are concurrent.
  void link() {
    struct Event {
      uint64_t when_ns;
      bool is_return;
      size_t operation;
    };
    std::vector<Event> events;
    for (size_t i = 0; i < history_.size(); ++i) {
      if (!constrains(history_[i])) continue;
      events.push_back({history_[i].called_ns, false, i});
      if (history_[i].outcome == OperationOutcome::kUnknown) continue;
      KV_ASSERT(history_[i].returned_ns >= history_[i].called_ns);
      events.push_back({history_[i].returned_ns, true, i});
      ++open_;
    }
    std::sort(events.begin(), events.end(), [](const Event& a, const Event& b) {
      return std::tie(a.when_ns, a.is_return, a.operation) <
             std::tie(b.when_ns, b.is_return, b.operation);
    });
    entries_.push_back({kNone, kNone, false, kNone, kEnd});
    entries_.push_back({kNone, kNone, false, kHead, kNone});
    std::vector<size_t> calls(history_.size(), kNone);
    size_t returned_count = 0;
    for (const Event& event : events) {
      const size_t at = entries_.size();
      entries_.push_back({event.operation, kNone, !event.is_return, kNone, kNone});
      insert_before_end(at);
      if (event.is_return) {
        entries_[calls[event.operation]].match = at;
      } else {
        calls[event.operation] = at;
        const bool unknown = history_[event.operation].outcome == OperationOutcome::kUnknown;
        numbers_[event.operation] = unknown ? unknown_count_++ : returned_count++;
      }
    }
  }

  void insert_before_end(size_t at) {
    entries_[at].before = entries_[kEnd].before;
    entries_[at].after = kEnd;
    relink(at);
  }
  void unlink(size_t at) {
    entries_[entries_[at].before].after = entries_[at].after;
    entries_[entries_[at].after].before = entries_[at].before;
  }
  void relink(size_t at) {
    entries_[entries_[at].before].after = at;
    entries_[entries_[at].after].before = at;
  }

  void flip(size_t operation) {
    const bool unknown = history_[operation].outcome == OperationOutcome::kUnknown;
    (unknown ? unknown_ : returned_).flip(numbers_[operation]);
  }

  // False if the search has been here before.
  bool is_new() {
    Configuration here;
    here.first = returned_.first();
    here.state = state_;
    here.placed.assign(returned_.window().begin(), returned_.window().end());
    const std::span<const uint64_t> unknown = unknown_.all().first(unknown_count_ / 64 + 1);
    here.placed.insert(here.placed.end(), unknown.begin(), unknown.end());
    return tried_.insert(std::move(here)).second;
  }

  bool try_to_place(size_t call) {
    const Entry& entry = entries_[call];
    const RegisterState before = state_;
    if (!model_.step(history_[entry.operation], state_)) {
      state_ = before;
      return false;
    }
    flip(entry.operation);
    if (!is_new()) {
      flip(entry.operation);
      state_ = before;
      return false;
    }
    steps_.push_back({call, before});
    unlink(call);
    if (entry.match != kNone) {
      unlink(entry.match);
      --open_;
    }
    return true;
  }

  // An operation returned before it could be placed: the last one placed was not the right one.
  // Moves `at` to the call behind that; false if there was none.
  bool take_back(size_t& at) {
    if (steps_.size() >= deepest_) {
      deepest_ = steps_.size();
      stuck_ = entries_[at].operation;
      stuck_state_ = state_;
    }
    if (steps_.empty()) return false;
    const Step step = steps_.back();
    steps_.pop_back();
    const Entry& entry = entries_[step.call];
    if (entry.match != kNone) {
      relink(entry.match);
      ++open_;
    }
    relink(step.call);
    flip(entry.operation);
    state_ = step.before;
    at = entries_[step.call].after;
    return true;
  }

  LinearizabilityResult finish(Verdict verdict) const {
    LinearizabilityResult result;
    result.verdict = verdict;
    result.key = history_.empty() ? 0 : history_[0].key;
    result.configurations = tried_.size();
    return result;
  }
  LinearizabilityResult violation() const {
    LinearizabilityResult result = finish(Verdict::kViolation);
    result.operation = stuck_;
    result.reason = describe(history_[stuck_]);
    result.reason += ": no order explains it; the best one places ";
    result.reason += std::to_string(deepest_);
    result.reason += " operations and leaves ";
    result.reason += stuck_state_.value == 0 ? "the key absent" : "value ";
    if (stuck_state_.value != 0) result.reason += std::to_string(stuck_state_.value);
    return result;
  }
  LinearizabilityResult undecided() const {
    LinearizabilityResult result = finish(Verdict::kUndecided);
    result.reason = "more than ";
    result.reason += std::to_string(options_.configurations_max);
    result.reason += " configurations";
    return result;
  }

  const std::span<const Operation> history_;
  const LinearizabilityOptions options_;
  const RegisterModel model_;
  std::vector<Entry> entries_;
  size_t open_ = 0;              // operations that have returned and are not placed
  std::vector<size_t> numbers_;  // of each operation in its set
  PlacedSet returned_;
  PlacedSet unknown_;
  size_t unknown_count_ = 0;
  RegisterState state_;
  std::vector<Step> steps_;
  std::unordered_set<Configuration, ConfigurationHash> tried_;
  size_t deepest_ = 0;
  size_t stuck_ = 0;
  RegisterState stuck_state_;
};

}  // namespace

LinearizabilityResult check_key(std::span<const Operation> history,
                                const LinearizabilityOptions& options) {
  return Search(history, options).run();
}

LinearizabilityResult check_history(std::span<const Operation> history,
                                    const LinearizabilityOptions& options) {
  std::map<uint64_t, std::vector<size_t>> keys;
  for (size_t i = 0; i < history.size(); ++i) keys[history[i].key].push_back(i);
  LinearizabilityResult worst;
  uint64_t configurations = 0;
  for (const auto& [key, places] : keys) {
    std::vector<Operation> of_key;
    for (const size_t place : places) of_key.push_back(history[place]);
    LinearizabilityResult result = check_key(of_key, options);
    configurations += result.configurations;
    if (result.verdict == Verdict::kLinearizable) continue;
    if (worst.verdict == Verdict::kLinearizable || result.verdict == Verdict::kViolation) {
      worst = result;
      worst.operation = places[result.operation];
    }
    if (worst.verdict == Verdict::kViolation) break;
  }
  worst.configurations = configurations;
  return worst;
}

std::string describe(const Operation& operation) {
  static constexpr const char* kKinds[] = {"get", "contains", "put", "delete", "wipe"};
  static constexpr const char* kConditions[] = {"", " if absent", " if version "};
  static constexpr const char* kOutcomes[] = {"ok",     "absent",    "condition failed",
                                              "fenced", "no effect", "unknown"};
  std::string line = "client ";
  line += std::to_string(operation.client);
  line += ' ';
  line += kKinds[size_t(operation.kind)];
  line += " key ";
  line += std::to_string(operation.key);
  if (operation.kind == OperationKind::kPut)
    line.append(" := ").append(std::to_string(operation.value));
  line += kConditions[size_t(operation.condition)];
  if (operation.condition == OperationCondition::kIfVersion) {
    line += std::to_string(operation.if_version);
  }
  if (operation.fence != 0) line.append(" fence ").append(std::to_string(operation.fence));
  line += " [" + std::to_string(operation.called_ns) + ", ";
  line += operation.returned_ns == kNeverReturned ? "never" : std::to_string(operation.returned_ns);
  line += "] -> ";
  line += kOutcomes[size_t(operation.outcome)];
  if (operation.kind == OperationKind::kGet && operation.outcome == OperationOutcome::kOk) {
    line.append(" ").append(std::to_string(operation.value));
  }
  if (operation.version != 0) line.append(" version ").append(std::to_string(operation.version));
  return line;
}

}  // namespace kvstore::sim
