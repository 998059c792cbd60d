#include "sim/host.hpp"

#include <algorithm>

namespace kvstore::sim {

void Driver::poke() {
  if (poked_ || stopped_) return;
  poked_ = true;
  const uint64_t notice_ns = kNoticeNsMin + schedule_.random().below(kNoticeNsSpread + 1);
  schedule_.after(notice_ns, *this, kPoke);
}

void Driver::fire(uint64_t event) {
  const uint64_t now_ns = schedule_.now_ns();
  if (!stopped_ && now_ns < paused_until_ns_) {
    schedule_.at(paused_until_ns_, *this, event);
    return;
  }
  // A watch that was overtaken by a sooner one comes for nothing.
  if (event == kWatch && now_ns < watch_ns_) return;
  if (event == kPoke) poked_ = false;
  if (event == kWatch) watch_ns_ = UINT64_MAX;
  if (stopped_) return;
  note_step(name_, now_ns);
  const OnHost scope(clock_);
  const uint64_t next_ns = step();
  if (stopped_ || next_ns == UINT64_MAX) return;
  const uint64_t instant_ns = std::max(clock_.instant_of(next_ns), schedule_.now_ns() + 1);
  if (instant_ns >= watch_ns_) return;
  watch_ns_ = instant_ns;
  schedule_.at(instant_ns, *this, kWatch);
}

}  // namespace kvstore::sim
