// Making a connection, and its table.

#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "fabric/verbs/connection.hpp"

namespace kvstore::verbs {
namespace {

Connection& self(kv_connection* connection) {
  return *static_cast<Connection*>(connection);
}
uint32_t verbs_post(kv_connection* connection, kv_batch* batch) {
  return self(connection).post(batch);
}
uint32_t verbs_poll(kv_connection* connection) {
  return self(connection).poll();
}
int verbs_wait_descriptor(kv_connection* connection, short* events) {
  return self(connection).wait_descriptor(events);
}
void verbs_close(kv_connection* connection) {
  self(connection).close();
}
void verbs_destroy(kv_connection* connection) {
  delete &self(connection);
}

constexpr kv_connection_ops kVerbsOps = {KV_FABRIC_ABI_VERSION, verbs_post,  verbs_poll,
                                         verbs_wait_descriptor, verbs_close, verbs_destroy};

std::string cannot(const char* what) {
  return std::string("can't make ") + what + ": " + std::strerror(errno);
}

template <uint32_t kBytes>
void unmap(uint8_t* memory) {
  ::munmap(memory, kBytes);
}

uint8_t* map_pages(uint32_t bytes) {
  void* memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return nullptr;
  // In a forked child a page that the device writes to must not be replaced under it.
  ::madvise(memory, bytes, MADV_DONTFORK);
  return static_cast<uint8_t*>(memory);
}

}  // namespace

Connection::Connection(kv_verbs_port& port)
    : kv_connection{},
      port_(port),
      staging_memory_(map_pages(kStagingBytes), &unmap<kStagingBytes>),
      slots_(kSlots),
      requests_(kSlots),
      pieces_(kSlots) {
  for (uint32_t n = 0; n < kSlots; ++n) {
    requests_[n].sg_list = &pieces_[n];
    requests_[n].num_sge = 1;
    requests_[n].next = &requests_[(n + 1) % kSlots];
  }
  ops = &kVerbsOps;
  max_batch_ops = kBatchOpsMax;
  max_outstanding = kOutstandingMax;
  eager_read_bytes = kEagerReadBytes;
  broken = 1;  // until it is established
}

std::unique_ptr<Connection> Connection::prepare(kv_verbs_port& port, kv_verbs_endpoint& mine,
                                                std::string& error) {
  std::unique_ptr<Connection> made(new Connection(port));
  if (!look_up(port, made->port_state_, error)) return nullptr;
  made->ready_descriptor_ = ::eventfd(1, EFD_CLOEXEC | EFD_NONBLOCK);
  made->channel_.reset(ibv_create_comp_channel(port.context.get()));
  if (made->ready_descriptor_ < 0 || !made->channel_ || !made->staging_memory_) {
    error = cannot("a completion channel");
    return nullptr;
  }
  const int descriptor = made->channel_->fd;
  const int flags = ::fcntl(descriptor, F_GETFL);
  if (flags < 0 || ::fcntl(descriptor, F_SETFL, flags | O_NONBLOCK) != 0) {
    error = cannot("a completion channel that does not block");
    return nullptr;
  }
  // Each request can end in a completion of its own when the connection breaks.
  made->queue_.reset(
      ibv_create_cq(port.context.get(), int(kSlots) + 1, nullptr, made->channel_.get(), 0));
  if (!made->queue_) {
    error = cannot("a completion queue");
    return nullptr;
  }
  made->staging_key_ = register_memory(port.domain.get(), port.limits, made->staging_memory_.get(),
                                       kStagingBytes, IBV_ACCESS_LOCAL_WRITE, error);
  if (!made->staging_key_) return nullptr;
  ibv_qp_cap capacity{};
  capacity.max_send_wr = kSlots;
  capacity.max_recv_wr = 1;
  capacity.max_send_sge = capacity.max_recv_sge = 1;
  capacity.max_inline_data = kInlineBytes;
  made->queue_pair_ = make_queue_pair(port, made->queue_.get(), capacity, 0, error);
  if (!made->queue_pair_) return nullptr;
  made->inline_bytes_ = std::min(capacity.max_inline_data, kInlineBytes);
  made->packet_sequence_ = random_packet_sequence();
  mine = describe_endpoint(port, made->port_state_, *made->queue_pair_, made->packet_sequence_);
  return made;
}

bool Connection::establish(const kv_verbs_grant& grant, std::string& error) {
  ibv_qp* const queue_pair = queue_pair_.get();
  if (!connect_queue_pair(port_, port_state_, queue_pair, packet_sequence_, grant.node, error)) {
    return false;
  }
  region_address_ = grant.region_address;
  region_bytes = grant.region_bytes;
  remote_key_ = grant.remote_key;
  broken = 0;
  return true;
}

Connection::~Connection() {
  close();
  // The queue can't go while it has events that nobody acknowledged.
  if (queue_) {
    drain_events();
    ibv_ack_cq_events(queue_.get(), events_unacknowledged_);
  }
  if (ready_descriptor_ >= 0) ::close(ready_descriptor_);
}

}  // namespace kvstore::verbs
