// Watches over the blocks of a node from outside: sees every exchange of a slot and every WRITE as
// it executes, and tells when a block is used against the rules of the allocation.
//
//   in use        a block that the index points at is not written to
//   epoch         nor is one before every operation has ended that began before it was unlinked, of
//                 clients that the node has not given up
//   one owner     nor is one that another operation under way has written to and not yet published
//   free memory   nor is one whose bit says that it is free, nor a segment that belongs to nobody

#pragma once

#include <cstdint>
#include <string>
#include <unordered_map>

#include "fabric/sim/schedule.hpp"
#include "fabric/sim/sim.hpp"
#include "layout/layout.hpp"

namespace kvstore::sim {

// Who may hold addresses of blocks.
class BlockUsers {
 public:
  // Identifies the operation that is under way on a lane of the client; 0: none is.
  virtual uint64_t operation_of(uint32_t node, uint32_t registration, uint32_t lane) = 0;
  // An operation of a client that `node` has not given up, which holds addresses that it read
  // before `instant_ns`: what it is, empty if there is none.
  virtual std::string holder_since(uint32_t node, uint64_t instant_ns) = 0;
  virtual void block_misused(const std::string& violation) = 0;

 protected:
  ~BlockUsers() = default;
};

class BlockWatch final : public RegionWatch {
 public:
  BlockWatch(const Schedule& schedule, const uint8_t* region, const layout::Geometry& geometry,
             uint32_t node, BlockUsers& users)
      : schedule_(schedule), region_(region), geometry_(geometry), node_(node), users_(users) {}

  void swapped(uint64_t offset, uint64_t before, uint64_t after) override;
  void written(uint32_t registration, uint32_t lane, uint64_t offset, uint64_t bytes) override;

 private:
  struct Block {
    uint32_t readable = 0;     // slots that readers may follow to it
    uint32_t referenced = 0;   // tentative ones too
    uint64_t unlinked_ns = 0;  // when the last slot that pointed at it was changed
    uint64_t written_ns = 0;
    uint32_t registration = 0;  // that wrote to it last
    uint32_t lane = 0;
    uint64_t operation = 0;
  };

  // The head of the extent in which `offset` lies, and where that begins.
  layout::SegmentEntry extent_of(uint64_t offset, uint64_t& begin) const;
  uint64_t word_at(uint64_t offset) const;
  void change(layout::Slot slot, int by);
  void judge(const Block& block, uint32_t registration, uint32_t lane, uint64_t offset);
  void report(uint64_t offset, uint32_t registration, const std::string& what);

  const Schedule& schedule_;
  const uint8_t* const region_;
  const layout::Geometry geometry_;
  const uint32_t node_;
  BlockUsers& users_;
  std::unordered_map<uint64_t, Block> blocks_;  // by offset
};

}  // namespace kvstore::sim
