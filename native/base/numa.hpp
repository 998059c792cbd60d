// How far a device is from a processor, as the kernel's sysfs tells it.

#pragma once

#include <cstdint>
#include <string>

namespace kvstore {

// Of a device whose place is not known, or of a machine that says nothing: as far as there is.
inline constexpr uint32_t kNumaDistanceUnknown = 255;
// Of a device at the processor's own node, in the kernel's units.
inline constexpr uint32_t kNumaDistanceLocal = 10;

// The NUMA node of the processor that runs this thread now.
uint32_t current_numa_node();

// The distance between a NUMA node and an RDMA device in the kernel's units. `sysfs` is
// where that is mounted.
uint32_t rdma_device_distance(const std::string& sysfs, const std::string& device, uint32_t node);

}  // namespace kvstore
