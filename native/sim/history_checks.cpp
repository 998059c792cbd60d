#include "sim/history_checks.hpp"

#include <algorithm>
#include <map>
#include <unordered_map>

namespace kvstore::sim {
namespace {

bool changes(const Operation& operation) {
  return operation.kind != OperationKind::kGet && operation.kind != OperationKind::kContains &&
         operation.outcome != OperationOutcome::kNoEffect &&
         operation.outcome != OperationOutcome::kConditionFailed &&
         operation.outcome != OperationOutcome::kFenced &&
         operation.outcome != OperationOutcome::kAbsent;
}

// What a client saw of a key.
struct Sighting {
  uint64_t value = 0;
  uint64_t seen_ns = 0;  // returned for the first time
  uint64_t gone_ns = kNeverReturned;
};

// Bounds.
struct Price {
  uint64_t reads;
  uint64_t writes;
  uint64_t atomics;
  uint64_t round_trips;
};

Price price_of(const OperationCost& cost) {
  const bool met = cost.outcome == OperationOutcome::kOk;
  switch (cost.kind) {
    case OperationKind::kGet:
    case OperationKind::kContains:
      return met ? Price{3, 0, 0, 2} : Price{6, 0, 0, 2};
    case OperationKind::kPut:
      if (!met) return {7, 2, 0, 3};
      return cost.inserted ? Price{7, 2, 2, 3} : Price{3, 2, 1, 3};
    default:
      // What has expired is deleted as well.
      return met ? Price{3, 0, 1, 3} : Price{6, 0, 1, 3};
  }
}

}  // namespace

std::string check_acknowledged(std::span<const Operation> history, std::span<const Operation> last,
                               bool may_vanish) {
  std::map<uint64_t, const Operation*> latest;  // acknowledged changes, by key
  for (const Operation& operation : history) {
    if (!changes(operation)) continue;
    if (operation.outcome == OperationOutcome::kUnknown) continue;
    const Operation*& known = latest[operation.key];
    if (known == nullptr || operation.called_ns > known->called_ns) known = &operation;
  }
  for (const Operation& read : last) {
    const auto found = latest.find(read.key);
    if (found == latest.end() || read.kind != OperationKind::kGet) continue;
    const Operation& change = *found->second;
    // Only a change that nothing else overlaps or follows can be told to be the last.
    const bool alone = std::none_of(history.begin(), history.end(), [&](const Operation& other) {
      return other.key == change.key && changes(other) && &other != &change &&
             other.returned_ns >= change.called_ns;
    });
    if (!alone || change.mortal) continue;
    const bool put = change.kind == OperationKind::kPut;
    if (read.outcome == OperationOutcome::kNoEffect) return "no answer at rest: " + describe(read);
    const bool seen = read.outcome == OperationOutcome::kOk && read.value == change.value;
    if (put && !seen && !(may_vanish && read.outcome == OperationOutcome::kAbsent)) {
      return "acknowledged write lost: " + describe(change) + ", at the end " + describe(read);
    }
    if (!put && read.outcome == OperationOutcome::kOk) {
      return "what was deleted is back: " + describe(change) + ", at the end " + describe(read);
    }
  }
  return {};
}

std::string check_agreement(std::span<const Operation> last) {
  std::map<uint64_t, const Operation*> first;
  for (const Operation& read : last) {
    const bool told =
        read.kind == OperationKind::kGet && read.outcome != OperationOutcome::kUnknown;
    if (!told || read.outcome == OperationOutcome::kNoEffect) continue;
    const Operation& other = *first.try_emplace(read.key, &read).first->second;
    if (read.outcome == other.outcome && read.value == other.value) continue;
    return "reads at rest differ: " + describe(other) + ", " + describe(read);
  }
  return {};
}

std::string check_expiry(std::span<const Operation> history, uint64_t slack_ns) {
  std::unordered_map<uint64_t, const Operation*> puts;  // with an end, by value
  for (const Operation& operation : history) {
    if (operation.kind == OperationKind::kPut && operation.mortal) {
      puts[operation.value] = &operation;
    }
  }
  // By client and key: the value that a get returned last, and when one found it gone after that.
  std::map<std::pair<uint32_t, uint64_t>, Sighting> sightings;
  for (const Operation& operation : history) {
    if (operation.kind != OperationKind::kGet) continue;
    Sighting& sighting = sightings[{operation.client, operation.key}];
    if (operation.outcome == OperationOutcome::kAbsent) {
      const bool after = sighting.value != 0 && operation.called_ns > sighting.seen_ns;
      if (after) sighting.gone_ns = std::min(sighting.gone_ns, operation.returned_ns);
    }
    if (operation.outcome != OperationOutcome::kOk) continue;
    const auto found = puts.find(operation.value);
    if (found == puts.end()) continue;
    const Operation& put = *found->second;
    if (sighting.value != operation.value) {
      sighting = {operation.value, operation.returned_ns, kNeverReturned};
    } else if (operation.called_ns > sighting.gone_ns) {
      return "expired value is back: " + describe(put) + ", then " + describe(operation);
    }
    if (put.returned_ns == kNeverReturned) continue;
    if (operation.called_ns > put.returned_ns + put.lives_ns + slack_ns) {
      return "expired value returned: " + describe(put) + ", then " + describe(operation);
    }
  }
  return {};
}

std::string check_cost(const OperationCost& cost) {
  const Price price = price_of(cost);
  const bool fits = cost.reads <= price.reads && cost.writes <= price.writes &&
                    cost.atomics <= price.atomics && cost.round_trips <= price.round_trips;
  if (fits) return {};
  return "without a conflict it took " + std::to_string(cost.reads) + " READ, " +
         std::to_string(cost.writes) + " WRITE, " + std::to_string(cost.atomics) + " CAS in " +
         std::to_string(cost.round_trips) + " round trips; the table allows " +
         std::to_string(price.reads) + ", " + std::to_string(price.writes) + ", " +
         std::to_string(price.atomics) + " in " + std::to_string(price.round_trips);
}

}  // namespace kvstore::sim
