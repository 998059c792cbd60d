#include "store/attachment.hpp"

#include <cstddef>

#include "base/crc32c.hpp"

namespace kvstore {

bool read_superblock(const layout::Superblock& superblock, layout::Geometry& geometry,
                     std::string& error) {
  if (superblock.magic != layout::kMagic) {
    error = "the region does not begin with the magic of a kvstore node";
    return false;
  }
  if (superblock.layout_version != layout::kLayoutVersion) {
    error = "the node has layout version " + std::to_string(superblock.layout_version) +
            ", this client knows " + std::to_string(layout::kLayoutVersion) +
            ": use the same kvstore version on both";
    return false;
  }
  if (superblock.checksum != crc32c(0, &superblock, offsetof(layout::Superblock, checksum))) {
    error = "the superblock does not match its checksum";
    return false;
  }
  if (superblock.region_bytes < layout::kRegionBytesMin) {
    error = "the superblock describes an impossible region";
    return false;
  }
  geometry = layout::make_geometry(superblock.region_bytes);
  const bool same = geometry.segment_bytes == superblock.segment_bytes &&
                    geometry.segment_count == superblock.segment_count &&
                    geometry.first_segment_offset == superblock.first_segment_offset &&
                    geometry.segment_table_offset == superblock.segment_table_offset &&
                    geometry.directory_offset == superblock.directory_offset &&
                    geometry.directory_depth_max == superblock.directory_depth_max &&
                    geometry.present_records_offset == superblock.present_records_offset &&
                    geometry.absent_records_offset == superblock.absent_records_offset &&
                    geometry.record_count == superblock.record_count &&
                    geometry.registry_offset == superblock.registry_offset &&
                    geometry.postboxes_offset == superblock.postboxes_offset &&
                    superblock.client_count_max == layout::kClientsMax;
  if (!same) error = "the superblock's geometry is not the one that its layout version has";
  return same;
}

bool same_domain(const layout::Superblock& superblock, layout::Domain domain, std::string& error) {
  if (superblock.domain == uint32_t(domain)) return true;
  error = superblock.domain == uint32_t(layout::Domain::kVerbs)
              ? "the node is in the atomic domain of its RDMA device: attach over verbs"
              : "the node is in the atomic domain of its processor: attach over shm or tcp";
  return false;
}

Task<Status> read_attachment(Remote& remote, std::unique_ptr<Transport> transport,
                             uint32_t registration, uint32_t address_entries,
                             std::shared_ptr<Attachment>& attachment, std::string& error) {
  layout::Superblock superblock{};
  layout::NodeLine node{};
  kv_op ops[2] = {read_op(layout::kSuperblockOffset, &superblock, sizeof superblock),
                  read_op(layout::kNodeLineOffset, &node, sizeof node)};
  if (const uint32_t s = co_await remote.batch(ops); s != KV_FABRIC_OK) {
    error = "the node did not let its superblock be read in time";
    co_return from_fabric(s);
  }
  layout::Geometry geometry;
  if (!read_superblock(superblock, geometry, error) ||
      !same_domain(superblock, transport->domain(), error)) {
    co_return Status::kRefused;
  }
  attachment = std::make_shared<Attachment>(std::move(transport), superblock, geometry,
                                            registration, address_entries);
  attachment->saw_clock(node.clock_ms, boottime_ns());
  const Status refreshed = co_await attachment->directory.refresh(remote);
  if (refreshed != Status::kOk) error = "the node's directory can't be read";
  co_return refreshed;
}

}  // namespace kvstore
