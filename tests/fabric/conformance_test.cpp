// Runs every rule of the conformance suite on every registered fabric.

#include "conformance.hpp"

#include <doctest/doctest.h>

#include <string>

#include "verbs_node.hpp"

using namespace kvstore::test;

namespace {

void check_rules(const RegisteredFabric& fabric) {
  for (const ConformanceRule& rule : conformance_rules()) {
    CAPTURE(fabric.name);
    CAPTURE(std::string(rule.name));
    const auto fixture = fabric.make();
    rule.check(*fixture);
  }
}

}  // namespace

TEST_CASE("every fabric obeys every rule") {
  for (const RegisteredFabric& fabric : registered_fabrics()) {
    if (fabric.name != "verbs") check_rules(fabric);
  }
}

// A test of its own, so that a run on an RDMA device can be that alone.
TEST_CASE("verbs obeys every rule" * doctest::skip(verbs_device() == nullptr)) {
  for (const RegisteredFabric& fabric : registered_fabrics()) {
    if (fabric.name == "verbs") check_rules(fabric);
  }
}
