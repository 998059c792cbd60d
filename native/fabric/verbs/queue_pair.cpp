#include "fabric/verbs/queue_pair.hpp"

#include <sys/random.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>

#include "base/assert.hpp"
#include "base/time_scale.hpp"

namespace kvstore::verbs {
namespace {

// A peer that answers nothing is given up after about 4.096 us * 2^14 * (6 + 1) = 0.5 s. A count of
// 7 is not used: Soft-RoCE then repeats for ever.
constexpr int kAckTimeoutDefault = 14;
constexpr int kAckTimeoutMax = 18;
constexpr uint8_t kRetryCount = 6;
// Nothing is ever received into a queue, so this does not matter; it must be valid.
constexpr uint8_t kReceiverNotReadyTimer = 12;
constexpr uint8_t kHopLimit = 64;

// The time is a power of two.
uint8_t ack_timeout() {
  const int longer = std::bit_width(time_scale()) - 1;
  return uint8_t(std::min(kAckTimeoutDefault + longer, kAckTimeoutMax));
}

std::string failure(const char* step, int code) {
  return std::string("can't bring the queue pair to ") + step + ": " + std::strerror(code);
}

ibv_mtu path_mtu(const PortState& state, const kv_verbs_endpoint& peer) {
  ibv_mtu mtu = state.attributes.active_mtu;
  while (mtu > IBV_MTU_256 && mtu_bytes(mtu) > peer.mtu_bytes) mtu = ibv_mtu(unsigned(mtu) - 1);
  return mtu;
}

int to_ready_to_receive(const kv_verbs_port& port, const PortState& state, ibv_qp* queue_pair,
                        const kv_verbs_endpoint& peer) {
  ibv_qp_attr attributes{};
  attributes.qp_state = IBV_QPS_RTR;
  attributes.path_mtu = path_mtu(state, peer);
  attributes.dest_qp_num = peer.queue_pair;
  attributes.rq_psn = peer.packet_sequence;
  attributes.max_dest_rd_atomic = uint8_t(std::min(reads_at_once(port.limits), peer.reads_at_once));
  attributes.min_rnr_timer = kReceiverNotReadyTimer;
  attributes.ah_attr.is_global = 1;
  std::copy_n(peer.gid, sizeof peer.gid, attributes.ah_attr.grh.dgid.raw);
  attributes.ah_attr.grh.sgid_index = uint8_t(state.gid_index);
  attributes.ah_attr.grh.hop_limit = kHopLimit;
  attributes.ah_attr.dlid = uint16_t(peer.lid);
  attributes.ah_attr.port_num = port.number;
  return ibv_modify_qp(queue_pair, &attributes,
                       IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN |
                           IBV_QP_RQ_PSN | IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER);
}

int to_ready_to_send(const kv_verbs_port& port, ibv_qp* queue_pair, uint32_t packet_sequence,
                     const kv_verbs_endpoint& peer) {
  ibv_qp_attr attributes{};
  attributes.qp_state = IBV_QPS_RTS;
  attributes.timeout = ack_timeout();
  attributes.retry_cnt = kRetryCount;
  attributes.rnr_retry = kRetryCount;
  attributes.sq_psn = packet_sequence;
  attributes.max_rd_atomic = uint8_t(std::min(reads_at_once(port.limits), peer.reads_at_once));
  return ibv_modify_qp(queue_pair, &attributes,
                       IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY |
                           IBV_QP_SQ_PSN | IBV_QP_MAX_QP_RD_ATOMIC);
}

}  // namespace

QueuePairPtr make_queue_pair(kv_verbs_port& port, ibv_cq* queue, ibv_qp_cap& capacity,
                             int remote_access, std::string& error) {
  ibv_qp_init_attr initial{};
  initial.send_cq = queue;
  initial.recv_cq = queue;
  initial.cap = capacity;
  initial.qp_type = IBV_QPT_RC;
  QueuePairPtr queue_pair(ibv_create_qp(port.domain.get(), &initial));
  if (!queue_pair) {
    error = std::string("can't make a queue pair: ") + std::strerror(errno);
    return nullptr;
  }
  capacity = initial.cap;
  ibv_qp_attr attributes{};
  attributes.qp_state = IBV_QPS_INIT;
  attributes.port_num = port.number;
  attributes.qp_access_flags = unsigned(remote_access);
  const int failed =
      ibv_modify_qp(queue_pair.get(), &attributes,
                    IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS);
  if (failed != 0) {
    error = failure("INIT", failed);
    return nullptr;
  }
  return queue_pair;
}

kv_verbs_endpoint describe_endpoint(const kv_verbs_port& port, const PortState& state,
                                    const ibv_qp& queue_pair, uint32_t packet_sequence) {
  kv_verbs_endpoint endpoint{};
  std::copy(port.gid.begin(), port.gid.end(), endpoint.gid);
  endpoint.lid = state.attributes.lid;
  endpoint.queue_pair = queue_pair.qp_num;
  endpoint.packet_sequence = packet_sequence;
  endpoint.mtu_bytes = mtu_bytes(state.attributes.active_mtu);
  endpoint.reads_at_once = reads_at_once(port.limits);
  return endpoint;
}

bool connect_queue_pair(const kv_verbs_port& port, const PortState& state, ibv_qp* queue_pair,
                        uint32_t packet_sequence, const kv_verbs_endpoint& peer,
                        std::string& error) {
  constexpr uint32_t kNumberMax = 0xff'ffff;
  if (peer.queue_pair > kNumberMax || peer.packet_sequence > kNumberMax || peer.mtu_bytes < 256 ||
      peer.reads_at_once == 0) {
    error = "the other end describes an impossible queue pair";
    return false;
  }
  if (const int failed = to_ready_to_receive(port, state, queue_pair, peer); failed != 0) {
    error = failure("RTR", failed) + "; is there a route to the other end's RDMA address?";
    return false;
  }
  if (const int failed = to_ready_to_send(port, queue_pair, packet_sequence, peer); failed != 0) {
    error = failure("RTS", failed);
    return false;
  }
  return true;
}

uint32_t random_packet_sequence() {
  uint32_t word = 0;
  KV_ASSERT(::getrandom(&word, sizeof word, 0) == sizeof word);
  return word & 0xff'ffff;
}

}  // namespace kvstore::verbs
