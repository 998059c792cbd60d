// Guests of the door that leave while they are turned out.

#include "node/shm_door.hpp"

#include <doctest/doctest.h>
#include <unistd.h>

#include <mutex>
#include <set>

#include "coro/clock.hpp"
#include "fabric/cpu/shm_attach.hpp"

using namespace kvstore;

TEST_CASE("shm door: whoever has said farewell is gone, even while all are turned out") {
  std::string error;
  const std::unique_ptr<Region> region = Region::create(layout::kRegionBytesMin, false, error);
  REQUIRE_MESSAGE(region != nullptr, error);
  const layout::Geometry geometry =
      format_region(region->data(), region->bytes(), {1, 1, 0, 0, 5000});
  Registry registry(region->data(), geometry);
  const std::string name = "kvstore-door-test-" + std::to_string(::getpid());
  // Which of the two the door's thread notices first is up to it.
  for (unsigned i = 0; i < 50; ++i) {
    std::mutex mutex;
    std::set<uint32_t> left;
    const auto gone = [&](uint32_t registration, bool farewell) {
      const std::lock_guard lock(mutex);
      if (farewell) left.insert(registration);
    };
    std::unique_ptr<ShmDoor> door = ShmDoor::open(name, "", 1, *region, registry, gone, error);
    REQUIRE_MESSAGE(door != nullptr, error);
    ShmMapping leaves, stays;
    const uint64_t deadline_ns = monotonic_ns() + 60 * kSecond;
    REQUIRE(shm_attach(name, {}, deadline_ns, leaves, error) == Status::kOk);
    REQUIRE(shm_attach(name, {}, deadline_ns, stays, error) == Status::kOk);
    const uint32_t registration = leaves.registration;
    shm_detach(leaves);
    door->turn_out();
    char byte = 0;
    CHECK(::read(stays.socket, &byte, 1) == 0);  // hangs up
    door.reset();
    CHECK(left == std::set<uint32_t>{registration});
    shm_detach(stays);
  }
}
