// The memory of a node: a sealed memfd, allocated in full at the start, so that too little memory
// is one clear line then and not a fault later. Nothing of it has a name in the file system: it
// goes with the last process that maps it.

#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "layout/layout.hpp"

namespace kvstore {

class Region {
 public:
  // nullptr and one line in `error` if the memory can't be had.
  static std::unique_ptr<Region> create(uint64_t bytes, bool hugepages, std::string& error);
  ~Region();
  Region(const Region&) = delete;
  Region& operator=(const Region&) = delete;

  uint8_t* data() const { return data_; }
  uint64_t bytes() const { return bytes_; }
  int descriptor() const { return descriptor_; }

 private:
  Region(uint8_t* data, uint64_t bytes, int descriptor)
      : data_(data), bytes_(bytes), descriptor_(descriptor) {}
  uint8_t* data_;
  uint64_t bytes_;
  int descriptor_;
};

struct FormatOptions {
  uint64_t node_id;
  uint64_t incarnation;
  uint32_t eviction;
  uint32_t consistency;
  uint32_t membership_lease_ms;
  layout::Domain domain = layout::Domain::kCpu;
};

// Writes the superblock, one empty subtable, the directory that points at it, and the node line.
// The region is zero before.
layout::Geometry format_region(uint8_t* region, uint64_t bytes, const FormatOptions& options);

}  // namespace kvstore
