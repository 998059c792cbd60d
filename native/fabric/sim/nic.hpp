// A memory node's NIC: how long operations wait for each other there.
//
// All operations pass one pipeline in the order of their arrival. Each occupies it for as long as
// the rate of its kind or the bandwidth says, whichever is longer. An atomic then occupies its
// address while the NIC reads and writes it; a later atomic there waits, and with head-of-line
// blocking everything behind that one waits too. Addresses that share their low bits conflict, as
// they do in NICs that find a lock by them. What reaches memory takes a while more, in which the
// pipeline goes on.
//
// Times are kept in picoseconds: an operation takes only a few nanoseconds.

#pragma once

#include <cstdint>
#include <vector>

namespace kvstore::sim {

struct NicModel {
  // A rate of 0 is no limit.
  uint64_t reads_per_s = 0;
  uint64_t writes_per_s = 0;
  uint64_t atomics_per_s = 0;  // of different addresses
  uint64_t bytes_per_s = 0;    // of READs and WRITEs together
  uint64_t atomic_ns = 0;      // for which an atomic occupies its address
  bool head_of_line = false;
  uint64_t memory_ns = 0;
};

class Nic {
 public:
  explicit Nic(const NicModel& model) : model_(model) {}

  // Takes an operation of a `kv_op_kind` that has arrived at the node; calls come in the order of
  // their instants. Returns the instant at which it executes.
  uint64_t admit(uint32_t kind, uint64_t offset, uint64_t bytes, uint64_t now_ns);

  // How long the pipeline was occupied, and for how long of that it stood still for an address.
  uint64_t busy_ns() const { return busy_ps_ / 1000; }
  uint64_t blocked_ns() const { return blocked_ps_ / 1000; }

 private:
  uint64_t service_ps(uint32_t kind, uint64_t bytes) const;
  uint64_t wait_for_address(uint64_t offset, uint64_t ready_ps);

  const NicModel model_;
  uint64_t free_ps_ = 0;
  uint64_t busy_ps_ = 0;
  uint64_t blocked_ps_ = 0;
  std::vector<uint64_t> address_free_ps_;  // by low bits; empty until the first atomic
};

}  // namespace kvstore::sim
