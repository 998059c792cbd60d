/* The C ABI of the native core: the only door between it and any other language.
 *
 * Data path: acquire a session, run calls in it, read the outcomes, release it. A session is one
 * lane through the client (its own connections and scratch memory) and belongs to one thread from
 * acquire to release. Everything else is set-up.
 *
 * Functions that return int return a kv_status. Functions that take `error` write one line there,
 * NUL-terminated and cut to `error_bytes`, when they fail. No function throws.
 *
 * Text between "cdef begin" and "cdef end" is also what cffi compiles the Python module from.
 */
#ifndef KVSTORE_API_KVSTORE_H
#define KVSTORE_API_KVSTORE_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* cdef begin */

enum kv_limits {
  KV_ABI_VERSION = 3,
  KV_KEY_BYTES_MAX = 1024,
  KV_TOKEN_BYTES = 16,
  KV_NAME_BYTES = 256,
  /* A get without a buffer leaves values up to this size in the session's arena. */
  KV_ARENA_VALUE_BYTES = 65536
};

enum kv_status {
  KV_OK = 0,
  KV_ABSENT = 1,            /* no such key */
  KV_PENDING = 2,           /* kv_run with KV_RUN_INLINE: it would have to wait; call it again */
  KV_CONDITION_FAILED = 3,  /* if_absent: the key exists; if_version: it has another version */
  KV_OUT_OF_MEMORY = 4,     /* the node is full and evicts nothing */
  KV_NODE_UNREACHABLE = 5,  /* the key's node is down; nothing was applied */
  KV_DEADLINE_EXCEEDED = 6, /* nothing was applied */
  KV_OUTCOME_UNKNOWN = 7,   /* the connection broke on the deciding CAS and it can't be told */
  KV_KEY_INVALID = 8,       /* empty or longer than KV_KEY_BYTES_MAX */
  KV_VALUE_TOO_LARGE = 9,   /* cannot fit in the node, however empty */
  KV_BUFFER_TOO_SMALL = 10, /* data_bytes says what is needed */
  KV_CORRUPT = 11,          /* remote bytes failed their checks again and again */
  KV_FORKED = 12,           /* the client was opened in the parent process */
  KV_CLOSED = 13,           /* the client or node is closed */
  KV_INTERRUPTED = 14,      /* the interrupt check said so, or kv_lock_cancel */
  KV_REFUSED = 15,          /* token, domain, layout, membership: the error line says which */
  KV_NO_ATTACHMENT = 16,    /* this member was never attached */
  KV_FENCED = 17,           /* the node fenced this client out: attach again */
  KV_INVALID = 18,          /* an argument makes no sense: a defect of the caller */
  KV_BUSY = 19,             /* no session was free before the deadline */
  KV_WOULD_DEADLOCK = 20,   /* the caller holds this lock already */
  KV_LOCK_LOST = 21,        /* the node is gone or fenced this client out: others may hold it */
  KV_LOCK_WORN_OUT = 22,    /* the lock has been granted 2^41 times */
  KV_FENCED_WRITE = 23,     /* a newer holder of the fence's lock has written; nothing applied */
  KV_FENCE_MISMATCH = 24,   /* the key is fenced by another lock; nothing was applied */
  KV_LEASE_TOO_SHORT = 25   /* of a lock: below the membership lease of its node */
};

enum kv_fabric_kind {
  KV_FABRIC_LOCAL = 0,
  KV_FABRIC_SHM = 1,
  KV_FABRIC_TCP = 2,
  KV_FABRIC_VERBS = 3
};
enum kv_eviction {
  KV_EVICTION_NONE = 0,
  KV_EVICTION_SAMPLED_LRU = 1,
  KV_EVICTION_LFU = 2,
  KV_EVICTION_FIFO = 3,
  KV_EVICTION_GDSF = 4,
  KV_EVICTION_ADAPTIVE = 5 /* by the reuse that clients have seen, by category and idle time */
};
enum kv_consistency { KV_LINEARIZABLE = 0, KV_REGULAR = 1 };

const char* kv_version(void);
const char* kv_status_name(int status); /* "KV_ABSENT" */
const char* kv_status_text(int status); /* one clear sentence */

