// The sim fabric: one-sided operations on a region of this process, in virtual time.
//
// A batch travels to the node, waits for those of its connection before it, executes there
// operation by operation, and its completion travels back. Requests and completions of a connection
// keep their order, as those of a reliable connection do; how long each travels is drawn from the
// seed. A transfer beyond one word executes in pieces, cut at any word and in any order, with other
// connections' operations in between.
//
// Each side of a connection ends at an instant of its own: when it breaks, the node may go on
// executing what is under way after the client has been told that it is lost, and every prefix of
// it is possible, down to some pieces of a transfer. Only `fence`, or a later connection of the
// same lane, ends that.
//
// One thread. The node outlives its connections, the schedule both.

#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "fabric/fabric.h"
#include "fabric/sim/nic.hpp"
#include "fabric/sim/schedule.hpp"

namespace kvstore::sim {

struct SimTiming {
  // One way, of every message: the least, and what chance adds at most.
  uint64_t delay_ns_min = 700;
  uint64_t delay_ns_spread = 600;
  // Some messages are late.
  uint64_t late_per_million = 2'000;
  uint64_t late_ns_max = 300'000;
  // Between two operations of a batch, and between two pieces of one.
  uint64_t step_ns_max = 120;
  // Some of these gaps are long: a host bus or a processor is busy with something else.
  uint64_t stalls_per_million = 0;
  uint64_t stall_ns_max = 50'000;
  uint64_t stall_bytes = 0;  // only transfers of this length stall; 0: any
  unsigned pieces_max = 4;   // at most kPiecesLimit
  // Of the batches posted: with this one the connection breaks.
  uint64_t breaks_per_million = 0;
  // What the processor of a lane does for each operation that it posts, and for each batch whose
  // completion it takes.
  uint64_t post_ns = 0;
  uint64_t complete_ns = 0;
  NicModel nic;
};

struct SimCounts {
  uint64_t batches = 0;
  uint64_t operations = 0;
  uint64_t torn = 0;     // transfers that were executed in more than one piece
  uint64_t breaks = 0;   // by chance or by `break_connections`
  uint64_t orphans = 0;  // operations executed after their client had been told of the break
};

// Whoever uses the connections of one lane: told when something has arrived, so that a `poll` is
// worthwhile.
class SimListener {
 public:
  virtual void arrived() = 0;

  // What its verbs are for, in traces.
  struct Purpose {
    uint64_t key = kEveryKey;
    std::string text = "upkeep";
  };
  Purpose purpose;

  // The lane's processor is busy for `ns` more. Returns when it is free again.
  uint64_t occupy(uint64_t now_ns, uint64_t ns) {
    busy_ns_ += ns;
    return free_at_ns_ = std::max(free_at_ns_, now_ns) + ns;
  }
  uint64_t busy_ns() const { return busy_ns_; }

 protected:
  ~SimListener() = default;

 private:
  uint64_t free_at_ns_ = 0;
  uint64_t busy_ns_ = 0;
};

// A partition between a client's host and the node, each way by itself: what would leave before the
// instant leaves then. Connections can't be made meanwhile.
struct Reach {
  uint64_t requests_from_ns = 0;
  uint64_t answers_from_ns = 0;

  bool whole(uint64_t now_ns) const {
    return now_ns >= requests_from_ns && now_ns >= answers_from_ns;
  }
};

// Sees what the connections do to the region, as it happens.
class RegionWatch {
 public:
  virtual void swapped(uint64_t offset, uint64_t before, uint64_t after) = 0;
  // Before the first byte of a WRITE and after the last one.
  virtual void written(uint32_t registration, uint32_t lane, uint64_t offset, uint64_t bytes) = 0;

 protected:
  ~RegionWatch() = default;
};

class SimLink;

class SimNode {
 public:
  static constexpr unsigned kPiecesLimit = 8;

  // `region` is zero or formatted, and outlives the node.
  SimNode(Schedule& schedule, uint8_t* region, uint64_t region_bytes, const SimTiming& timing);
  ~SimNode();
  SimNode(const SimNode&) = delete;
  SimNode& operator=(const SimNode&) = delete;

  // A connection of a lane; an earlier one of the same lane has no effect any more. nullptr if the
  // node is dead or out of reach or the registration has been fenced. `reach` outlives the node.
  kv_connection* connect(uint32_t registration, uint32_t lane, SimListener* listener = nullptr,
                         const Reach* reach = nullptr);

  // After it returns no operation of the registration executes any more; the client learns of it
  // later.
  void fence(uint32_t registration);
  // The connections of a registration break, as if the network had failed: both sides learn of it
  // later, each when it does.
  void break_connections(uint32_t registration);
  // The client of the registration is dead: it sends nothing any more. The node learns of it later.
  void cut(uint32_t registration);
  // The node stops at once; clients learn of it later.
  void kill();

  // Outlives the node.
  void set_watch(RegionWatch* watch) { watch_ = watch; }
  void set_name(const std::string& name) { name_ = name; }
  bool dead() const { return dead_; }
  uint8_t* region() const { return region_; }
  uint64_t region_bytes() const { return region_bytes_; }
  const SimCounts& counts() const { return counts_; }
  const Nic& nic() const { return nic_; }
  SimTiming& timing() { return timing_; }

 private:
  friend class SimLink;
  uint64_t delay_ns();
  void collect(SimLink& link);

  Schedule& schedule_;
  uint8_t* const region_;
  const uint64_t region_bytes_;
  SimTiming timing_;
  Nic nic_;
  SimCounts counts_;
  std::string name_ = "the node";
  RegionWatch* watch_ = nullptr;
  bool dead_ = false;
  std::set<uint32_t> fenced_;
  std::vector<std::unique_ptr<SimLink>> links_;
};

}  // namespace kvstore::sim
