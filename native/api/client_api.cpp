// The C ABI of clients and their data path.

#include <algorithm>
#include <cstring>
#include <thread>

#include "api/guard.hpp"
#include "api/kvstore.h"
#include "base/fork.hpp"
#include "lock/survey.hpp"
#include "store/client.hpp"
#include "store/transports.hpp"
#include "store/verbs_transport.hpp"
#include "store/walk.hpp"

using namespace kvstore;

struct kv_client {
  explicit kv_client(const kv_client_config& config, const std::vector<std::string>& members)
      : client(config.lanes == 0 ? 8 : config.lanes,
               config.address_cache_entries == 0 ? 131072 : config.address_cache_entries, members,
               true, config.cache_bytes) {
    if (config.host_stamps != 0) client.share_stamps(HostStamps::open);
    if (config.consistency != 0) client.require_consistency(config.consistency - 1);
  }
  Client client;
};

namespace {

std::vector<std::string> split_lines(const char* text) {
  std::vector<std::string> lines;
  std::string line;
  for (const char* at = text == nullptr ? "" : text; *at != '\0'; ++at) {
    if (*at == '\n') {
      lines.push_back(std::exchange(line, {}));
    } else {
      line += *at;
    }
  }
  if (!line.empty()) lines.push_back(line);
  if (lines.empty()) lines.push_back("self");
  return lines;
}

Lane* as_lane(kv_session* session) {
  return reinterpret_cast<Lane*>(session);
}

uint64_t deadline_after(uint64_t timeout_ns) {
  const uint64_t now_ns = monotonic_ns();
  return timeout_ns > UINT64_MAX - now_ns ? UINT64_MAX : now_ns + timeout_ns;
}

// Where nobody has ever used a lock, no table is made for it.
Task<Status> survey(Channel& channel, size_t locks_max, uint64_t until_ns,
                    std::vector<kv_lock_sighting>& seen, bool& more) {
  bool has = false;
  const Status found = co_await has_lock_table(channel.remote, has);
  if (found != Status::kOk || !has) co_return found;
  LockSpace& space = channel.attachment->locks;
  const Status opened = co_await space.open(channel.remote, channel.attachment->segments);
  if (opened != Status::kOk) co_return opened;
  co_return co_await survey_locks(channel.remote, space, locks_max, until_ns, seen, more);
}

template <class Start>
int run_walk(kv_session* session, uint32_t member, uint64_t timeout_ns, Start&& start) {
  Lane& lane = *as_lane(session);
  if (member >= lane.members()) return KV_INVALID;
  Channel& channel = lane.channel(member);
  const uint64_t deadline_ns = deadline_after(timeout_ns);
  if (const Status s = channel.ready(deadline_ns); s != Status::kOk) return int(s);
  return int(lane.run_task([&] { return start(channel); }, deadline_ns));
}

}  // namespace