/* ---- connections over verbs ------------------------------------------------------------------ */

/* Ports of RDMA devices over which a node, or a client of it, is reached at the same time. */
enum { KV_VERBS_RAILS_MAX = 8 };

/* One end of a reliable connection: what the other end must know of it. */
typedef struct kv_verbs_endpoint {
  uint8_t gid[16];
  uint32_t lid; /* InfiniBand within a subnet; 0 on Ethernet */
  uint32_t queue_pair;
  uint32_t packet_sequence; /* of the first packet that it sends */
  uint32_t mtu_bytes;       /* active at its port; the smaller of both ends is used */
  uint32_t reads_at_once;   /* READs and atomics that it can have under way, as either side */
  uint32_t rail;            /* of the node's, in its order: the one that a client wants or got */
} kv_verbs_endpoint;

/* What a node grants: its end, and the key of its region. For authenticated clients only. */
typedef struct kv_verbs_grant {
  kv_verbs_endpoint node;
  uint64_t region_address;
  uint64_t region_bytes;
  uint32_t remote_key;
} kv_verbs_grant;

/* How a client asks a node, through its control plane, to connect a queue pair of one of its lanes.
 * Called on any thread; returns a kv_status within the time-out. */
typedef int (*kv_verbs_exchange)(void* context, uint32_t lane, const kv_verbs_endpoint* mine,
                                 uint64_t timeout_ns, kv_verbs_grant* grant, char* error,
                                 uint64_t error_bytes);

/* ---- memory node --------------------------------------------------------------------------- */

typedef struct kv_node kv_node;

typedef struct kv_node_config {
  uint64_t capacity_bytes;      /* the whole region, index and all; at least 8 MiB */
  const char* shm_name;         /* NULL: no shm; with '/': a socket path; else an abstract socket */
  const char* tcp_host;         /* NULL: no tcp agent */
  uint32_t tcp_port;            /* 0: any free one */
  uint32_t tcp_threads;         /* 0: one */
  uint32_t eviction;            /* kv_eviction */
  uint32_t consistency;         /* kv_consistency */
  uint32_t hugepages;           /* 1: MFD_HUGETLB */
  uint32_t prefault;            /* 1: touch all pages in the background; RDMA does anyway */
  uint32_t membership_lease_ms; /* 0: 5000 */
  uint32_t fence_after_ms;      /* kill a stopped shm client after this long; 0: never */
  const char* secret;     /* what direct shm attachments must present; NULL or "": same user */
  const char* cluster_id; /* NULL or "": set by the first client */
  const char* members;    /* sorted, joined by '\n'; NULL or "": set by the first client */
  /* NULL: the `cpu` domain. Else the `verbs` domain, without shm and tcp, on this RDMA device, or
   * on all of a list with commas, whose atomics must be of one domain; "": on the device that has
   * `verbs_address`, or the nearest if that is NULL. */
  const char* verbs_device;
  const char* verbs_address;
} kv_node_config;

typedef struct kv_node_description {
  uint64_t node_id;     /* random, new at each start */
  uint64_t incarnation; /* likewise */
  uint64_t region_bytes;
  uint32_t layout_version;
  uint32_t domain;   /* kv_atomic_domain: 1 cpu, 2 verbs */
  uint32_t tcp_port; /* 0: no agent */
  uint32_t eviction;
  uint32_t consistency;
  uint32_t membership_lease_ms;
  char shm_name[256]; /* "": no shm */
  char cluster_id[256];
  char members[4096];     /* sorted, joined by '\n' */
  char verbs_device[512]; /* with commas between several */
  uint32_t verbs_rails;   /* 0 outside the `verbs` domain */
  uint8_t verbs_gids[KV_VERBS_RAILS_MAX][16];
} kv_node_description;

/* What a client needs to attach: given by the control plane to authenticated peers only. */
typedef struct kv_admission {
  uint32_t registration;
  uint8_t token[16];
} kv_admission;

