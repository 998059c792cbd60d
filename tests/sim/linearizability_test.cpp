// The checker is held against histories written by hand, and against a search without any
// cleverness on thousands of small random ones.

#include "sim/linearizability.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "sim/register_model.hpp"

namespace kvstore::sim {
namespace {

constexpr auto kOk = OperationOutcome::kOk;
constexpr auto kAbsent = OperationOutcome::kAbsent;
constexpr auto kFailed = OperationOutcome::kConditionFailed;
constexpr auto kUnknown = OperationOutcome::kUnknown;

Operation make(OperationKind kind, uint64_t called, uint64_t returned, OperationOutcome outcome,
               uint64_t value = 0, uint64_t version = 0) {
  Operation operation;
  operation.kind = kind;
  operation.called_ns = called;
  operation.returned_ns = returned;
  operation.outcome = outcome;
  operation.value = value;
  operation.version = version;
  return operation;
}
Operation get(uint64_t called, uint64_t returned, uint64_t value, uint64_t version = 0) {
  return make(OperationKind::kGet, called, returned, value == 0 ? kAbsent : kOk, value, version);
}
Operation put(uint64_t called, uint64_t returned, uint64_t value, uint64_t version = 0,
              OperationOutcome outcome = kOk) {
  return make(OperationKind::kPut, called, returned, outcome, value, version);
}
Operation lost_put(uint64_t called, uint64_t value) {
  return put(called, kNeverReturned, value, 0, kUnknown);
}
Operation remove(uint64_t called, uint64_t returned, OperationOutcome outcome = kOk) {
  return make(OperationKind::kDelete, called, returned, outcome);
}
Operation only_absent(Operation operation) {
  operation.condition = OperationCondition::kIfAbsent;
  return operation;
}
Operation only_version(Operation operation, uint64_t version) {
  operation.condition = OperationCondition::kIfVersion;
  operation.if_version = version;
  return operation;
}
Operation of_key(Operation operation, uint64_t key) {
  operation.key = key;
  return operation;
}

bool accepts(const std::vector<Operation>& history, bool may_vanish = false) {
  const LinearizabilityResult result = check_history(history, {may_vanish, 1'000'000});
  REQUIRE(result.verdict != Verdict::kUndecided);
  return result.verdict == Verdict::kLinearizable;
}

Operation copied(Operation operation) {
  operation.copied = true;
  return operation;
}
bool accepts_regular(const std::vector<Operation>& history) {
  const LinearizabilityResult result =
      check_history(history, {.configurations_max = 1'000'000, .regular_copies = true});
  REQUIRE(result.verdict != Verdict::kUndecided);
  return result.verdict == Verdict::kLinearizable;
}

// Tries every order of every subset that leaves out only what is unknown.
bool accepts_by_trying_all(const std::vector<Operation>& history, std::vector<bool>& placed,
                           const RegisterState& state, bool may_vanish) {
  uint64_t first_return = UINT64_MAX;
  bool open = false;
  for (size_t i = 0; i < history.size(); ++i) {
    if (placed[i] || history[i].outcome == kUnknown) continue;
    open = true;
    first_return = std::min(first_return, history[i].returned_ns);
  }
  if (!open) return true;
  for (size_t i = 0; i < history.size(); ++i) {
    if (placed[i] || history[i].called_ns > first_return) continue;
    RegisterState next = state;
    if (!RegisterModel(may_vanish).step(history[i], next)) continue;
    placed[i] = true;
    const bool fits = accepts_by_trying_all(history, placed, next, may_vanish);
    placed[i] = false;
    if (fits) return true;
  }
  return false;
}

struct Dice {
  uint64_t state;
  uint64_t below(uint64_t bound) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return (state >> 33) % bound;
  }
};

Operation random_operation(Dice& dice, uint64_t number, uint64_t numbers) {
  Operation operation;
  operation.kind = OperationKind(dice.below(4));
  operation.called_ns = dice.below(12);
  operation.returned_ns = operation.called_ns + dice.below(5);
  operation.value = 1 + dice.below(numbers);
  const bool reads = operation.kind <= OperationKind::kContains;
  const OperationOutcome outcomes[] = {kOk, kOk, kUnknown, reads ? kAbsent : kFailed};
  operation.outcome = outcomes[dice.below(4)];
  if (operation.kind == OperationKind::kDelete && dice.below(3) == 0) operation.outcome = kAbsent;
  if (operation.kind == OperationKind::kPut) {
    operation.value = number;
    operation.version = operation.outcome == kOk ? 100 + number : 0;
    operation.condition = OperationCondition(dice.below(3));
  }
  if (operation.kind == OperationKind::kDelete) {
    operation.condition = OperationCondition(dice.below(2) * 2);
  }
  if (operation.outcome == kFailed && operation.condition == OperationCondition::kNone) {
    operation.outcome = kOk;
  }
  if (operation.outcome == kUnknown) operation.returned_ns = kNeverReturned;
  operation.if_version = 101 + dice.below(numbers);
  return operation;
}

}  // namespace

