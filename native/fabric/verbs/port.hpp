// A port of an RDMA device, found by its address and not by an index: indexes of GIDs change with
// every interface that comes or goes.

#pragma once

#include <infiniband/verbs.h>

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <shared_mutex>
#include <string>

#include "fabric/verbs/verbs.h"

namespace kvstore::verbs {

using Gid = std::array<uint8_t, 16>;

struct CloseDevice {
  void operator()(ibv_context* context) const { ibv_close_device(context); }
};
struct FreeDomain {
  void operator()(ibv_pd* domain) const { ibv_dealloc_pd(domain); }
};
struct Deregister {
  void operator()(ibv_mr* memory) const { ibv_dereg_mr(memory); }
};
struct DestroyQueuePair {
  void operator()(ibv_qp* queue_pair) const { ibv_destroy_qp(queue_pair); }
};
struct DestroyQueue {
  void operator()(ibv_cq* queue) const { ibv_destroy_cq(queue); }
};
struct DestroyChannel {
  void operator()(ibv_comp_channel* channel) const { ibv_destroy_comp_channel(channel); }
};
using ContextPtr = std::unique_ptr<ibv_context, CloseDevice>;
using DomainPtr = std::unique_ptr<ibv_pd, FreeDomain>;
using MemoryPtr = std::unique_ptr<ibv_mr, Deregister>;
using QueuePairPtr = std::unique_ptr<ibv_qp, DestroyQueuePair>;
using QueuePtr = std::unique_ptr<ibv_cq, DestroyQueue>;
using ChannelPtr = std::unique_ptr<ibv_comp_channel, DestroyChannel>;

// Local memory that transfers may touch directly.
class LocalMemory {
 public:
  bool add(ibv_pd* domain, const ibv_device_attr& limits, void* memory, uint64_t bytes,
           std::string& error);
  void remove(void* memory);
  // The key of registered memory that holds the whole range; false if there is none.
  bool find(const void* memory, uint64_t bytes, uint32_t& key) const;

 private:
  mutable std::shared_mutex mutex_;
  std::map<uintptr_t, MemoryPtr> registered_;  // by address
};

}  // namespace kvstore::verbs

struct kv_verbs_port {
  kvstore::verbs::ContextPtr context;
  kvstore::verbs::DomainPtr domain;
  kvstore::verbs::LocalMemory memory;
  ibv_device_attr limits{};
  uint8_t number = 0;
  kvstore::verbs::Gid gid{};
};

namespace kvstore::verbs {

// See kv_verbs_api::open_port.
std::unique_ptr<kv_verbs_port> open_port(const std::string& device, const Gid* gid,
                                         std::string& error);

// See kv_verbs_api.
uint32_t next_event(kv_verbs_port& port);

// What may change while a port keeps its address: to be looked up for each connection.
struct PortState {
  ibv_port_attr attributes{};
  uint32_t gid_index = 0;
};

// False, and why, unless the port is active with the address that it was opened with. On any
// thread.
bool look_up(const kv_verbs_port& port, PortState& state, std::string& error);

uint32_t mtu_bytes(ibv_mtu mtu);

// See kv_verbs_port_description.
bool atomics_span_devices(const ibv_device_attr& limits);

// READs and atomics of one queue pair that this device can have under way, as either side.
uint32_t reads_at_once(const ibv_device_attr& limits);

// Registers memory in full, or says which limit is in the way and what raises it.
MemoryPtr register_memory(ibv_pd* domain, const ibv_device_attr& limits, void* memory,
                          uint64_t bytes, int access, std::string& error);

}  // namespace kvstore::verbs