typedef struct kv_node_stats {
  uint64_t capacity_bytes;
  uint64_t segment_bytes;
  uint64_t segments_total;
  uint64_t segments_free;
  uint64_t index_bytes;  /* subtables and their eviction metadata */
  uint64_t object_bytes; /* segments that hold objects */
  uint64_t subtables;
  uint64_t global_depth;
  uint64_t keys; /* live slots, counted when asked */
  uint64_t clients_live;
  uint64_t clients_total;
  uint64_t clients_fenced;  /* died or were cut off */
  uint64_t clients_stalled; /* stopped, and hold reclamation back */
  uint64_t global_epoch;
  uint64_t safe_epoch;
  uint64_t blocks_swept; /* returned from dead clients */
  uint64_t uptime_ms;
  uint64_t cache_hits;        /* of all clients, as their heartbeats tell: reads from copies, */
  uint64_t cache_invalidated; /* copies that writes of other clients took away, */
  uint64_t cache_bypassed;    /* and reads of keys whose copies don't pay */
  uint64_t tcp_connections_open;
  uint64_t tcp_batches;
  uint64_t tcp_reads;
  uint64_t tcp_writes;
  uint64_t tcp_atomics;
  uint64_t tcp_bytes_in;
  uint64_t tcp_bytes_out;
  uint64_t tcp_refused_frames;
  uint64_t tcp_refused_bounds;
  uint64_t tcp_refused_tokens;
  uint64_t shm_refused;
  uint64_t draining; /* 0: no; 1: takes no new clients; 2: has cut off those that it had */
  uint64_t verbs_ports_up;
  uint64_t verbs_ports_down;    /* down, or of a device that is lost */
  uint64_t verbs_port_failures; /* times that one went down */
} kv_node_stats;

enum kv_port_state { KV_PORT_UP = 1, KV_PORT_DOWN = 2, KV_DEVICE_LOST = 3 };

/* A port of an RDMA device over which a node serves its region. */
typedef struct kv_port_record {
  char device[72];   /* as it was named, or the device's own name */
  uint32_t state;    /* kv_port_state */
  uint32_t failures; /* times that it went down */
  char reason[256];  /* of KV_DEVICE_LOST: why it is not served again; "" otherwise */
} kv_port_record;

typedef struct kv_client_record {
  uint32_t registration;
  uint32_t fabric;     /* kv_fabric_kind */
  uint32_t process_id; /* 0 where it isn't on this host */
  uint32_t state;      /* 1 live, 2 stalled, 3 fenced, being swept */
  uint64_t published_epoch;
  uint64_t silent_ms; /* since its heartbeat changed */
  char peer[256];
} kv_client_record;

kv_node* kv_node_open(const kv_node_config* config, char* error, uint64_t error_bytes);
void kv_node_describe(kv_node* node, kv_node_description* description);
int kv_node_admit(kv_node* node, const char* peer, kv_admission* admission, char* error,
                  uint64_t error_bytes);
/* Fences an admission and has what it held swept. KV_ABSENT if there is no such one: after a
 * restart its registration may be another client's, which the token tells apart. */
int kv_node_dismiss(kv_node* node, const kv_admission* admission);
/* Connects a queue pair of an admitted client. It takes the place of the lane's earlier one, which
 * is destroyed first. KV_REFUSED with the reason. */
int kv_node_connect_verbs(kv_node* node, const kv_admission* admission, uint32_t lane,
                          const kv_verbs_endpoint* client, kv_verbs_grant* grant, char* error,
                          uint64_t error_bytes);
/* Sets the cluster once; later calls with the same values are KV_OK, with others KV_REFUSED. */
int kv_node_set_members(kv_node* node, const char* cluster_id, const char* members, char* error,
                        uint64_t error_bytes);
void kv_node_read_stats(kv_node* node, kv_node_stats* stats);
uint32_t kv_node_clients(kv_node* node, kv_client_record* records, uint32_t capacity);
/* The ports of an RDMA device that the node serves, in the order of its rails. */
uint32_t kv_node_ports(kv_node* node, kv_port_record* records, uint32_t capacity);
/* Refuses new attachments from here on. */
void kv_node_drain(kv_node* node);
/* Drains, and takes their access from the clients of other processes: their queue pairs and tcp
 * connections are gone when it returns. Those that map the region over shm are told, and their next
 * operation fails; memory that a process has mapped can't be taken from it. */
