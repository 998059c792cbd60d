/* The door of the verbs library, the only thing that is linked to libibverbs. It is loaded when it
 * is wanted (native/fabric/verbs_library.hpp), so the product works without it.
 *
 * Functions that take `error` write one line there, NUL-terminated, when they fail. A port, a
 * target and the memory of a port may be used from any thread; a connection is as fabric.h says.
 * Nothing here waits for a peer.
 */
#ifndef KVSTORE_FABRIC_VERBS_VERBS_H
#define KVSTORE_FABRIC_VERBS_VERBS_H

#include "api/kvstore.h"
#include "fabric/fabric.h"

#ifdef __cplusplus
extern "C" {
#endif

#define KV_VERBS_ABI_VERSION 5u
#define KV_VERBS_OPEN_SYMBOL "kv_verbs_open"

/* A port of an RDMA device of this host, with a protection domain. */
typedef struct kv_verbs_port kv_verbs_port;
/* A region that is registered on a port for remote access. */
typedef struct kv_verbs_target kv_verbs_target;
/* The node's end of one connection. */
typedef struct kv_verbs_peer kv_verbs_peer;

typedef struct kv_verbs_port_description {
  char device[64];
  uint32_t port;
  uint8_t gid[16];
  /* 1: its atomics exclude those of every other device of this host that says so too. 0: those of
   * the same device only. */
  uint32_t atomics_span_devices;
} kv_verbs_port_description;

enum kv_verbs_event {
  KV_VERBS_NO_EVENT = 0,
  KV_VERBS_PORT_CHANGED = 1, /* `refresh_port` tells to what */
  KV_VERBS_DEVICE_LOST = 2,  /* nothing that was made of the port works again */
  KV_VERBS_OTHER_EVENT = 3
};

typedef struct kv_verbs_api {
  uint32_t abi_version;

  /* Opens an active port: of `device` (a name, or NAME:PORT) if that is not empty, and with the
   * address `gid` if that is not NULL. An address of IPv4 is its mapped GID. Of several that serve
   * as well, the one nearest to the calling thread's processor. NULL if there is none. */
  kv_verbs_port* (*open_port)(const char* device, const uint8_t* gid, char* error,
                              uint64_t error_bytes);
  /* Nothing that was made of the port may be left. */
  void (*close_port)(kv_verbs_port* port);
  void (*describe_port)(const kv_verbs_port* port, kv_verbs_port_description* description);
  /* Readable, as of poll(2), when `next_event` has one. */
  int (*event_descriptor)(const kv_verbs_port* port);
  /* What the device has said of itself or of this port: a kv_verbs_event. Never blocks. One thread
   * at a time. */
  uint32_t (*next_event)(kv_verbs_port* port);
  /* Whether the port is active with the address that it was opened with. Else no connection can be
   * made; where it is, what goes with that address is looked up for each of them. */
  int (*serves)(const kv_verbs_port* port);

  /* Lets transfers to and from this memory go without a copy. Returns 0, or -1 with the limit that
   * is in the way and what raises it. */
  int (*register_memory)(kv_verbs_port* port, void* memory, uint64_t bytes, char* error,
                         uint64_t error_bytes);
  /* Nothing may be under way there. */
  void (*unregister_memory)(kv_verbs_port* port, void* memory);

  /* The client's end in two steps, between which the node makes its own: `mine` is what it needs to
   * know. A connection that was not established can only be destroyed. */
  kv_connection* (*prepare)(kv_verbs_port* port, kv_verbs_endpoint* mine, char* error,
                            uint64_t error_bytes);
  int (*establish)(kv_connection* connection, const kv_verbs_grant* grant, char* error,
                   uint64_t error_bytes);

  /* The node's side. The region is registered as a whole or refused. */
  kv_verbs_target* (*expose)(kv_verbs_port* port, void* region, uint64_t bytes, char* error,
                             uint64_t error_bytes);
  void (*withdraw)(kv_verbs_target* target); /* every peer has been dismissed */
  kv_verbs_peer* (*accept)(kv_verbs_target* target, const kv_verbs_endpoint* client,
                           kv_verbs_grant* grant, char* error, uint64_t error_bytes);
  /* After it returns no operation of that connection can execute. */
  void (*dismiss)(kv_verbs_peer* peer);
} kv_verbs_api;

/* The library's only symbol. */
const kv_verbs_api* kv_verbs_open(void);

#ifdef __cplusplus
}
#endif

#endif
