/* The message contract of a fabric: datagrams between clients, beside the one-sided verbs on nodes.
 *
 * A port is one client's end. Datagrams may be lost, doubled, delayed and reordered; what arrives
 * arrives whole, but from anybody: who sent it is for the layer above to prove. A port knows
 * addresses, not clients; an address means something only to ports of the same fabric.
 *
 * Plain C and versioned for the reasons of fabric.h.
 */
#ifndef KVSTORE_FABRIC_DATAGRAM_H
#define KVSTORE_FABRIC_DATAGRAM_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define KV_DATAGRAM_ABI_VERSION 1u

enum { KV_DATAGRAM_BYTES_MAX = 320, KV_DATAGRAM_ADDRESS_BYTES = 40 };

typedef struct kv_datagram_address {
  uint8_t bytes[KV_DATAGRAM_ADDRESS_BYTES];
} kv_datagram_address;

typedef struct kv_port kv_port;

typedef struct kv_port_ops {
  uint32_t abi_version;

  /* Hands 1 .. KV_DATAGRAM_BYTES_MAX bytes to the fabric. 1 if it took them, 0 if they are lost
   * already: the address makes no sense here, or a queue is full. Never blocks. Any thread. */
  uint32_t (*send)(kv_port* port, const kv_datagram_address* to, const void* data, uint32_t bytes);

  /* Takes one datagram that has arrived into KV_DATAGRAM_BYTES_MAX bytes; its length, 0 if there is
   * none. Longer ones are dropped. Never blocks. One thread at a time. */
  uint32_t (*receive)(kv_port* port, void* into);

  /* A descriptor that is readable while there is something to receive; -1 if the port is driven by
   * other means. */
  int (*wait_descriptor)(kv_port* port);

  void (*destroy)(kv_port* port);
} kv_port_ops;

/* The head of every fabric's own port structure. */
struct kv_port {
  const kv_port_ops* ops;
  kv_datagram_address address; /* where others send to */
};

#ifdef __cplusplus
}
#endif

#endif