void kv_node_revoke(kv_node* node);
/* Clients still attached find the region dead. */
void kv_node_close(kv_node* node);

/* ---- client -------------------------------------------------------------------------------- */

typedef struct kv_client kv_client;
typedef struct kv_session kv_session;

typedef struct kv_client_config {
  uint32_t lanes;                 /* sessions that can run at once; 0: 8 */
  uint32_t address_cache_entries; /* keys whose slot is remembered; 0: 131072; 1: none */
  uint64_t cache_bytes;           /* for copies of values in this process; 0: none are made */
  uint32_t consistency;           /* 1 + kv_consistency: others are refused; 0: any will do */
  uint32_t host_stamps;           /* 1: this host's clients end each other's copies through memory
                                     that they share (/dev/shm); 0: by messages */
  const char* cluster_id;
  const char* members; /* sorted, joined by '\n': rendezvous hashing spreads keys over them */
} kv_client_config;

typedef struct kv_member_state {
  uint32_t fabric; /* kv_fabric_kind */
  uint32_t state;  /* 0 never attached, 1 up, 2 down, 3 fenced */
  uint32_t registration;
  uint32_t restarts; /* attachments that found another incarnation */
  uint64_t node_id;
  uint64_t incarnation;
} kv_member_state;

/* Counters since the client was opened, over all members and sessions. */
typedef struct kv_client_stats {
  uint64_t operations;
  uint64_t reads; /* verbs */
  uint64_t writes;
  uint64_t cas;
  uint64_t faa;
  uint64_t round_trips;     /* batches that a call waited for */
  uint64_t heartbeat_verbs; /* leases and epochs, not in the counts above */
  uint64_t bytes_read;
  uint64_t bytes_written;
  uint64_t cas_conflicts;  /* retries because somebody else won */
  uint64_t verify_retries; /* an object failed its checks and was read again */
  uint64_t splits;
  uint64_t evictions;
  uint64_t address_hits;
  uint64_t address_stale;
  uint64_t limbo_bytes; /* retired, not yet reusable */
  uint64_t reconnects;
  uint64_t cache_hits; /* of the operations, those that copies served */
  uint64_t cache_fills;
  uint64_t cache_spoiled;     /* fills that came to nothing, as somebody was faster */
  uint64_t cache_bypassed;    /* reads of keys whose copies don't pay */
  uint64_t cache_invalidated; /* copies taken away by writes of other clients */
  uint64_t cache_overwritten; /* and by this one's */
  uint64_t cache_handed;      /* of the hits, those whose value came from a client of the same host
                                 after a write, not from the node */
  uint64_t cache_evictions;
  uint64_t cache_revoked; /* times that all copies were dropped, as an answer was missing */
  uint64_t cache_entries;
  uint64_t cache_bytes;
  uint64_t invalidations_sent;
  uint64_t invalidations_received;
  uint64_t invalidations_spared; /* messages to clients of the same host, whose copies ended by
                                    a stamp */
  uint64_t writes_guarded;       /* that met copies of other clients, or of this one */
  uint64_t writes_at_once; /* of these, in one round trip: only clients of this host had any */
  uint64_t leases_waited;  /* writes that waited for the lease of a client without an answer */
  uint64_t uses_dropped;   /* of which the nodes' eviction was not told, there were too many */
} kv_client_stats;

enum kv_copy_kind {
  KV_COPY_OFF = 0,       /* the client makes no copies */
  KV_COPY_HELD = 1,      /* a copy serves reads */
  KV_COPY_NEXT = 2,      /* the next read from the node makes one */
  KV_COPY_WAITS = 3,     /* so does the one after `reads_to_wait` others */
  KV_COPY_PAUSED = 4,    /* none is made for a while, as a writer waited for this client in vain */
  KV_COPY_NO_LEASE = 5,  /* none may be read now: not attached, or not reachable */
  KV_COPY_TOO_LARGE = 6, /* the value is too large for the cache */
  KV_COPY_MORTAL = 7     /* the value has a time to live */
};
/* One key as this client's copies go. The figures begin anew when other keys have displaced it from
 * a table of some thousands. */
