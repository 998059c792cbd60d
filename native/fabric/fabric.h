/* The fabric contract: one-sided verbs on the memory of one node.
 *
 * Protocols are written against this table and never ask which fabric is behind it; a fabric
 * never knows what a key, a slot or a lock is. The table is plain C and versioned, because a
 * fabric may live in a separately loaded library (verbs does) and no C++ type or exception may
 * cross that boundary.
 *
 * Semantics are those of an RDMA reliable connection and no stronger:
 *  - Atomicity and alignment are 8 bytes. A READ or WRITE of more may be torn at any 8-byte
 *    boundary by concurrent access. CAS and FAA need an 8-byte aligned offset.
 *  - The operations of a batch execute at the node in their order. So do the batches of a
 * connection, except that a WRITE or an atomic may overtake a READ, and a WRITE an atomic, of an
 * earlier batch that has not completed. Nothing is ordered between two connections.
 *  - A batch completes once, when all of its operations have.
 *  - An error breaks the connection. A batch that was posted but has no completion is then LOST:
 *    each of its operations may or may not have executed, a prefix in order.
 *  - Operations outside the region, misaligned atomics and unknown kinds are REFUSED: neither the
 *    refused operation nor any later one executes, and the connection is closed.
 *
 * Threads: a connection belongs to one thread at a time (the holder of its lane). `close` may be
 * called by the holder only.
 */
#ifndef KVSTORE_FABRIC_FABRIC_H
#define KVSTORE_FABRIC_FABRIC_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define KV_FABRIC_ABI_VERSION 1u

/* Atomics of a NIC and of a CPU on one word destroy each other, so a region belongs to exactly one
 * domain and a client of the other one is refused at attach. */
enum kv_atomic_domain { KV_DOMAIN_CPU = 1, KV_DOMAIN_VERBS = 2, KV_DOMAIN_SIM = 3 };

enum kv_op_kind { KV_OP_READ = 1, KV_OP_WRITE = 2, KV_OP_CAS = 3, KV_OP_FAA = 4 };

enum kv_op_flags {
  /* READ and WRITE: `result` receives the CRC32C of exactly the bytes moved, continued from
   * `operand` (0 to start). For a READ it is computed over the bytes as they arrived in `local`. */
  KV_OP_CRC32C = 1
};

enum kv_fabric_status {
  KV_FABRIC_OK = 0,      /* every operation of the batch has executed */
  KV_FABRIC_PENDING = 1, /* posted; `complete` will be called from `poll` or `close` */
  KV_FABRIC_LOST = 2,    /* the connection broke: executed or not is unknown */
  KV_FABRIC_REFUSED = 3, /* the node refused an operation; the connection is closed */
  KV_FABRIC_DOWN = 4     /* the connection was closed before the post: nothing executed */
};

typedef struct kv_op {
  uint64_t offset;  /* bytes from the start of the region */
  uint64_t length;  /* READ, WRITE: bytes, at least 1; CAS, FAA: 8 */
  void* local;      /* READ: destination, WRITE: source (not written to); atomics: unused */
  uint64_t operand; /* CAS: expected word; FAA: addend; KV_OP_CRC32C: CRC to continue */
  uint64_t desire;  /* CAS: new word */
  uint64_t result;  /* CAS, FAA: the word before; KV_OP_CRC32C: the CRC */
  uint32_t kind;    /* kv_op_kind */
  uint32_t flags;   /* kv_op_flags */
} kv_op;

typedef struct kv_batch {
  kv_op* ops;
  uint32_t op_count; /* 1 .. kv_connection.max_batch_ops */
  uint32_t status;   /* kv_fabric_status, valid once complete */
  /* Called exactly once if `post` returned PENDING, on the connection's thread, from within `poll`
   * or `close`. It must not post or close; it notes that the batch is done. */
  void (*complete)(struct kv_batch* batch);
  void* context;         /* the poster's */
  struct kv_batch* next; /* the fabric's, from post to completion */
  uint64_t sequence;     /* the fabric's, from post to completion */
} kv_batch;

typedef struct kv_connection kv_connection;

/* What every connection allows at least: a lane's calls and fan-outs together, a heartbeat. */
enum { KV_FABRIC_OUTSTANDING_LEAST = 192, KV_FABRIC_BATCH_OPS_LEAST = 640 };

typedef struct kv_connection_ops {
  uint32_t abi_version;

  /* Takes the batch, its operations and their local memory until completion. Returns OK or an error
   * status when it completed inline (`complete` is then not called), PENDING otherwise. A fabric
   * may hold a posted batch back until the next `poll`, so as to send many at once. At most
   * `max_outstanding` batches may be pending. Never blocks. */
  uint32_t (*post)(kv_connection* connection, kv_batch* batch);

  /* Sends what was held back, takes in what has arrived, completes what is done. Never blocks.
   * Returns the number of batches completed by this call. */
  uint32_t (*poll)(kv_connection* connection);

  /* The descriptor whose readiness makes a `poll` worthwhile and the poll(2) events to wait for;
   * -1 if every batch completes inline. */
  int (*wait_descriptor)(kv_connection* connection, short* events);

  /* Breaks the connection: pending batches complete as LOST before it returns; later posts are
   * DOWN. Idempotent. */
  void (*close)(kv_connection* connection);

  /* Closes and frees. */
  void (*destroy)(kv_connection* connection);
} kv_connection_ops;

/* The head of every fabric's own connection structure. */
struct kv_connection {
  const kv_connection_ops* ops;
  uint64_t region_bytes;
  uint32_t max_batch_ops;   /* at least KV_FABRIC_BATCH_OPS_LEAST */
  uint32_t max_outstanding; /* at least KV_FABRIC_OUTSTANDING_LEAST */
  /* A READ may fetch this many bytes more than needed where that saves a round trip. */
  uint32_t eager_read_bytes;
  uint32_t completes_inline; /* 1: post never returns PENDING */
  uint32_t broken;           /* 1: closed, by either side */
  uint32_t reserved;
  /* Where READs are loads from this process's memory: the region, to be prefetched from and nothing
   * else. NULL otherwise. */
  const uint8_t* mapped_region;
};

#ifdef __cplusplus
}
#endif

#endif
