// Who is attached to the node: registrations, tokens, leases, and the node's side of the epochs.
//
// A registration is never given twice in an incarnation. It owns the client line and the registry
// line at its number modulo the number of lines, so a number whose lines are taken is passed over.
// A client is left out of the safe epoch only after it has been fenced.
//
// Thread-safe. The lines themselves are plain words: the registry lines and the node line are
// stored here alone, the client lines read.

#pragma once

#include <array>
#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include "api/kvstore.h"
#include "layout/layout.hpp"

namespace kvstore {

using Token = std::array<uint8_t, KV_TOKEN_BYTES>;

struct Registered {
  uint32_t registration = 0;
  Token token{};
  uint32_t fabric = KV_FABRIC_TCP;
  int process = 0;
  int process_descriptor = -1;  // pidfd; owned
  bool connected = false;
  bool was_connected = false;  // ever
  bool stalled = false;
  layout::ClientState state = layout::ClientState::kNone;
  uint64_t heartbeat = 0;
  uint64_t heard_ns = 0;  // boot time when the heartbeat last changed
  // Of its line when that was last looked at.
  uint64_t cache_hits = 0;
  uint32_t cache_invalidated = 0;
  uint32_t cache_bypassed = 0;
  std::string peer;
};

class Registry {
 public:
  Registry(uint8_t* region, const layout::Geometry& geometry);
  ~Registry();

  // Grants a registration; 0 if no line is free. The last ones are for clients of the node's own
  // process: without its own client it would sweep none of the lines that the others have taken.
  uint32_t admit(const std::string& peer, uint32_t fabric, Token& token);
  bool authenticate(uint32_t registration, const Token& token);
  // Notes how the client came; takes over the descriptor.
  bool connected(uint32_t registration, uint32_t fabric, int process, int process_descriptor);
  void disconnected(uint32_t registration);

  // Advances the epochs and the clock from what the clients have written.
  struct Tick {
    uint64_t pressure = 0;  // what some client waits for, as in ClientLine::wants_memory
    bool busy = false;
    uint64_t losses = 0;           // NodeLine::losses
    std::vector<uint32_t> silent;  // live, but not heard of for a membership lease
  };
  Tick tick(uint64_t lease_ns);

  // What `silent` clients are: only these may be fenced without more ado.
  bool find(uint32_t registration, Registered& found);
  void set_stalled(uint32_t registration, bool stalled);
  // After the fence: it is left out of the epochs from here on. False if it was already. `left`:
  // of its own will. One that never connected has left nothing behind: others do not hear of it.
  bool mark_fenced(uint32_t registration, bool left);
  // After the sweep: its lines may be used again.
  void mark_swept(uint32_t registration);

  std::vector<uint32_t> live();
  // Without `hidden`, those of the node's own client.
  uint32_t list(kv_client_record* records, uint32_t capacity,
                const std::array<uint32_t, 2>& hidden);
  void read_stats(kv_node_stats& stats);
  uint32_t clients_live();

 private:
  layout::NodeLine& node_line() const;
  layout::ClientLine& client_line(uint32_t registration) const;
  layout::RegistryLine& registry_line(uint32_t registration) const;
  Registered* locate(uint32_t registration);
  void refresh_safe_epoch_locked();
  void count_copies_locked(Registered& line, const layout::ClientLine& client);

  uint8_t* const region_;
  const layout::Geometry geometry_;
  const uint64_t began_ns_;
  std::mutex mutex_;
  uint32_t next_ = 1;
  std::vector<Registered> lines_;
  uint64_t admitted_ = 0;
  uint32_t taken_ = 0;  // lines that are not free
  uint32_t live_ = 0;   // of these
  uint64_t fenced_ = 0;
  uint64_t cache_hits_ = 0;
  uint64_t cache_invalidated_ = 0;
  uint64_t cache_bypassed_ = 0;
};

}  // namespace kvstore