typedef struct kv_copy_state {
  uint32_t kind; /* kv_copy_kind */
  uint32_t reads_to_wait;
  uint32_t uses;          /* of the copy that is held, up to 255 */
  uint32_t uses_that_pay; /* so many make up for what a write waits to end a copy */
  uint32_t hits;          /* counted by samples, in steps of 64 */
  uint32_t fills;
  uint32_t spoiled;
  uint32_t invalidated;
  uint32_t overwritten;
  uint32_t bypassed;
} kv_copy_state;

kv_client* kv_client_open(const kv_client_config* config, char* error, uint64_t error_bytes);
/* Every session must have been released. Returns to how many nodes it still owes the end of copies
   of values that it has replaced: these must not take its end for a farewell. */
uint32_t kv_client_close(kv_client* client);

/* Each replaces an earlier attachment of that member, also after a restart of the node.
 * `member` is an index into the member list. */
int kv_client_attach_local(kv_client* client, uint32_t member, kv_node* node, char* error,
                           uint64_t error_bytes);
/* With `admission` NULL the secret is presented instead. `node_id` 0 accepts any node.
 * `reached_at`: the node's address as clients of other hosts know it, so that they can send to this
 * client; NULL or "": there are none. */
int kv_client_attach_shm(kv_client* client, uint32_t member, const char* shm_name, uint64_t node_id,
                         const kv_admission* admission, const char* secret, const char* reached_at,
                         uint64_t timeout_ns, char* error, uint64_t error_bytes);
int kv_client_attach_tcp(kv_client* client, uint32_t member, const char* host, uint32_t port,
                         uint64_t incarnation, const kv_admission* admission, uint64_t timeout_ns,
                         char* error, uint64_t error_bytes);
/* `node_gids`: of the node's `rails`, one behind the other, as it describes itself. `device` NULL
 * or
 * "": those on the way to them; else a device, or a list with commas, and all of it is used.
 * `reached_at`: the node's address, for messages with clients of other hosts; "": there are none.
 * `exchange` is called until the attachment is replaced or the client closed, and `context` must
 * last so long. */
int kv_client_attach_verbs(kv_client* client, uint32_t member, const uint8_t* node_gids,
                           uint32_t rails, const char* device, const char* reached_at,
                           uint32_t registration, kv_verbs_exchange exchange, void* context,
                           uint64_t timeout_ns, char* error, uint64_t error_bytes);
/* Lets values go to and from this memory without a copy where the fabric needs to be told (verbs).
 * KV_REFUSED with the limit that is in the way. The memory must stay until it is unregistered,
 * which needs every call that uses it to have ended. */
int kv_client_register(kv_client* client, void* memory, uint64_t bytes, char* error,
                       uint64_t error_bytes);
void kv_client_unregister(kv_client* client, void* memory);
int kv_client_member(kv_client* client, uint32_t member, kv_member_state* state);
uint32_t kv_client_member_of(kv_client* client, const void* key, uint64_t key_bytes);
void kv_client_read_stats(kv_client* client, kv_client_stats* stats);
void kv_client_copy_of(kv_client* client, const void* key, uint64_t key_bytes,
                       kv_copy_state* state);
/* 1 if every attached member completes inline (local, shm), so that calls rarely wait. */
int kv_client_is_inline(kv_client* client);

/* ---- data path ----------------------------------------------------------------------------- */

enum kv_call_kind { KV_GET = 1, KV_PUT = 2, KV_DELETE = 3, KV_CONTAINS = 4 };
/* Of a lock that is held: see kv_lock_fence. With `lock` 0 the caller numbers its writers itself.
 */
typedef struct kv_fence {
  uint64_t lock;
  uint64_t token;
} kv_fence;

