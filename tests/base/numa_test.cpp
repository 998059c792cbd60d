// Distances as machines tell them: one with two NUMA nodes, one whose numbers have holes.

#include "base/numa.hpp"

#include <doctest/doctest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

namespace kvstore {
namespace {

class Sysfs {
 public:
  Sysfs() {
    char folder[] = "/tmp/kvstore-sysfs-XXXXXX";
    REQUIRE(::mkdtemp(folder) != nullptr);
    folder_ = folder;
  }
  ~Sysfs() { std::filesystem::remove_all(folder_); }
  Sysfs(const Sysfs&) = delete;
  Sysfs& operator=(const Sysfs&) = delete;

  void add(const std::string& path, const char* text) {
    const std::filesystem::path file = folder_ + "/" + path;
    std::filesystem::create_directories(file.parent_path());
    std::ofstream(file) << text;
  }
  uint32_t distance(const std::string& device, uint32_t node) const {
    return rdma_device_distance(folder_, device, node);
  }

 private:
  std::string folder_;
};

struct TwoNodes : Sysfs {
  TwoNodes() {
    add("devices/system/node/online", "0-1\n");
    add("devices/system/node/node0/distance", "10 21\n");
    add("devices/system/node/node1/distance", "21 10\n");
    add("class/infiniband/near/device/numa_node", "0\n");
    add("class/infiniband/far/device/numa_node", "1\n");
    add("class/infiniband/virtual/device/numa_node", "-1\n");
    add("class/infiniband/lost/device/numa_node", "2\n");
  }
};

// POWER machines number their sockets 0 and 8, and the memory of their GPUs downwards from 255.
struct NumbersWithHoles : Sysfs {
  NumbersWithHoles() {
    add("devices/system/node/online", "0,8,252-255\n");
    add("devices/system/node/node0/distance", "10 40 81 82 83 84\n");
    add("devices/system/node/node8/distance", "40 10 71 72 73 74\n");
    add("class/infiniband/at0/device/numa_node", "0\n");
    add("class/infiniband/at1/device/numa_node", "1\n");
    add("class/infiniband/at8/device/numa_node", "8\n");
    add("class/infiniband/at252/device/numa_node", "252\n");
    add("class/infiniband/at254/device/numa_node", "254\n");
    add("class/infiniband/at256/device/numa_node", "256\n");
  }
};

}  // namespace

TEST_CASE("numa: a device is as far as its node is from the processor's") {
  const TwoNodes sysfs;
  CHECK(sysfs.distance("near", 0) == 10);
  CHECK(sysfs.distance("far", 0) == 21);
  CHECK(sysfs.distance("near", 1) == 21);
  CHECK(sysfs.distance("far", 1) == 10);
}

TEST_CASE("numa: distances are told to the nodes that are online, whatever their numbers") {
  const NumbersWithHoles sysfs;
  CHECK(sysfs.distance("at0", 0) == 10);
  CHECK(sysfs.distance("at8", 0) == 40);
  CHECK(sysfs.distance("at252", 0) == 81);
  CHECK(sysfs.distance("at254", 0) == 83);
  CHECK(sysfs.distance("at0", 8) == 40);
  CHECK(sysfs.distance("at8", 8) == 10);
  CHECK(sysfs.distance("at254", 8) == 73);
  CHECK(sysfs.distance("at254", 254) == kNumaDistanceLocal);  // tells nothing, and need not
  CHECK(sysfs.distance("at1", 0) == kNumaDistanceUnknown);    // in a hole
  CHECK(sysfs.distance("at256", 0) == kNumaDistanceUnknown);  // after the last
}

TEST_CASE("numa: what is not told is far") {
  const TwoNodes sysfs;
  CHECK(sysfs.distance("virtual", 0) == kNumaDistanceUnknown);  // no place of its own
  CHECK(sysfs.distance("lost", 0) == kNumaDistanceUnknown);     // on a node without a distance
  CHECK(sysfs.distance("none", 0) == kNumaDistanceUnknown);     // no such device
  CHECK(sysfs.distance("near", 7) == kNumaDistanceUnknown);     // no such node
  CHECK(current_numa_node() < 1024);
}

}  // namespace kvstore
