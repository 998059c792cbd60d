#include "fabric/verbs/port.hpp"

#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <vector>

#include "base/numa.hpp"

namespace kvstore::verbs {
namespace {

struct FreeList {
  void operator()(ibv_device** list) const { ibv_free_device_list(list); }
};

bool is_mapped_ipv4(const Gid& gid) {
  static constexpr uint8_t kPrefix[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
  return std::equal(std::begin(kPrefix), std::end(kPrefix), gid.begin());
}

bool is_link_local(const Gid& gid) {
  return gid[0] == 0xfe && (gid[1] & 0xc0) == 0x80;
}

// How well a GID serves where no address is wanted: one that is routed before one that is not.
// 0: not at all. RoCE v1 frames are not routed and not every device has them.
unsigned rank(const ibv_gid_entry& entry, const Gid& gid, bool ethernet) {
  if (!ethernet) return entry.gid_index == 0 ? 3 : 0;
  if (entry.gid_type != IBV_GID_TYPE_ROCE_V2) return 0;
  if (is_mapped_ipv4(gid)) return 3;
  return is_link_local(gid) ? 1 : 2;
}

Gid bytes_of(const ibv_gid& gid) {
  Gid bytes;
  std::copy_n(gid.raw, bytes.size(), bytes.begin());
  return bytes;
}

// The best GID of a port, or the wanted one if that serves; returns its rank.
unsigned find_gid(const kv_verbs_port& port, const Gid* wanted, PortState& state, Gid& found) {
  unsigned best = 0;
  const bool ethernet = state.attributes.link_layer == IBV_LINK_LAYER_ETHERNET;
  for (int index = 0; index < state.attributes.gid_tbl_len; ++index) {
    ibv_gid_entry entry{};
    if (ibv_query_gid_ex(port.context.get(), port.number, uint32_t(index), &entry, 0) != 0) {
      continue;
    }
    const Gid gid = bytes_of(entry.gid);
    const unsigned rating = rank(entry, gid, ethernet);
    if (rating <= best || (wanted != nullptr && gid != *wanted)) continue;
    best = rating;
    found = gid;
    state.gid_index = uint32_t(index);
  }
  return best;
}

bool query(const kv_verbs_port& port, ibv_port_attr& attributes) {
  return ibv_query_port(port.context.get(), port.number, &attributes) == 0 &&
         attributes.state == IBV_PORT_ACTIVE;
}

std::string name_of(const kv_verbs_port& port) {
  return std::string(ibv_get_device_name(port.context->device)) + " port " +
         std::to_string(port.number);
}

// Which device is wanted, and which of its ports.
struct Wish {
  // Of `mlx5_0` and `mlx5_0:2`. The name is empty if any will do, the number 0.
  explicit Wish(const std::string& text) : name(text) {
    const size_t colon = text.rfind(':');
    if (colon == std::string::npos) return;
    const char* const end = text.data() + text.size();
    const auto [stop, code] = std::from_chars(text.data() + colon + 1, end, port);
    if (code == std::errc() && stop == end) name.resize(colon);
  }
  std::string name;
  unsigned port = 0;
};

// What was seen of the devices, for who wonders why none serves.
struct Sights {
  int devices = 0;
  bool wanted = false;  // the device that was named
  std::string active;   // a port without the address
};

// Opens the best active port of a device, or the one with the number, if it is not 0.
unsigned open_device(ibv_device* device, unsigned only, const Gid* wanted, kv_verbs_port& port,
                     Sights& sights) {
  port.context.reset(ibv_open_device(device));
  if (!port.context || ibv_query_device(port.context.get(), &port.limits) != 0) return 0;
  for (unsigned number = 1; number <= port.limits.phys_port_cnt; ++number) {
    if (only != 0 && number != only) continue;
    port.number = uint8_t(number);
    PortState state;
    if (!query(port, state.attributes)) continue;
    if (const unsigned rating = find_gid(port, wanted, state, port.gid); rating > 0) return rating;
    sights.active = name_of(port);
  }
  return 0;
}

std::string why_none(const std::string& device, const Gid* gid, const Sights& sights) {
  if (sights.devices == 0) {
    return "this host has no RDMA device; for Soft-RoCE over a network card: sudo kvstore rxe up";
  }
  if (!device.empty() && !sights.wanted) {
    return "there is no RDMA device " + device + "; `rdma link show` lists what there is";
  }
  if (sights.active.empty()) {
    const std::string which = device.empty() ? "no RDMA device" : "no port of " + device;
    return which + " is active; see `rdma link show`";
  }
  if (gid != nullptr) {
    return sights.active + " is active, but not with the wanted address; see `ip address`";
  }
  return sights.active +
         " is active, but has no address: give its network card one (`ip address add`)";
}

}  // namespace

std::unique_ptr<kv_verbs_port> open_port(const std::string& device, const Gid* gid,
                                         std::string& error) {
  int count = 0;
  const std::unique_ptr<ibv_device*, FreeList> list(ibv_get_device_list(&count));
  if (!list) {
    error = std::string("can't list RDMA devices: ") + std::strerror(errno);
    return nullptr;
  }
  std::unique_ptr<kv_verbs_port> best;
  unsigned best_rating = 0;
  uint32_t best_distance = 0;
  const uint32_t numa_node = current_numa_node();
  const Wish wish(device);
  Sights sights{count, false, ""};
  for (int i = 0; i < count; ++i) {
    ibv_device* const candidate = list.get()[i];
    const std::string name = ibv_get_device_name(candidate);
    if (!wish.name.empty() && name != wish.name) continue;
    sights.wanted = true;
    auto port = std::make_unique<kv_verbs_port>();
    const unsigned rating = open_device(candidate, wish.port, gid, *port, sights);
    const uint32_t distance = rdma_device_distance("/sys", name, numa_node);
    if (rating < best_rating || rating == 0) continue;
    if (rating == best_rating && distance >= best_distance) continue;
    best = std::move(port);
    best_rating = rating;
    best_distance = distance;
  }
  if (!best) {
    error = why_none(device, gid, sights);
    return nullptr;
  }
  if (best->limits.atomic_cap == IBV_ATOMIC_NONE) {
    error = std::string(ibv_get_device_name(best->context->device)) + " has no atomics";
    return nullptr;
  }
  // An event is asked for by whoever also waits for other things.
  const int events = best->context->async_fd;
  const int flags = ::fcntl(events, F_GETFL);
  if (flags < 0 || ::fcntl(events, F_SETFL, flags | O_NONBLOCK) != 0) {
    error = std::string("can't listen to the device's events: ") + std::strerror(errno);
    return nullptr;
  }
  best->domain.reset(ibv_alloc_pd(best->context.get()));
  if (!best->domain) {
    error = std::string("can't make a protection domain: ") + std::strerror(errno);
    return nullptr;
  }
  return best;
}

uint32_t next_event(kv_verbs_port& port) {
  ibv_async_event event{};
  if (ibv_get_async_event(port.context.get(), &event) != 0) {
    // There is nothing to read, or never will be again.
    return errno == EAGAIN || errno == EINTR ? KV_VERBS_NO_EVENT : KV_VERBS_DEVICE_LOST;
  }
  ibv_ack_async_event(&event);
  switch (event.event_type) {
    case IBV_EVENT_DEVICE_FATAL:
      return KV_VERBS_DEVICE_LOST;
    case IBV_EVENT_PORT_ACTIVE:
    case IBV_EVENT_PORT_ERR:
      return event.element.port_num == port.number ? KV_VERBS_PORT_CHANGED : KV_VERBS_OTHER_EVENT;
    default:
      return KV_VERBS_OTHER_EVENT;
  }
}

bool look_up(const kv_verbs_port& port, PortState& state, std::string& error) {
  if (!query(port, state.attributes)) {
    error = name_of(port) + " is not active";
    return false;
  }
  Gid found{};
  if (find_gid(port, &port.gid, state, found) > 0) return true;
  error = name_of(port) + " has lost the address that it was attached with";
  return false;
}

uint32_t mtu_bytes(ibv_mtu mtu) {
  return 128u << unsigned(mtu);  // IBV_MTU_256 is 1
}

// Soft-RoCE executes atomics of all its devices under one lock of the kernel, although it claims no
// more than a device.
bool atomics_span_devices(const ibv_device_attr& limits) {
  constexpr uint32_t kSoftRoceVendor = 0xff'ffff;
  return limits.atomic_cap == IBV_ATOMIC_GLOB || limits.vendor_id == kSoftRoceVendor;
}

uint32_t reads_at_once(const ibv_device_attr& limits) {
  constexpr int kEnough = 16;
  const int least = std::min(limits.max_qp_rd_atom, limits.max_qp_init_rd_atom);
  return uint32_t(std::clamp(least, 1, kEnough));
}

}  // namespace kvstore::verbs