extern "C" {

kv_client* kv_client_open(const kv_client_config* config, char* error, uint64_t error_bytes) {
  const std::vector<std::string> members = split_lines(config->members);
  if (config->lanes > 1024) {
    set_error(error, error_bytes, "at most 1024 lanes");
    return nullptr;
  }
  return guarded(error, error_bytes, static_cast<kv_client*>(nullptr),
                 [&] { return new kv_client(*config, members); });
}

uint32_t kv_client_close(kv_client* client) {
  if (client == nullptr) return 0;
  client->client.close();
  if (client->client.forked()) return 0;  // its threads and locks are the parent's
  const uint32_t owing = client->client.members_owed();
  delete client;
  return owing;
}

int kv_client_attach_shm(kv_client* client, uint32_t member, const char* shm_name, uint64_t node_id,
                         const kv_admission* admission, const char* secret, const char* reached_at,
                         uint64_t timeout_ns, char* error, uint64_t error_bytes) {
  if (member >= client->client.members()) return KV_INVALID;
  ShmHello hello;
  hello.node_id = node_id;
  if (admission != nullptr) {
    hello.registration = admission->registration;
    std::copy_n(admission->token, hello.token.size(), hello.token.begin());
  } else if (secret != nullptr) {
    const size_t bytes = std::strlen(secret);
    if (bytes > kSecretBytesMax) {
      set_error(error, error_bytes, "the token is too long");
      return KV_REFUSED;
    }
    hello.secret_bytes = uint32_t(bytes);
    std::copy_n(secret, bytes, hello.secret.begin());
  }
  std::string line;
  return guarded(error, error_bytes, int(KV_OUT_OF_MEMORY), [&] {
    const Status s =
        attach_shm(client->client, member, shm_name, hello, reached_at == nullptr ? "" : reached_at,
                   deadline_after(timeout_ns), line);
    set_error(error, error_bytes, line);
    return int(s);
  });
}

int kv_client_attach_tcp(kv_client* client, uint32_t member, const char* host, uint32_t port,
                         uint64_t incarnation, const kv_admission* admission, uint64_t timeout_ns,
                         char* error, uint64_t error_bytes) {
  if (member >= client->client.members() || admission == nullptr) return KV_INVALID;
  TcpTarget target;
  target.host = host;
  target.port = uint16_t(port);
  target.registration = admission->registration;
  std::copy_n(admission->token, target.token.size(), target.token.begin());
  target.incarnation = incarnation;
  std::string line;
  return guarded(error, error_bytes, int(KV_OUT_OF_MEMORY), [&] {
    const Status s = attach_tcp(client->client, member, target, deadline_after(timeout_ns), line);
    set_error(error, error_bytes, line);
    return int(s);
  });
}

int kv_client_attach_verbs(kv_client* client, uint32_t member, const uint8_t* node_gids,
                           uint32_t rails, const char* device, const char* reached_at,
                           uint32_t registration, kv_verbs_exchange exchange, void* context,
                           uint64_t timeout_ns, char* error, uint64_t error_bytes) {
  if (member >= client->client.members() || exchange == nullptr) return KV_INVALID;
  if (rails == 0 || rails > KV_VERBS_RAILS_MAX) return KV_INVALID;
  VerbsTarget target;
  target.node = rdma_addresses(node_gids, rails);
  target.device = device == nullptr ? "" : device;
  target.reached_at = reached_at == nullptr ? "" : reached_at;
  target.registration = registration;
  target.exchange = [exchange, context](uint32_t lane, const kv_verbs_endpoint& mine,
                                        uint64_t left_ns, kv_verbs_grant& grant,
                                        std::string& reason) {
    char text[512] = "";
    const int status = exchange(context, lane, &mine, left_ns, &grant, text, sizeof text);
    reason = text;
    return Status(status);
  };
  return guarded(error, error_bytes, int(KV_OUT_OF_MEMORY), [&] {
    std::string line;
    const Status s = attach_verbs(client->client, member, target, deadline_after(timeout_ns), line);
    set_error(error, error_bytes, line);
    return int(s);
  });
}

int kv_client_register(kv_client* client, void* memory, uint64_t bytes, char* error,
                       uint64_t error_bytes) {
  if (memory == nullptr || bytes == 0) return KV_INVALID;
  return guarded(error, error_bytes, int(KV_OUT_OF_MEMORY), [&] {
    std::string line;
    const Status s = client->client.register_memory(memory, bytes, line);
    set_error(error, error_bytes, line);
    return int(s);
  });
}

void kv_client_unregister(kv_client* client, void* memory) {
  client->client.unregister_memory(memory);
}

int kv_client_member(kv_client* client, uint32_t member, kv_member_state* state) {
  if (member >= client->client.members()) return KV_INVALID;
  *state = kv_member_state{};
  Member& found = client->client.member(member);
  const std::shared_ptr<Attachment> attachment = client->client.attachment(member);
  if (!attachment) return KV_OK;
  state->fabric = attachment->transport->fabric();
  state->state = uint32_t(attachment->state.load());
  state->registration = attachment->registration;
  state->restarts = found.restarts;
  state->node_id = attachment->superblock.node_id;
  state->incarnation = attachment->superblock.incarnation;
  return KV_OK;
}

uint32_t kv_client_member_of(kv_client* client, const void* key, uint64_t key_bytes) {
  return client->client.member_of(make_key(key, key_bytes).hash);
}

void kv_client_read_stats(kv_client* client, kv_client_stats* stats) {
  client->client.read_stats(*stats);
}

void kv_client_copy_of(kv_client* client, const void* key, uint64_t key_bytes,
                       kv_copy_state* state) {
  client->client.read_copy_state(make_key(key, key_bytes), *state);
}

int kv_client_is_inline(kv_client* client) {
  return client->client.is_inline() ? 1 : 0;
}

int kv_session_acquire(kv_client* client, uint64_t timeout_ns, kv_session** session) {
  Status status = Status::kOk;
  *session = reinterpret_cast<kv_session*>(client->client.acquire_lane(timeout_ns, status));
  return int(status);
}

void kv_session_release(kv_session* session) {
  Lane* lane = as_lane(session);
  lane->client().release_lane(*lane);
}

int kv_run(kv_session* session, kv_call* calls, uint32_t count, uint64_t timeout_ns,
           uint32_t flags) {
  if (calls != nullptr && count == 0) return KV_OK;
  return as_lane(session)->run(calls, count, timeout_ns, (flags & KV_RUN_INLINE) != 0);
}

int kv_cached_get(kv_client* client, kv_call* call) {
  Client& store = client->client;
  if (!store.makes_copies() || (call->flags & KV_UNCACHED) != 0) return KV_ABSENT;
  if (call->key_bytes == 0 || call->key_bytes > KV_KEY_BYTES_MAX || store.forked()) {
    return KV_ABSENT;
  }
  const Key key = make_key(call->key, call->key_bytes);
  const auto place_for = [](kv_call& asking, uint64_t bytes) {
    return asking.allocate(asking.context, &asking, bytes);
  };
  ClientCache& cache = *store.member(store.member_of(key.hash)).cache;
  return cache.get(key, *call, place_for) ? KV_OK : KV_ABSENT;
}

void kv_set_interrupt_check(int (*interrupted)(void)) {
  Executor::set_interrupt_check(interrupted);
}

uint64_t kv_default_timeout_ns(uint64_t bytes) {
  constexpr uint64_t kBytesPerSecond = 100'000'000;
  return 5 * kSecond + bytes / kBytesPerSecond * kSecond +
         bytes % kBytesPerSecond * kSecond / kBytesPerSecond;
}

int kv_scan(kv_session* session, uint32_t member, uint64_t* cursor, kv_scan_entry* entries,
            uint32_t capacity, uint32_t* count, uint64_t timeout_ns) {
  return run_walk(session, member, timeout_ns, [&](Channel& channel) {
    return scan_page(channel, *cursor, entries, capacity, *count);
  });
}

int kv_lock_survey(kv_session* session, uint32_t member, kv_lock_sighting* sightings,
                   uint32_t capacity, uint32_t* count, uint32_t* more, uint64_t timeout_ns) {
  std::vector<kv_lock_sighting> seen;
  bool cut = false;
  const int status = run_walk(session, member, timeout_ns, [&](Channel& channel) {
    return survey(channel, capacity, deadline_after(timeout_ns), seen, cut);
  });
  *count = uint32_t(std::min<size_t>(seen.size(), capacity));
  *more = cut || seen.size() > capacity ? 1 : 0;
  std::copy_n(seen.begin(), *count, sightings);
  return status;
}

int kv_count(kv_session* session, uint32_t member, uint64_t* keys, uint64_t timeout_ns) {
  return run_walk(session, member, timeout_ns,
                  [&](Channel& channel) { return count_keys(channel, *keys); });
}

int kv_clear(kv_session* session, uint32_t member, uint64_t* deleted, uint64_t timeout_ns) {
  return run_walk(session, member, timeout_ns,
                  [&](Channel& channel) { return clear_keys(channel, *deleted); });
}

uint64_t kv_bench_loop(kv_client* client, uint32_t kind, const void* keys, uint64_t key_bytes,
                       const uint32_t* order, uint64_t operations, const void* value,
                       uint64_t value_bytes, uint32_t batch, uint32_t* latency_ns) {
  kv_session* session = nullptr;
  batch = std::max(batch, 1u);
  std::vector<kv_call> calls(batch);
  std::vector<std::vector<uint8_t>> buffers(
      kind == KV_GET ? batch : 0, std::vector<uint8_t>(std::max<uint64_t>(value_bytes, 1)));
  const uint64_t began_ns = monotonic_ns();
  for (uint64_t done = 0; done < operations; done += batch) {
    const uint32_t count = uint32_t(std::min<uint64_t>(batch, operations - done));
    for (uint32_t i = 0; i < count; ++i) {
      kv_call& call = calls[i];
      call = kv_call{};
      call.kind = kind;
      call.key = static_cast<const uint8_t*>(keys) + order[done + i] * key_bytes;
      call.key_bytes = key_bytes;
      call.value = value;
      call.value_bytes = kind == KV_PUT ? value_bytes : 0;
      if (kind == KV_GET) {
        call.buffer = buffers[i].data();
        call.buffer_bytes = buffers[i].size();
      }
    }
    const uint64_t start_ns = latency_ns != nullptr ? monotonic_ns() : 0;
    if (kv_session_acquire(client, kSecond, &session) != KV_OK) return 0;
    kv_run(session, calls.data(), count, kv_default_timeout_ns(count * value_bytes), 0);
    kv_session_release(session);
    if (latency_ns != nullptr) {
      const uint64_t each = (monotonic_ns() - start_ns) / count;
      for (uint32_t i = 0; i < count; ++i) latency_ns[done + i] = uint32_t(each);
    }
    for (uint32_t i = 0; i < count; ++i) {
      if (calls[i].status != KV_OK) return 0;
    }
  }
  return std::max<uint64_t>(monotonic_ns() - began_ns, 1);
}

const kv_data_path* kv_get_data_path(void) {
  static const kv_data_path table = {
      KV_ABI_VERSION,        kv_session_acquire,  kv_session_release,     kv_run,
      kv_default_timeout_ns, kv_client_is_inline, kv_set_interrupt_check, kv_lock_acquire,
      kv_lock_release,       kv_lock_cancel,      kv_lock_fence,          kv_lock_is_lost,
      kv_lock_forget,        kv_cached_get};
  return &table;
}

}  // extern "C"

Client& client_of(kv_client* client) {
  return client->client;
}
