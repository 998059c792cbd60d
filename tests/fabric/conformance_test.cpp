// Runs every rule of the conformance suite on every registered fabric.

#include "conformance.hpp"

#include <doctest/doctest.h>

#include <string>

using namespace kvstore::test;

TEST_CASE("every fabric obeys every rule") {
  for (const RegisteredFabric& fabric : registered_fabrics()) {
    for (const ConformanceRule& rule : conformance_rules()) {
      CAPTURE(fabric.name);
      CAPTURE(std::string(rule.name));
      const auto fixture = fabric.make();
      rule.check(*fixture);
    }
  }
}