enum kv_call_flags {
  KV_IF_ABSENT = 1,  /* put: only if the key is absent */
  KV_IF_VERSION = 2, /* put, delete: only if the current version is `if_version` */
  KV_PROBE = 4,      /* get, contains: a miss need not be final (one round trip less) */
  KV_WITH_FENCE = 8, /* put, delete: only if nobody has written with a later `fence` */
  KV_UNCACHED = 16   /* get, contains: from the node, whatever copies there are */
};
/* `reuse`: bits 0..15 the key's place in a chain of keys, those before it being of no use without
 * it; bits 16..23 a category of uses that are followed by others alike, 1 to 255. Of a category,
 * bits 0 and 6..7 are the caller's, and bits 1..5 a rank by how often the key was used, 0 if that
 * is not said: of two ranks from 1 on, the higher one is never held to be worth less. */
enum kv_reuse {
  KV_REUSE_CATEGORY_SHIFT = 16,
  KV_REUSE_CATEGORIES = 256,
  KV_REUSE_RANK = 2,   /* a category of the next higher rank is so much more */
  KV_REUSE_RANKS = 32, /* of each kind, which are the categories' bits 6..7 */
  KV_PIN_SECONDS_MAX = 4000
};
enum kv_run_flags {
  KV_RUN_INLINE = 1 /* return KV_PENDING instead of waiting */
};

typedef struct kv_call kv_call;
struct kv_call {
  uint32_t kind;  /* kv_call_kind */
  uint32_t flags; /* kv_call_flags */
  const void* key;
  uint64_t key_bytes;
  const void* value; /* put: the bytes; must stay valid and unchanged until the call is done */
  uint64_t value_bytes;
  void* buffer;          /* get: where the value goes; NULL: see `allocate` */
  uint64_t buffer_bytes; /* what is not the value is unspecified: the bytes past its end, and all of
                          * them after any outcome but KV_OK */
  /* get without a buffer: called on the calling thread for a value of more than
   * KV_ARENA_VALUE_BYTES; NULL from it is KV_OUT_OF_MEMORY. Called a second time only if the value
   * was replaced meanwhile by one of another length; the last memory counts. Without it the value
   * goes to memory of the session, as smaller ones do. It may take the caller's own locks: the
   * library holds none meanwhile. */
  void* (*allocate)(void* context, kv_call* call, uint64_t bytes);
  void* context;
  uint64_t if_version;
  kv_fence fence;
  uint64_t ttl_ms;  /* put: 0 lives until deleted or evicted */
  uint32_t codec;   /* put: stored with the value; get: as stored. 0 bytes, 1 msgpack,
                     * 16 and up as kvstore/llm/codecs says */
  uint32_t reuse;   /* get, put: what eviction should know of this use; see kv_reuse. 0: nothing */
  uint32_t pin_s;   /* contains: keep a key that is there from eviction for so long; 0: no pin */
  uint64_t used_ns; /* get, put, contains: the time of this use for eviction, of CLOCK_MONOTONIC:
                     * keys that are used together have one. 0, or later than the run: its begin */
  /* outcome */
  int32_t status;
  const void* data; /* get: the value; valid until the session is released */
  uint64_t data_bytes;
  uint64_t version; /* get, contains, put: of the value; delete: of what was deleted; a condition
                     * that failed: of what is there, 0 if nothing */
};

/* Waits for a free session until the time-out. With 0 it neither waits nor takes a lock. KV_BUSY,
 * KV_FORKED, KV_CLOSED. */
int kv_session_acquire(kv_client* client, uint64_t timeout_ns, kv_session** session);
void kv_session_release(kv_session* session);

/* Runs the calls, overlapping their round trips, until each has an outcome or the time-out, and
 * returns KV_OK; or KV_PENDING with KV_RUN_INLINE, and then must be called again on the same
 * session (calls NULL, count 0) until it returns KV_OK, before anything else. The same key twice
 * in one run: the calls run in any order. */
int kv_run(kv_session* session, kv_call* calls, uint32_t count, uint64_t timeout_ns,
           uint32_t flags);

/* Serves a get from a copy in this process, without a session, waiting for nothing: KV_OK, and the
 * call has its outcome. KV_ABSENT: nothing is known about the key here, run the call. A value
 * without a buffer goes to memory from `allocate`, whatever its size. */
int kv_cached_get(kv_client* client, kv_call* call);

