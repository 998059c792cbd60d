#include "fabric/verbs/target.hpp"

#include <cerrno>
#include <cstring>

namespace kvstore::verbs {
namespace {

constexpr int kRemoteAccess =
    IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_ATOMIC;

}  // namespace

std::unique_ptr<kv_verbs_target> expose(kv_verbs_port& port, void* region, uint64_t bytes,
                                        std::string& error) {
  std::unique_ptr<kv_verbs_target> target(new kv_verbs_target{port, region, bytes, {}, {}});
  target->queue.reset(ibv_create_cq(port.context.get(), 1, nullptr, nullptr, 0));
  if (!target->queue) {
    error = std::string("can't make a completion queue: ") + std::strerror(errno);
    return nullptr;
  }
  target->memory = register_memory(port.domain.get(), port.limits, region, bytes,
                                   IBV_ACCESS_LOCAL_WRITE | kRemoteAccess, error);
  if (!target->memory) return nullptr;
  return target;
}

std::unique_ptr<kv_verbs_peer> accept(kv_verbs_target& target, const kv_verbs_endpoint& client,
                                      kv_verbs_grant& grant, std::string& error) {
  PortState state;
  if (!look_up(target.port, state, error)) return nullptr;
  ibv_qp_cap capacity{};
  capacity.max_send_wr = capacity.max_recv_wr = 1;
  capacity.max_send_sge = capacity.max_recv_sge = 1;
  auto peer = std::make_unique<kv_verbs_peer>();
  peer->queue_pair =
      make_queue_pair(target.port, target.queue.get(), capacity, kRemoteAccess, error);
  if (!peer->queue_pair) return nullptr;
  const uint32_t sequence = random_packet_sequence();
  ibv_qp* const queue_pair = peer->queue_pair.get();
  if (!connect_queue_pair(target.port, state, queue_pair, sequence, client, error)) return nullptr;
  grant.node = describe_endpoint(target.port, state, *queue_pair, sequence);
  grant.region_address = reinterpret_cast<uint64_t>(target.region);
  grant.region_bytes = target.bytes;
  grant.remote_key = target.memory->rkey;
  return peer;
}

}  // namespace kvstore::verbs
