// A stand-in for libibverbs and for a device, so that the client's own part of the verbs fabric can
// be counted where there is no device. A request is executed when it is posted. Nothing here is a
// measure of a device or of a provider.
//
// What is made with it is not linked to libibverbs. The instructions of a post and of a poll are in
// functions whose names begin with `loopback_`.

#include <infiniband/verbs.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "base/assert.hpp"

// The headers make macros of these.
#undef ibv_query_port

namespace {

constexpr uint32_t kCompletionsMax = 4096;
constexpr uint32_t kInlineBytesMax = 128;

struct LoopbackQueue {
  ibv_cq base;
  ibv_wc found[kCompletionsMax];
  uint64_t put;
  uint64_t taken;
};

void loopback_execute(const ibv_send_wr& request) {
  uint8_t* const local = reinterpret_cast<uint8_t*>(request.sg_list[0].addr);
  const uint32_t bytes = request.sg_list[0].length;
  uint64_t word = 0;
  switch (request.opcode) {
    case IBV_WR_RDMA_READ:
      std::memcpy(local, reinterpret_cast<uint8_t*>(request.wr.rdma.remote_addr), bytes);
      return;
    case IBV_WR_RDMA_WRITE:
      std::memcpy(reinterpret_cast<uint8_t*>(request.wr.rdma.remote_addr), local, bytes);
      return;
    default:
      break;
  }
  uint64_t* const remote = reinterpret_cast<uint64_t*>(request.wr.atomic.remote_addr);
  word = *remote;
  std::memcpy(local, &word, sizeof word);
  if (request.opcode == IBV_WR_ATOMIC_FETCH_AND_ADD) {
    *remote = word + request.wr.atomic.compare_add;
  } else if (word == request.wr.atomic.compare_add) {
    *remote = request.wr.atomic.swap;
  }
}

int loopback_post_send(ibv_qp* pair, ibv_send_wr* request, ibv_send_wr**) {
  LoopbackQueue& queue = *reinterpret_cast<LoopbackQueue*>(pair->send_cq);
  for (; request != nullptr; request = request->next) {
    loopback_execute(*request);
    if ((request->send_flags & IBV_SEND_SIGNALED) == 0) continue;
    KV_ASSERT(queue.put - queue.taken < kCompletionsMax);
    ibv_wc& completion = queue.found[queue.put++ % kCompletionsMax];
    completion.wr_id = request->wr_id;
    completion.status = IBV_WC_SUCCESS;
  }
  return 0;
}

int loopback_poll(ibv_cq* base, int most, ibv_wc* into) {
  LoopbackQueue& queue = *reinterpret_cast<LoopbackQueue*>(base);
  int count = 0;
  while (count < most && queue.taken < queue.put) {
    into[count++] = queue.found[queue.taken++ % kCompletionsMax];
  }
  return count;
}

int loopback_notify(ibv_cq*, int) {
  return 0;
}

ibv_device loopback_device;

}  // namespace

// ---- What libibverbs has, as far as the fabric uses it ------------------------------------------

extern "C" {

ibv_device** ibv_get_device_list(int* count) {
  *count = 1;
  return new ibv_device*[2]{&loopback_device, nullptr};
}
void ibv_free_device_list(ibv_device** list) {
  delete[] list;
}
const char* ibv_get_device_name(ibv_device*) {
  return "loopback";
}
ibv_context* ibv_open_device(ibv_device* device) {
  ibv_context* const context = new ibv_context{};
  context->device = device;
  context->ops.post_send = loopback_post_send;
  context->ops.poll_cq = loopback_poll;
  context->ops.req_notify_cq = loopback_notify;
  context->async_fd = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  return context;
}
int ibv_close_device(ibv_context* context) {
  ::close(context->async_fd);
  delete context;
  return 0;
}
int ibv_query_device(ibv_context*, ibv_device_attr* limits) {
  *limits = ibv_device_attr{};
  limits->max_mr_size = UINT64_MAX;
  limits->max_qp_rd_atom = limits->max_qp_init_rd_atom = 16;
  limits->atomic_cap = IBV_ATOMIC_HCA;
  limits->phys_port_cnt = 1;
  return 0;
}
int ibv_query_port(ibv_context*, uint8_t, _compat_ibv_port_attr* found) {
  ibv_port_attr& attributes = *reinterpret_cast<ibv_port_attr*>(found);
  attributes.state = IBV_PORT_ACTIVE;
  attributes.active_mtu = IBV_MTU_4096;
  attributes.link_layer = IBV_LINK_LAYER_ETHERNET;
  attributes.gid_tbl_len = 1;
  return 0;
}
int _ibv_query_gid_ex(ibv_context*, uint32_t, uint32_t, ibv_gid_entry* entry, uint32_t, size_t) {
  *entry = ibv_gid_entry{};
  entry->gid_type = IBV_GID_TYPE_ROCE_V2;
  return 0;
}

ibv_pd* ibv_alloc_pd(ibv_context* context) {
  return new ibv_pd{context, 1};
}
int ibv_dealloc_pd(ibv_pd* domain) {
  delete domain;
  return 0;
}
ibv_mr* ibv_reg_mr_iova2(ibv_pd* domain, void* memory, size_t bytes, uint64_t, unsigned) {
  return new ibv_mr{domain->context, domain, memory, bytes, 1, 1, 1};
}
int ibv_dereg_mr(ibv_mr* memory) {
  delete memory;
  return 0;
}

ibv_comp_channel* ibv_create_comp_channel(ibv_context* context) {
  return new ibv_comp_channel{context, ::eventfd(0, EFD_CLOEXEC), 0};
}
int ibv_destroy_comp_channel(ibv_comp_channel* channel) {
  ::close(channel->fd);
  delete channel;
  return 0;
}
ibv_cq* ibv_create_cq(ibv_context* context, int entries, void*, ibv_comp_channel* channel, int) {
  LoopbackQueue* const queue = new LoopbackQueue{};
  queue->base.context = context;
  queue->base.channel = channel;
  queue->base.cqe = entries;
  return &queue->base;
}
int ibv_destroy_cq(ibv_cq* queue) {
  delete reinterpret_cast<LoopbackQueue*>(queue);
  return 0;
}
int ibv_get_cq_event(ibv_comp_channel*, ibv_cq**, void**) {
  return -1;
}
void ibv_ack_cq_events(ibv_cq*, unsigned) {}
int ibv_get_async_event(ibv_context*, ibv_async_event*) {
  errno = EAGAIN;
  return -1;
}
void ibv_ack_async_event(ibv_async_event*) {}

ibv_qp* ibv_create_qp(ibv_pd* domain, ibv_qp_init_attr* initial) {
  initial->cap.max_inline_data = kInlineBytesMax;
  ibv_qp* const pair = new ibv_qp{};
  pair->context = domain->context;
  pair->send_cq = initial->send_cq;
  pair->qp_num = 1;
  return pair;
}
int ibv_modify_qp(ibv_qp*, ibv_qp_attr*, int) {
  return 0;
}
int ibv_destroy_qp(ibv_qp* pair) {
  delete pair;
  return 0;
}

}  // extern "C"
