// The lines of the registry run out, and the node must be able to help itself.

#include "node/registry.hpp"

#include <doctest/doctest.h>

#include <cstring>
#include <vector>

#include "node/region.hpp"

using namespace kvstore;

namespace {

std::unique_ptr<Region> new_region() {
  std::string error;
  std::unique_ptr<Region> region = Region::create(layout::kRegionBytesMin, false, error);
  REQUIRE_MESSAGE(region != nullptr, error);
  return region;
}

layout::Geometry format(Region& region) {
  return format_region(region.data(), region.bytes(), {1, 1, 0, 0, 5000});
}

}  // namespace

TEST_CASE("registry: when clients have taken all lines, the node's own still gets one") {
  const std::unique_ptr<Region> region = new_region();
  Registry registry(region->data(), format(*region));
  Token token;
  std::vector<uint32_t> fenced;
  while (const uint32_t registration = registry.admit("client", KV_FABRIC_VERBS, token)) {
    REQUIRE(fenced.size() < layout::kClientsMax);
    registry.mark_fenced(registration, true);
    fenced.push_back(registration);
  }
  // Who comes in vain uses no number up.
  for (unsigned i = 0; i < 10; ++i) CHECK(registry.admit("client", KV_FABRIC_TCP, token) == 0);
  const uint32_t own = registry.admit("self", KV_FABRIC_LOCAL, token);
  CHECK(own == fenced.back() + 1);
  CHECK(registry.admit("self", KV_FABRIC_LOCAL, token) == own + 1);
  for (unsigned i = 0; i < 10; ++i) CHECK(registry.admit("self", KV_FABRIC_LOCAL, token) == 0);

  // One that has been swept is given again, by its next number.
  registry.mark_swept(fenced.front());
  CHECK(registry.admit("self", KV_FABRIC_LOCAL, token) == fenced.front() + layout::kClientsMax);
  registry.mark_swept(fenced[1]);
  CHECK(registry.admit("client", KV_FABRIC_VERBS, token) == 0);
  registry.mark_swept(fenced[2]);
  registry.mark_swept(fenced[3]);
  CHECK(registry.admit("client", KV_FABRIC_VERBS, token) != 0);
}

TEST_CASE("registry: a death without a farewell is told as one") {
  const std::unique_ptr<Region> region = new_region();
  Registry registry(region->data(), format(*region));
  const auto end_one = [&](bool left) {
    Token token;
    const uint32_t registration = registry.admit("client", KV_FABRIC_TCP, token);
    REQUIRE(registry.connected(registration, KV_FABRIC_TCP, 0, -1));
    CHECK(registry.mark_fenced(registration, left));
    layout::NodeLine line;
    std::memcpy(&line, region->data() + layout::kNodeLineOffset, sizeof line);
    return line;
  };
  const layout::NodeLine after_farewell = end_one(true);
  CHECK(after_farewell.deaths == 1);
  CHECK(after_farewell.crashes == 0);
  const layout::NodeLine after_crash = end_one(false);
  CHECK(after_crash.deaths == 2);
  CHECK(after_crash.crashes == 1);
}
