// The checks of histories reject what they are there to reject, and nothing else.

#include "sim/history_checks.hpp"

#include <doctest/doctest.h>

#include <vector>

namespace kvstore::sim {
namespace {

constexpr uint64_t kMs = 1'000'000;

Operation operation(OperationKind kind, uint64_t value, uint64_t called_ns, uint64_t returned_ns,
                    OperationOutcome outcome = OperationOutcome::kOk) {
  Operation one;
  one.kind = kind;
  one.value = value;
  one.called_ns = called_ns;
  one.returned_ns = returned_ns;
  one.outcome = outcome;
  return one;
}

Operation mortal_put(uint64_t value, uint64_t returned_ns, uint64_t lives_ns) {
  Operation put = operation(OperationKind::kPut, value, returned_ns - 1, returned_ns);
  put.mortal = true;
  put.lives_ns = lives_ns;
  return put;
}

}  // namespace

TEST_CASE("history checks: an acknowledged write is there at the end") {
  const std::vector<Operation> history{operation(OperationKind::kPut, 1, 10, 20),
                                       operation(OperationKind::kPut, 2, 30, 40)};
  const std::vector<Operation> good{operation(OperationKind::kGet, 2, 100, 110)};
  const std::vector<Operation> old{operation(OperationKind::kGet, 1, 100, 110)};
  const std::vector<Operation> gone{
      operation(OperationKind::kGet, 0, 100, 110, OperationOutcome::kAbsent)};
  CHECK(check_acknowledged(history, good, false) == "");
  CHECK(check_acknowledged(history, old, false) != "");
  CHECK(check_acknowledged(history, gone, false) != "");
  CHECK(check_acknowledged(history, gone, true) == "");
  CHECK(check_acknowledged(history, old, true) != "");
}

TEST_CASE("history checks: nothing is said about writes that overlap or have no outcome") {
  std::vector<Operation> history{operation(OperationKind::kPut, 1, 10, 50),
                                 operation(OperationKind::kPut, 2, 30, 40)};
  const std::vector<Operation> old{operation(OperationKind::kGet, 1, 100, 110)};
  CHECK(check_acknowledged(history, old, false) == "");
  history[0] = operation(OperationKind::kPut, 1, 10, kNeverReturned, OperationOutcome::kUnknown);
  CHECK(check_acknowledged(history, old, false) == "");
}

TEST_CASE("history checks: what was deleted stays away") {
  const std::vector<Operation> history{operation(OperationKind::kPut, 1, 10, 20),
                                       operation(OperationKind::kDelete, 0, 30, 40)};
  const std::vector<Operation> back{operation(OperationKind::kGet, 1, 100, 110)};
  const std::vector<Operation> gone{
      operation(OperationKind::kGet, 0, 100, 110, OperationOutcome::kAbsent)};
  CHECK(check_acknowledged(history, back, false) != "");
  CHECK(check_acknowledged(history, gone, false) == "");
}

TEST_CASE("history checks: a value is not returned after its end") {
  std::vector<Operation> history{mortal_put(1, 10 * kMs, 100 * kMs),
                                 operation(OperationKind::kGet, 1, 150 * kMs, 151 * kMs)};
  CHECK(check_expiry(history, 50 * kMs) == "");
  history[1].called_ns = 161 * kMs;
  CHECK(check_expiry(history, 50 * kMs) != "");
  history[0].mortal = false;
  CHECK(check_expiry(history, 50 * kMs) == "");
}

TEST_CASE("history checks: an expired value does not come back to who found it gone") {
  std::vector<Operation> history{
      mortal_put(1, 10 * kMs, 100 * kMs), operation(OperationKind::kGet, 1, 20 * kMs, 21 * kMs),
      operation(OperationKind::kGet, 0, 110 * kMs, 111 * kMs, OperationOutcome::kAbsent),
      operation(OperationKind::kGet, 1, 112 * kMs, 113 * kMs)};
  CHECK(check_expiry(history, 500 * kMs) != "");
  history[3].client = 1;  // whose clock is another one
  CHECK(check_expiry(history, 500 * kMs) == "");
}

TEST_CASE("history checks: reads at rest agree") {
  Operation one = operation(OperationKind::kGet, 1, 10, 20);
  Operation other = operation(OperationKind::kGet, 2, 30, 40);
  const Operation gone = operation(OperationKind::kGet, 0, 30, 40, OperationOutcome::kAbsent);
  const Operation failed = operation(OperationKind::kGet, 0, 30, 40, OperationOutcome::kNoEffect);
  CHECK(check_agreement(std::vector{one, one, failed}) == "");
  CHECK(check_agreement(std::vector{one, other}) != "");
  CHECK(check_agreement(std::vector{one, gone}) != "");
  CHECK(check_agreement(std::vector{failed, gone, gone}) == "");
  other.key = 1;
  CHECK(check_agreement(std::vector{one, other}) == "");
}

TEST_CASE("history checks: the price of each operation, and one verb more") {
  using Kind = OperationKind;
  using Outcome = OperationOutcome;
  const OperationCost prices[] = {{Kind::kGet, Outcome::kOk, false, 3, 0, 0, 2},
                                  {Kind::kGet, Outcome::kAbsent, false, 6, 0, 0, 2},
                                  {Kind::kContains, Outcome::kOk, false, 3, 0, 0, 2},
                                  {Kind::kPut, Outcome::kOk, false, 3, 2, 1, 3},
                                  {Kind::kPut, Outcome::kOk, true, 7, 2, 2, 3},
                                  {Kind::kDelete, Outcome::kOk, false, 3, 0, 1, 3}};
  for (const OperationCost& price : prices) {
    CHECK(check_cost(price) == "");
    OperationCost cost = price;
    ++cost.reads;
    CHECK(check_cost(cost) != "");
    cost = price;
    ++cost.atomics;
    CHECK(check_cost(cost) != "");
    cost = price;
    ++cost.round_trips;
    CHECK(check_cost(cost) != "");
  }
}

}  // namespace kvstore::sim
