#include "sim/linearizability.hpp"

#include <algorithm>
#include <map>
#include <set>
#include <tuple>
#include <utility>

#include "base/assert.hpp"
#include "fabric/sim/schedule.hpp"
#include "sim/register_model.hpp"

namespace kvstore::sim {
namespace {

constexpr size_t kNone = SIZE_MAX;

// A call or a return, in a list in the order of time from which placed operations are taken out.
struct Entry {
  size_t operation;
  size_t match;  // of a call: its return, kNone if the outcome is unknown; of a return: kNone
  bool is_call;
  size_t before;
  size_t after;
};

// Which operations have been placed and what they left, in 128 bits: the exclusive or of a random
// word for each (Zobrist, "A New Hashing Method with Application for Game Playing", 1970). Two
// configurations of the millions of a search are taken for one with a probability below 2^-80.
struct Fingerprint {
  uint64_t low = 0;
  uint64_t high = 0;
  bool operator==(const Fingerprint&) const = default;
  void flip(const Fingerprint& other) {
    low ^= other.low;
    high ^= other.high;
  }
};

Fingerprint fingerprint_of(const RegisterState& state) {
  Fingerprint mixed{1, 2};
  for (const uint64_t word : {state.value, state.version, uint64_t(state.mortal), state.fence}) {
    mixed = {Random(mixed.low ^ word).next(), Random(mixed.high + word).next()};
  }
  return mixed;
}

// A set that only grows, in one piece of memory: searches of many configurations wait for memory
// more than for anything else.
class FingerprintSet {
 public:
  size_t size() const { return size_; }

  // False if it is there already.
  bool insert(Fingerprint fingerprint) {
    if (fingerprint == kFree) fingerprint.low = 1;
    if (2 * size_ >= places_.size()) grow();
    Fingerprint& place = find(fingerprint);
    if (place == fingerprint) return false;
    place = fingerprint;
    ++size_;
    return true;
  }

 private:
  static constexpr Fingerprint kFree{};
  static constexpr size_t kPlacesMin = 64;

  // Where it is, or the free place where it belongs. At least half of the places are free.
  Fingerprint& find(const Fingerprint& fingerprint) {
    size_t at = fingerprint.low & (places_.size() - 1);
    while (places_[at] != kFree && places_[at] != fingerprint) at = (at + 1) & (places_.size() - 1);
    return places_[at];
  }

  void grow() {
    const size_t count = std::max(kPlacesMin, 2 * places_.size());
    const std::vector<Fingerprint> before = std::exchange(places_, std::vector<Fingerprint>(count));
    for (const Fingerprint& fingerprint : before) {
      if (fingerprint != kFree) find(fingerprint) = fingerprint;
    }
  }