TEST_CASE("sim: histories that a register explains are accepted") {
  CHECK(accepts({}));
  CHECK(accepts({get(0, 1, 0)}));
  CHECK(accepts({put(0, 1, 1), get(2, 3, 1), remove(4, 5), get(6, 7, 0)}));
  // Reads during a write may see either value, and the order of calls is not that of effects.
  CHECK(accepts({put(0, 1, 1), put(2, 9, 2), get(3, 4, 1), get(5, 6, 2)}));
  CHECK(accepts({put(0, 9, 1), put(1, 8, 2), get(10, 11, 1)}));
  CHECK(accepts({put(0, 9, 1), put(1, 8, 2), get(10, 11, 2)}));
  // Operations that touch in one instant are concurrent.
  CHECK(accepts({put(0, 5, 1), get(5, 6, 0)}));
  CHECK(accepts({get(0, 5, 1), put(5, 6, 1)}));
}

TEST_CASE("sim: histories that no register explains are rejected") {
  CHECK_FALSE(accepts({get(0, 1, 1)}));                              // garbage
  CHECK_FALSE(accepts({put(0, 1, 1), get(2, 3, 0)}));                // a lost write
  CHECK_FALSE(accepts({put(0, 1, 1), put(2, 3, 2), get(4, 5, 1)}));  // a stale read
  CHECK_FALSE(accepts({get(0, 1, 1), put(2, 3, 1)}));                // from the future
  // New, then old again, although the write that is under way could explain either.
  CHECK_FALSE(accepts({put(0, 1, 1), put(2, 9, 2), get(3, 4, 2), get(5, 6, 1)}));
  // Two readers that disagree about the order of two writes.
  CHECK_FALSE(accepts({put(0, 9, 1), put(0, 9, 2), get(10, 11, 1), get(12, 13, 2)}));
  CHECK_FALSE(accepts({put(0, 1, 1), remove(2, 3), remove(4, 5)}));
  CHECK_FALSE(accepts({put(0, 1, 1), remove(2, 3, kAbsent)}));
}

TEST_CASE("sim: an unknown outcome may have its effect late or never, but once") {
  const Operation lost = lost_put(2, 2);
  CHECK(accepts({put(0, 1, 1), lost, get(3, 4, 1), get(50, 51, 1)}));
  CHECK(accepts({put(0, 1, 1), lost, get(3, 4, 1), get(50, 51, 2)}));
  CHECK(accepts({put(0, 1, 1), lost, get(3, 4, 2), put(5, 6, 3), get(7, 8, 3)}));
  CHECK_FALSE(accepts({put(0, 1, 1), lost, get(3, 4, 2), put(5, 6, 3), get(7, 8, 2)}));
  CHECK_FALSE(accepts({put(0, 1, 1), lost, get(3, 4, 2), get(5, 6, 1)}));
  CHECK_FALSE(accepts({get(0, 1, 2), lost}));  // before the call
  // A lost delete explains one absence, not that the value comes back.
  const Operation lost_delete = remove(2, kNeverReturned, kUnknown);
  CHECK(accepts({put(0, 1, 1), lost_delete, get(3, 4, 1), get(5, 6, 0)}));
  CHECK_FALSE(accepts({put(0, 1, 1), lost_delete, get(3, 4, 0), get(5, 6, 1)}));
  // A read that never returned says nothing.
  CHECK(accepts({put(0, 1, 1), make(OperationKind::kGet, 2, kNeverReturned, kUnknown)}));
}

TEST_CASE("sim: conditions and versions") {
  CHECK(accepts({only_absent(put(0, 1, 1)), only_absent(put(2, 3, 2, 0, kFailed)), get(4, 5, 1)}));
  CHECK_FALSE(accepts({only_absent(put(0, 9, 1)), only_absent(put(0, 9, 2))}));  // two winners
  CHECK_FALSE(accepts({only_absent(put(0, 1, 1, 0, kFailed))}));
  CHECK(accepts({put(0, 1, 1, 11), only_version(put(2, 3, 2, 12), 11), get(4, 5, 2, 12)}));
  CHECK_FALSE(accepts({put(0, 1, 1, 11), only_version(put(2, 3, 2, 12), 10)}));
  CHECK_FALSE(accepts({put(0, 1, 1, 11), only_version(put(2, 3, 2, 0, kFailed), 11)}));
  CHECK_FALSE(accepts({put(0, 1, 1, 11), get(2, 3, 1, 12)}));  // a value with another's version
  CHECK(accepts({put(0, 1, 1, 11), only_version(remove(2, 3), 11), get(4, 5, 0)}));
  CHECK_FALSE(accepts({put(0, 1, 1, 11), only_version(remove(2, 3), 10)}));
  // The version of a write whose answer was lost is told by the first who reads it.
  const std::vector<Operation> learned{lost_put(0, 1), get(1, 2, 1, 11)};
  CHECK(accepts({learned[0], learned[1], only_version(put(3, 4, 2, 12), 11)}));
  CHECK_FALSE(accepts({learned[0], learned[1], get(3, 4, 1, 12)}));
  const Operation of_version_0 = only_version(put(1, 2, 2, 11, kFailed), 0);
  CHECK(accepts({lost_put(0, 1), of_version_0, get(3, 4, 1, 11)}));
  CHECK_FALSE(accepts({lost_put(0, 1), only_version(put(1, 2, 2, 11), 0), get(3, 4, 2, 11)}));
  // A failed condition names what it met.
  CHECK(accepts({put(0, 1, 1, 11), only_version(put(2, 3, 2, 11, kFailed), 5)}));
  CHECK_FALSE(accepts({put(0, 1, 1, 11), only_version(put(2, 3, 2, 12, kFailed), 5)}));
  CHECK_FALSE(accepts({put(0, 1, 1, 11), only_absent(put(2, 3, 2, 12, kFailed))}));
}

