#include "node/upkeep.hpp"

#include <poll.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <utility>

#include "base/variant.hpp"
#include "coro/clock.hpp"

namespace kvstore {
namespace {

constexpr uint64_t kIdleTickNs = 20 * kMillisecond;
constexpr uint64_t kBusyTickNs = 5 * kMillisecond;
constexpr uint64_t kPressedTickNs = kMillisecond;

bool exited(int process_descriptor) {
  pollfd descriptor{process_descriptor, POLLIN, 0};
  return ::poll(&descriptor, 1, 0) > 0;
}

// Of a process that has begun to: its sockets hang up a moment before it is gone.
bool exits(int process_descriptor) {
  constexpr int kExitMs = 200;
  pollfd descriptor{process_descriptor, POLLIN, 0};
  return ::poll(&descriptor, 1, kExitMs) > 0;
}

}  // namespace

Upkeep::Upkeep(Registry& registry, const Rules& rules, Told cut_off, Told fenced,
               std::function<void()> lost)
    : registry_(registry),
      rules_(rules),
      cut_off_(std::move(cut_off)),
      fenced_(std::move(fenced)),
      lost_(std::move(lost)) {}

uint64_t Upkeep::tick() {
  const Registry::Tick tick = registry_.tick(rules_.lease_ns);
  for (const uint32_t registration : tick.silent) judge_silent(registration);
  if (tick.losses != losses_seen_) lost_();
  losses_seen_ = tick.losses;
  if (tick.pressure != 0) return kPressedTickNs;
  return tick.busy ? kBusyTickNs : kIdleTickNs;
}

void Upkeep::fence(uint32_t registration, bool connected, bool left) {
  if (connected && !KV_VARIANT(no_fence_before_sweep)) cut_off_(registration);
  if (registry_.mark_fenced(registration, left)) fenced_(registration);
}

Status Upkeep::dismiss(uint32_t registration) {
  Registered found;
  if (!registry_.find(registration, found) || found.state != layout::ClientState::kLive) {
    return Status::kAbsent;
  }
  // A client with a mapping can't be cut off from outside: it is gone when its socket hangs up.
  if (found.fabric == KV_FABRIC_SHM && found.connected) return Status::kOk;
  fence(registration, true, true);
  return Status::kOk;
}

void Upkeep::revoke() {
  revoked_.store(true);
  for (const uint32_t registration : registry_.live()) {
    Registered found;
    if (!registry_.find(registration, found)) continue;
    const bool remote = found.fabric == KV_FABRIC_TCP || found.fabric == KV_FABRIC_VERBS;
    if (remote) fence(registration, true, false);
  }
}

// A socket may be closed by mistake while the process goes on writing through its mapping: without
// a farewell only the end of the process counts, which its silence makes us look for again.
void Upkeep::hung_up(uint32_t registration, bool left) {
  Registered found;
  if (!registry_.find(registration, found)) return;
  const bool over = left || found.process_descriptor < 0 || exits(found.process_descriptor);
  if (over) {
    fence(registration, false, left);
  } else {
    registry_.set_stalled(registration, true);
  }
}

void Upkeep::judge_silent(uint32_t registration) {
  Registered found;
  if (!registry_.find(registration, found)) return;
  const bool maps = found.fabric == KV_FABRIC_SHM && found.process_descriptor >= 0;
  const bool remote = found.fabric == KV_FABRIC_TCP || found.fabric == KV_FABRIC_VERBS;
  if (remote || (!found.connected && !maps)) {
    fence(registration, true, false);
    return;
  }
  if (found.fabric == KV_FABRIC_LOCAL) return;  // a thread of this process, only slow
  if (found.process_descriptor >= 0 && exited(found.process_descriptor)) {
    fence(registration, false, false);
    return;
  }
  if (revoked_.load()) return;
  // A stopped process still maps the region: nothing of it may be reused until it is dead.
  registry_.set_stalled(registration, true);
  const uint64_t silent_ns = boottime_ns() - found.heard_ns;
  const bool too_long = rules_.fence_after_ns > 0 && silent_ns > rules_.fence_after_ns;
  if (too_long && found.process_descriptor >= 0) {
    ::syscall(SYS_pidfd_send_signal, found.process_descriptor, SIGKILL, nullptr, 0);
  }
}

}  // namespace kvstore
