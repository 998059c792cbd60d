// The C ABI of memory nodes.

#include <algorithm>
#include <cstring>

#include "api/guard.hpp"
#include "api/kvstore.h"
#include "node/node.hpp"
#include "store/transports.hpp"

using namespace kvstore;

struct kv_node {
  std::unique_ptr<Node> node;
};

extern "C" {

kv_node* kv_node_open(const kv_node_config* config, char* error, uint64_t error_bytes) {
  return guarded(error, error_bytes, static_cast<kv_node*>(nullptr), [&]() -> kv_node* {
    std::string line;
    std::unique_ptr<Node> node = Node::open(*config, line);
    if (!node) {
      set_error(error, error_bytes, line);
      return nullptr;
    }
    return new kv_node{std::move(node)};
  });
}

void kv_node_describe(kv_node* node, kv_node_description* description) {
  node->node->describe(*description);
}

int kv_node_admit(kv_node* node, const char* peer, kv_admission* admission, char* error,
                  uint64_t error_bytes) {
  std::string line;
  const Status s = node->node->admit(peer == nullptr ? "" : peer, *admission, line);
  set_error(error, error_bytes, line);
  return int(s);
}

int kv_node_dismiss(kv_node* node, const kv_admission* admission) {
  return int(node->node->dismiss(*admission));
}

int kv_node_connect_verbs(kv_node* node, const kv_admission* admission, uint32_t lane,
                          const kv_verbs_endpoint* client, kv_verbs_grant* grant, char* error,
                          uint64_t error_bytes) {
  return guarded(error, error_bytes, int(KV_OUT_OF_MEMORY), [&] {
    std::string line;
    const Status s = node->node->connect_verbs(*admission, lane, *client, *grant, line);
    set_error(error, error_bytes, line);
    return int(s);
  });
}

int kv_node_set_members(kv_node* node, const char* cluster_id, const char* members, char* error,
                        uint64_t error_bytes) {
  std::string line;
  const Status s = node->node->set_members(cluster_id == nullptr ? "" : cluster_id,
                                           members == nullptr ? "" : members, line);
  set_error(error, error_bytes, line);
  return int(s);
}

void kv_node_read_stats(kv_node* node, kv_node_stats* stats) {
  node->node->read_stats(*stats);
}

uint32_t kv_node_clients(kv_node* node, kv_client_record* records, uint32_t capacity) {
  return node->node->clients(records, capacity);
}

void kv_node_drain(kv_node* node) {
  node->node->drain();
}

void kv_node_revoke(kv_node* node) {
  node->node->revoke();
}

uint32_t kv_node_ports(kv_node* node, kv_port_record* records, uint32_t capacity) {
  return node->node->ports(records, capacity);
}

void kv_node_close(kv_node* node) {
  delete node;
}

int kv_client_attach_local(kv_client* client, uint32_t member, kv_node* node, char* error,
                           uint64_t error_bytes) {
  Client& target = client_of(client);
  if (member >= target.members()) return KV_INVALID;
  uint32_t registration = 0;
  LocalRegion region;
  std::string line;
  Status s = node->node->admit_local(registration, region, line);
  if (s == Status::kOk) s = attach_local(target, member, region, registration, line);
  set_error(error, error_bytes, line);
  return int(s);
}

}  // extern "C"
