#include "base/numa.hpp"

#include <sched.h>

#include <fstream>

namespace kvstore {

uint32_t current_numa_node() {
  unsigned processor = 0;
  unsigned node = 0;
  return ::getcpu(&processor, &node) == 0 ? node : 0;
}

uint32_t rdma_device_distance(const std::string& sysfs, const std::string& device, uint32_t node) {
  // A machine with one node says -1.
  int64_t place = -1;
  std::ifstream(sysfs + "/class/infiniband/" + device + "/device/numa_node") >> place;
  if (place < 0) return kNumaDistanceUnknown;
  std::ifstream distances(sysfs + "/devices/system/node/node" + std::to_string(node) + "/distance");
  uint32_t distance = kNumaDistanceUnknown;
  for (int64_t i = 0; i <= place; ++i) {
    if (!(distances >> distance)) return kNumaDistanceUnknown;
  }
  return distance;
}

}  // namespace kvstore
