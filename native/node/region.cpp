#include "node/region.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>

#include "base/crc32c.hpp"

namespace kvstore {
namespace {

constexpr uint64_t kHugePageBytes = uint64_t{2} << 20;
constexpr uint32_t kCacheLeaseMs = 250;

std::string in_mebibytes(uint64_t bytes) {
  return std::to_string(bytes >> 20) + " MiB";
}

std::string allocation_error(uint64_t bytes, bool hugepages, int code) {
  std::string line = "can't allocate " + in_mebibytes(bytes);
  if (hugepages) {
    return line + " of huge pages: " + std::strerror(code) +
           "; reserve them with `sysctl vm.nr_hugepages=" +
           std::to_string((bytes + kHugePageBytes - 1) / kHugePageBytes) +
           "` or start without --hugepages";
  }
  return line + " of shared memory: " + std::strerror(code) +
         "; give the node a smaller --capacity";
}

}  // namespace

std::unique_ptr<Region> Region::create(uint64_t bytes, bool hugepages, std::string& error) {
  if (bytes < layout::kRegionBytesMin) {
    error = "a region needs at least " + in_mebibytes(layout::kRegionBytesMin);
    return nullptr;
  }
  bytes = layout::round_up(bytes, hugepages ? kHugePageBytes : layout::kPageBytes);
  const unsigned flags = MFD_CLOEXEC | MFD_ALLOW_SEALING | (hugepages ? MFD_HUGETLB : 0u);
  const int descriptor = ::memfd_create("kvstore-region", flags);
  if (descriptor < 0) {
    error = allocation_error(bytes, hugepages, errno);
    return nullptr;
  }
  int failed = ::ftruncate(descriptor, off_t(bytes)) != 0 ? errno : 0;
  if (failed == 0 && ::fallocate(descriptor, 0, 0, off_t(bytes)) != 0) failed = errno;
  if (failed == 0 &&
      ::fcntl(descriptor, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
    failed = errno;
  }
  void* data = MAP_FAILED;
  if (failed == 0) {
    data = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    if (data == MAP_FAILED) failed = errno;
  }
  if (failed != 0) {
    ::close(descriptor);
    error = allocation_error(bytes, hugepages, failed);
    return nullptr;
  }
  // A forked child must not go on using the region behind its parent's back.
  ::madvise(data, bytes, MADV_DONTFORK);
  return std::unique_ptr<Region>(new Region(static_cast<uint8_t*>(data), bytes, descriptor));
}

Region::~Region() {
  ::munmap(data_, bytes_);
  ::close(descriptor_);
}

layout::Geometry format_region(uint8_t* region, uint64_t bytes, const FormatOptions& options) {
  const layout::Geometry geometry = layout::make_geometry(bytes);
  layout::Superblock superblock{};
  superblock.magic = layout::kMagic;
  superblock.layout_version = layout::kLayoutVersion;
  superblock.domain = uint32_t(options.domain);
  superblock.region_bytes = bytes;
  superblock.node_id = options.node_id;
  superblock.incarnation = options.incarnation;
  superblock.segment_bytes = geometry.segment_bytes;
  superblock.segment_count = geometry.segment_count;
  superblock.first_segment_offset = geometry.first_segment_offset;
  superblock.segment_table_offset = geometry.segment_table_offset;
  superblock.directory_offset = geometry.directory_offset;
  superblock.directory_depth_max = geometry.directory_depth_max;
  superblock.present_records_offset = geometry.present_records_offset;
  superblock.absent_records_offset = geometry.absent_records_offset;
  superblock.record_count = geometry.record_count;
  superblock.client_lines_offset = layout::kClientLinesOffset;
  superblock.registry_offset = geometry.registry_offset;
  superblock.postboxes_offset = geometry.postboxes_offset;
  superblock.client_count_max = layout::kClientsMax;
  superblock.eviction = options.eviction;
  superblock.consistency = options.consistency;
  superblock.membership_lease_ms = options.membership_lease_ms;
  // A membership must outlast the copies that it allows.
  superblock.cache_lease_ms = std::min(kCacheLeaseMs, options.membership_lease_ms / 2);
  superblock.checksum = crc32c(0, &superblock, offsetof(layout::Superblock, checksum));

  // The first subtable takes the first segments, in the name of registration 0, which is nobody.
  using layout::SegmentEntry;
  const uint32_t run = geometry.segments_for(layout::kSubtableBytes);
  uint64_t* entries = reinterpret_cast<uint64_t*>(region + geometry.segment_table_offset);
  entries[0] = SegmentEntry{}.successor(SegmentEntry::kSubtable, 0, run, 0).word;
  for (uint32_t i = 1; i < run; ++i) {
    entries[i] = SegmentEntry{}.successor(SegmentEntry::kFollower, 0, i, 0).word;
  }
  const uint64_t address = geometry.segment_offset(0) / layout::kUnitBytes;
  uint64_t* directory = reinterpret_cast<uint64_t*>(region + geometry.directory_offset);
  directory[0] = layout::DirectoryEntry::make(address, 0).word;

  layout::NodeLine* node = reinterpret_cast<layout::NodeLine*>(region + layout::kNodeLineOffset);
  node->global_epoch = 1;
  node->safe_epoch = 0;
  std::memcpy(region + layout::kSuperblockOffset, &superblock, sizeof superblock);
  return geometry;
}

}  // namespace kvstore