TEST_CASE("sim: a key may vanish only where the store may drop it") {
  const std::vector<Operation> dropped{put(0, 1, 1), get(2, 3, 0), get(4, 5, 0)};
  CHECK(accepts(dropped, true));
  CHECK_FALSE(accepts(dropped));
  CHECK_FALSE(accepts({put(0, 1, 1), get(2, 3, 0), get(4, 5, 1)}, true));  // and comes back
  CHECK(accepts({put(0, 1, 1), only_absent(put(2, 3, 2)), get(4, 5, 2)}, true));
  CHECK(accepts({put(0, 1, 1, 11), only_version(put(2, 3, 2, 0, kFailed), 11)}, true));
}

TEST_CASE("sim: keys are independent, and a violation names its key and operation") {
  std::vector<Operation> history{of_key(put(0, 1, 1), 7), of_key(get(2, 3, 0), 8),
                                 of_key(get(4, 5, 1), 7)};
  CHECK(accepts(history));
  history.push_back(of_key(get(6, 7, 0), 7));
  const LinearizabilityResult result = check_history(history);
  CHECK(result.verdict == Verdict::kViolation);
  CHECK(result.key == 7);
  CHECK(result.operation == 3);
  CHECK(result.reason.find("get key 7 [6, 7] -> absent") != std::string::npos);
}

TEST_CASE("sim: the search has a bound and says when it meets it") {
  std::vector<Operation> history;
  for (uint64_t i = 1; i <= 24; ++i) history.push_back(put(0, 100, i));
  history.push_back(get(101, 102, 99));
  CHECK(check_key(history, {false, 1000}).verdict == Verdict::kUndecided);
  // One client after another costs as much as the history is long, a lost write ahead or not.
  history = {lost_put(0, 50'000)};
  for (uint64_t i = 1; i <= 20'000; ++i) {
    history.push_back(put(4 * i, 4 * i + 1, i));
    history.push_back(get(4 * i + 2, 4 * i + 3, i));
  }
  CHECK(check_key(history).verdict == Verdict::kLinearizable);
}

TEST_CASE("linearizability: reads from copies may be behind a write that has not returned") {
  const Operation first = put(0, 10, 1);
  const Operation second = put(20, 60, 2);
  const Operation seen = get(30, 40, 2);
  // The node shows the new value, and a copy after that the old one.
  CHECK(accepts_regular({first, second, seen, copied(get(45, 50, 1))}));
  CHECK(!accepts_regular({first, second, seen, get(45, 50, 1)}));
  CHECK(!accepts({first, second, seen, copied(get(45, 50, 1))}));
  // But not behind one that has, nor of what nobody has written yet.
  CHECK(!accepts_regular({first, second, seen, copied(get(65, 70, 1))}));
  CHECK(!accepts_regular({first, second, seen, copied(get(12, 15, 2))}));
  CHECK(!accepts_regular({first, second, copied(get(45, 50, 3))}));
  // Who was refused has only looked.
  const Operation refused = only_absent(put(30, 40, 3, 0, OperationOutcome::kConditionFailed));
  CHECK(accepts_regular({first, second, refused, copied(get(45, 50, 1))}));
  // What is not known to have returned may be behind for ever.
  CHECK(accepts_regular({first, lost_put(20, 2), seen, copied(get(900, 910, 1))}));
}

TEST_CASE("sim: the search agrees with trying every order") {
  Dice dice{20'260'101};
  unsigned accepted = 0;
  constexpr unsigned kHistories = 20'000;
  for (unsigned n = 0; n < kHistories; ++n) {
    const uint64_t count = 2 + dice.below(6);
    std::vector<Operation> history;
    for (uint64_t i = 1; i <= count; ++i) history.push_back(random_operation(dice, i, count));
    const bool may_vanish = dice.below(4) == 0;
    std::vector<bool> placed(history.size(), false);
    const bool expected = accepts_by_trying_all(history, placed, {}, may_vanish);
    accepted += expected;
    CAPTURE(n);
    REQUIRE(accepts(history, may_vanish) == expected);
  }
  CHECK(accepted > kHistories / 20);
  CHECK(accepted < kHistories * 19 / 20);
}

}  // namespace kvstore::sim