/* ---- locks --------------------------------------------------------------------------------- */

/* One acquisition; zeroed before its first use, and not moved while it waits or holds. */
typedef struct kv_lock {
  uint64_t opaque[32];
} kv_lock;

enum kv_lock_flags {
  KV_LOCK_SHARED = 1,  /* beside other readers */
  KV_LOCK_IF_FREE = 2, /* KV_BUSY instead of waiting */
  KV_LOCK_INLINE = 4   /* return KV_PENDING instead of blocking */
};

/* Acquires the lock of a name, across the cluster. A thread that waits takes no session. `owner`
 * names the thread or task (not 0): one that holds the lock already is told KV_WOULD_DEADLOCK.
 * With KV_LOCK_INLINE it may return KV_PENDING, and must then be called again with the same
 * arguments, without that flag. A wish whose time-out passes is KV_DEADLINE_EXCEEDED. After
 * `lease_ns`, if that is not 0, the lock goes on to others although it has not been released. */
int kv_lock_acquire(kv_client* client, kv_lock* lock, const void* name, uint64_t name_bytes,
                    uint64_t owner, uint64_t timeout_ns, uint64_t lease_ns, uint32_t flags);
/* KV_LOCK_LOST: it had been lost, or its lease had ended; others may have held it meanwhile. */
int kv_lock_release(kv_lock* lock, uint32_t flags);
/* From any thread: whoever waits for the lock by this kv_lock, now or later, leaves the queue and
 * is told KV_INTERRUPTED. Nothing changes if it is held already. */
void kv_lock_cancel(kv_lock* lock);
/* What its holder's writes carry, so that those of earlier holders are refused: see KV_WITH_FENCE.
 * The token is larger than that of every earlier grant to a writer. */
kv_fence kv_lock_fence(const kv_lock* lock);
/* Of a lock that is held: 1 if its lease has ended, or the node is known to be gone or to have cut
 * this client off. */
int kv_lock_is_lost(const kv_lock* lock);
/* Forgets a held lock whose client has been closed. */
void kv_lock_forget(kv_lock* lock);
/* Who takes several locks takes them in this order, so that nobody waits in a circle. Names may
 * share a lock: they have one place. */
uint64_t kv_lock_order(kv_client* client, const void* name, uint64_t name_bytes);

enum kv_lock_sighting_kind {
  KV_LOCK_IN_USE = 1,   /* of a lock: its queue; `index` is that of the first in it */
  KV_LOCK_IN_RESET = 2, /* the same, while a lock whose holder died is set free */
  KV_LOCK_HOLDS = 3,    /* of a client */
  KV_LOCK_WAITS = 4,
  KV_LOCK_SILENT = 5 /* a client that does not answer, and may have to do with any lock */
};

/* What is seen of a lock, or of a client at a lock. */
typedef struct kv_lock_sighting {
  uint32_t kind; /* kv_lock_sighting_kind */
  uint32_t lock; /* its number in the table of the node */
  uint32_t registration;
  uint32_t requests; /* of a lock: of so many clients; of a client: of so many threads */
  uint32_t writers;  /* of these; of a client: 1 if its place is a writer's */
  uint32_t reserved;
  uint64_t index;
  uint64_t age_ms; /* of a client: since it has been waiting, or holding */
} kv_lock_sighting;

/* The locks of a member that are in use, and who has to do with them, in half a second at most.
 * Sets `count`; `more` is 1 if there was no room for all locks. */
int kv_lock_survey(kv_session* session, uint32_t member, kv_lock_sighting* sightings,
                   uint32_t capacity, uint32_t* count, uint32_t* more, uint64_t timeout_ns);

/* While a call waits, the check runs every 50 ms and after each signal; 1 ends the call with
 * KV_INTERRUPTED. NULL: none. Process-wide. The library holds no lock while it runs. */
void kv_set_interrupt_check(int (*interrupted)(void));

/* Calls of the default time-out: base + bytes / (100 MB/s). */
uint64_t kv_default_timeout_ns(uint64_t bytes);

/* ---- whole-store walks --------------------------------------------------------------------- */

