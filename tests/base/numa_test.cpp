// Distances as a machine with two NUMA nodes tells them.

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
    add("devices/system/node/node0/distance", "10 21\n");
    add("devices/system/node/node1/distance", "21 10\n");
    add("class/infiniband/near/device/numa_node", "0\n");
    add("class/infiniband/far/device/numa_node", "1\n");
    add("class/infiniband/virtual/device/numa_node", "-1\n");
    add("class/infiniband/lost/device/numa_node", "2\n");
  }
  ~Sysfs() { std::filesystem::remove_all(folder_); }
  Sysfs(const Sysfs&) = delete;
  Sysfs& operator=(const Sysfs&) = delete;

  uint32_t distance(const std::string& device, uint32_t node) const {
    return rdma_device_distance(folder_, device, node);
  }

 private:
  void add(const std::string& path, const char* text) {
    const std::filesystem::path file = folder_ + "/" + path;
    std::filesystem::create_directories(file.parent_path());
    std::ofstream(file) << text;
  }
  std::string folder_;
};

}  // namespace

TEST_CASE("numa: a device is as far as its node is from the processor's") {
  const Sysfs sysfs;
  CHECK(sysfs.distance("near", 0) == 10);
  CHECK(sysfs.distance("far", 0) == 21);
  CHECK(sysfs.distance("near", 1) == 21);
  CHECK(sysfs.distance("far", 1) == 10);
}

TEST_CASE("numa: what is not told is far") {
  const Sysfs sysfs;
  CHECK(sysfs.distance("virtual", 0) == kNumaDistanceUnknown);  // no place of its own
  CHECK(sysfs.distance("lost", 0) == kNumaDistanceUnknown);     // on a node without a distance
  CHECK(sysfs.distance("none", 0) == kNumaDistanceUnknown);     // no such device
  CHECK(sysfs.distance("near", 7) == kNumaDistanceUnknown);     // no such node
  CHECK(current_numa_node() < 1024);
}

}  // namespace kvstore