  std::vector<Fingerprint> places_;  // their number is a power of two
  size_t size_ = 0;
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
      : history_(history), options_(options), model_(options.may_vanish) {
    Random random(0);
    for (size_t i = 0; i < history.size(); ++i) words_.push_back({random.next(), random.next()});
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
    for (const Event& event : events) {
      const size_t at = entries_.size();
      entries_.push_back({event.operation, kNone, !event.is_return, kNone, kNone});
      insert_before_end(at);
      if (event.is_return) {
        entries_[calls[event.operation]].match = at;
      } else {
        calls[event.operation] = at;
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

  // False if the search has been here before.
  bool is_new() {
    Fingerprint here = placed_;
    here.flip(fingerprint_of(state_));
    return tried_.insert(here);
  }

  bool try_to_place(size_t call) {
    const Entry& entry = entries_[call];
    const RegisterState before = state_;
    if (!model_.step(history_[entry.operation], state_)) {
      state_ = before;
      return false;
    }
    placed_.flip(words_[entry.operation]);
    if (!is_new()) {
      placed_.flip(words_[entry.operation]);
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

  // A value is written once, so a get that fits does no harm where it is placed: what else could
  // have been placed there can be placed after it.
  bool was_right(const Operation& placed) const {
    return placed.kind == OperationKind::kGet && placed.outcome == OperationOutcome::kOk;
  }

  // An operation returned before it could be placed: the last one placed was not the right one, of
  // those that may have been wrong. Moves `at` to the call behind that; false if there was none.
  bool take_back(size_t& at) {
    if (steps_.size() >= deepest_) {
      deepest_ = steps_.size();
      stuck_ = entries_[at].operation;
      stuck_state_ = state_;
    }
    while (!steps_.empty()) {
      const Step step = steps_.back();
      steps_.pop_back();
      const Entry& entry = entries_[step.call];
      if (entry.match != kNone) {
        relink(entry.match);
        ++open_;
      }
      relink(step.call);
      placed_.flip(words_[entry.operation]);
      state_ = step.before;
      at = entries_[step.call].after;
      if (!was_right(history_[entry.operation])) return true;
    }
    return false;
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
  size_t open_ = 0;                 // operations that have returned and are not placed
  std::vector<Fingerprint> words_;  // of each operation
  Fingerprint placed_;
  RegisterState state_;
  std::vector<Step> steps_;
  FingerprintSet tried_;
  size_t deepest_ = 0;
  size_t stuck_ = 0;
  RegisterState stuck_state_;
};

// What was refused has only looked.
bool may_change(const Operation& operation) {
  const bool reads =
      operation.kind == OperationKind::kGet || operation.kind == OperationKind::kContains;
  return !reads && (operation.outcome == OperationOutcome::kOk ||
                    operation.outcome == OperationOutcome::kUnknown);
}

// The same operations with what reads have told of the versions of puts whose answers were lost. A
// condition on a version that stays unknown is taken to have held.
std::vector<Operation> with_versions(std::span<const Operation> history) {
  std::map<uint64_t, uint64_t> versions;  // by value
  std::set<uint64_t> known;
  std::vector<Operation> told(history.begin(), history.end());
  for (const Operation& one : told) {
    if (one.kind == OperationKind::kGet && one.value != 0) versions[one.value] = one.version;
  }
  for (Operation& one : told) {
    if (one.kind != OperationKind::kPut || !may_change(one)) continue;
    if (one.version == 0) one.version = versions[one.value];
    known.insert(one.version);
  }
  for (Operation& one : told) {
    const bool conditional = one.condition == OperationCondition::kIfVersion;
    if (conditional && !known.contains(one.if_version)) one.condition = OperationCondition::kNone;
  }
  return told;
}

// The same operations with reads of copied values that begin as early as the first put that was
// under way at their call: just before that what they return was current, if they are regular.
// Deletes and inserts end copies before they are seen.
std::vector<Operation> with_early_copies(std::span<const Operation> history) {
  std::vector<Operation> early(history.begin(), history.end());
  for (Operation& read : early) {
    if (!read.copied || read.outcome != OperationOutcome::kOk) continue;
    const uint64_t called_ns = read.called_ns;
    for (const Operation& write : history) {
      const bool replaces = write.kind == OperationKind::kPut && may_change(write);
      const bool under_way = replaces && write.returned_ns >= called_ns;
      if (under_way) read.called_ns = std::min(read.called_ns, write.called_ns);
    }
  }
  return early;
}

// Of those that `wanted` names.
template <class Wanted>
LinearizabilityResult check_some(std::span<const Operation> history,
                                 const LinearizabilityOptions& options, Wanted&& wanted) {
  std::vector<Operation> some;
  std::vector<size_t> places;
  for (size_t i = 0; i < history.size(); ++i) {
    if (!wanted(i)) continue;
    some.push_back(history[i]);
    places.push_back(i);
  }
  LinearizabilityResult result = Search(some, options).run();
  if (result.verdict == Verdict::kViolation) result.operation = places[result.operation];
  return result;
}

}  // namespace

LinearizabilityResult check_key(std::span<const Operation> history,
                                const LinearizabilityOptions& options) {
  LinearizabilityResult all = Search(history, options).run();
  if (!options.regular_copies || all.verdict == Verdict::kLinearizable) return all;
  // All in one order; and, since a write without an answer is under way for ever, each by itself.
  const std::vector<Operation> early = with_early_copies(history);
  LinearizabilityResult rest = check_some(early, options, [](size_t) { return true; });
  const std::vector<Operation> told = with_versions(history);
  for (size_t i = 0; i < told.size() && rest.verdict != Verdict::kViolation; ++i) {
    if (!told[i].copied) continue;
    const LinearizabilityResult alone =
        check_some(told, options, [&](size_t j) { return j == i || may_change(told[j]); });
    if (alone.verdict != Verdict::kLinearizable) rest = alone;
  }
  return rest;
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
