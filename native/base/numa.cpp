#include "base/numa.hpp"

#include <sched.h>

#include <fstream>

namespace kvstore {

uint32_t current_numa_node() {
  unsigned processor = 0;
  unsigned node = 0;
  return ::getcpu(&processor, &node) == 0 ? node : 0;
}

namespace {

// Which of the numbers of a list such as "0,8,252-255" this one is, from 0; -1 if it is none.
int64_t position_in_list(std::istream& list, int64_t wanted) {
  int64_t before = 0;
  int64_t first = 0;
  while (list >> first) {
    int64_t last = first;
    if (list.peek() == '-' && !(list.ignore() >> last)) return -1;
    if (first <= wanted && wanted <= last) return before + wanted - first;
    before += last - first + 1;
    list.ignore();
  }
  return -1;
}

}  // namespace

uint32_t rdma_device_distance(const std::string& sysfs, const std::string& device, uint32_t node) {
  // A machine with one node says -1.
  int64_t place = -1;
  std::ifstream(sysfs + "/class/infiniband/" + device + "/device/numa_node") >> place;
  if (place < 0) return kNumaDistanceUnknown;
  if (place == node) return kNumaDistanceLocal;
  // A node tells its distances to those that are online, and to no others.
  const std::string nodes = sysfs + "/devices/system/node/";
  std::ifstream online(nodes + "online");
  const int64_t column = position_in_list(online, place);
  if (column < 0) return kNumaDistanceUnknown;
  std::ifstream distances(nodes + "node" + std::to_string(node) + "/distance");
  uint32_t distance = kNumaDistanceUnknown;
  for (int64_t i = 0; i <= column; ++i) {
    if (!(distances >> distance)) return kNumaDistanceUnknown;
  }
  return distance;
}

}  // namespace kvstore