typedef struct kv_scan_entry {
  uint64_t version;
  uint64_t value_bytes;
  uint64_t key_bytes;
  uint8_t key[1024];
} kv_scan_entry;

/* One page of the live keys of a member; `cursor` starts at 0 and is UINT64_MAX after the last
 * page. Keys that stay are seen at least once. Returns KV_OK and sets `count`. */
int kv_scan(kv_session* session, uint32_t member, uint64_t* cursor, kv_scan_entry* entries,
            uint32_t capacity, uint32_t* count, uint64_t timeout_ns);
int kv_count(kv_session* session, uint32_t member, uint64_t* keys, uint64_t timeout_ns);
/* Deletes every key that is there when it comes by. */
int kv_clear(kv_session* session, uint32_t member, uint64_t* deleted, uint64_t timeout_ns);

/* ---- asynchronous form --------------------------------------------------------------------- */

/* One native thread and one session serve any number of submissions at once. */
typedef struct kv_async kv_async;
kv_async* kv_async_open(kv_client* client, char* error, uint64_t error_bytes);
int kv_async_descriptor(kv_async* async); /* an eventfd: readable when there is something to reap */
/* `calls` and all they point to stay valid until `tag` is reaped. Values without a buffer come
 * through `allocate`, called on the native thread, whatever their size. */
int kv_async_submit(kv_async* async, kv_call* calls, uint32_t count, uint64_t timeout_ns,
                    uint64_t tag);
uint32_t kv_async_reap(kv_async* async, uint64_t* tags, uint32_t capacity);
void kv_async_close(kv_async* async); /* what is under way is waited for */

/* ---- diagnosis ----------------------------------------------------------------------------- */

/* Whether the verbs library can be loaded; otherwise one line says why not. */
int kv_verbs_available(char* error, uint64_t error_bytes);

/* The numbers of native/layout by name; returns 0 past the last index. */
int kv_layout_number(uint32_t index, const char** name, uint64_t* value);
const char* kv_crc32c_implementation(void);
uint32_t kv_crc32c(uint32_t crc, const void* data, uint64_t bytes);
uint32_t kv_crc32c_copy(uint32_t crc, void* destination, const void* source, uint64_t bytes);

/* A closed loop of single calls in native code, to measure without the caller's language. Keys are
 * `keys` keys of `key_bytes` each, one after the other; order holds `operations` indexes into
 * them. latency_ns, if not NULL, receives one figure an operation: the
 * time of its batch divided by the calls in it. Returns elapsed nanoseconds, or
 * 0 if a call failed. */
uint64_t kv_bench_loop(kv_client* client, uint32_t kind, const void* keys, uint64_t key_bytes,
                       const uint32_t* order, uint64_t operations, const void* value,
                       uint64_t value_bytes, uint32_t batch, uint32_t* latency_ns);

/* The same of pairs of acquiring and releasing the lock of a name. */
uint64_t kv_bench_lock_loop(kv_client* client, const void* name, uint64_t name_bytes,
                            uint64_t pairs, uint32_t* latency_ns);

/* The table through which a second extension module reaches the data path; see native/python. */
typedef struct kv_data_path {
  uint32_t abi_version;
  int (*session_acquire)(kv_client*, uint64_t, kv_session**);
  void (*session_release)(kv_session*);
  int (*run)(kv_session*, kv_call*, uint32_t, uint64_t, uint32_t);
  uint64_t (*default_timeout_ns)(uint64_t);
  int (*is_inline)(kv_client*);
  void (*set_interrupt_check)(int (*)(void));
  int (*lock_acquire)(kv_client*, kv_lock*, const void*, uint64_t, uint64_t, uint64_t, uint64_t,
                      uint32_t);
  int (*lock_release)(kv_lock*, uint32_t);
  void (*lock_cancel)(kv_lock*);
  kv_fence (*lock_fence)(const kv_lock*);
  int (*lock_is_lost)(const kv_lock*);
  void (*lock_forget)(kv_lock*);
  int (*cached_get)(kv_client*, kv_call*);
} kv_data_path;
const kv_data_path* kv_get_data_path(void);

/* cdef end */

#ifdef __cplusplus
}
#endif

#endif
